"""What is drawn of samples that are no images."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mandorla.pictures import drawable, grid, tile


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_a_vector_is_a_bar_for_each_value(shape):
    """Not a line from one to the next: columns of a table have no order."""
    picture = drawable(torch.tensor([0.0, 0.25, 0.5, 1.0]).view(shape))[0]
    height, width = picture.shape
    rows = [int(2 + (height - 4) * (number + 0.5) / 4) for number in range(4)]
    lengths = [int((picture[row, 2:-2] < 0.8).sum()) for row in rows]
    np.testing.assert_allclose(np.array(lengths) / (width - 5), [0, 0.25, 0.5, 1], atol=0.02)


def test_one_value_and_thousands_of_them_are_drawn():
    for num in (1, 5000):
        assert 0.2 < (drawable(torch.full((num,), 0.5)) < 0.8).float().mean() < 0.6


def test_names_of_few_channels_are_written_whole_if_they_fit():
    values = torch.full((3,), 0.5)
    plain, named, longer = (
        np.array(tile(values, names), int) for names in ((), ("ph", "protein", "glucose"), ("ph", "protein", "g" * 100))
    )
    ink = [(picture < 100).any(2).any(1) for picture in (plain, named, longer)]
    assert not ink[0].any() and ink[1].any() and (plain.shape == named.shape == longer.shape)
    assert not (longer[:, -4:] < 100).any(), "what is too long for the tile is cut"
    many = torch.full((20,), 0.5)
    assert (np.array(tile(many)) == np.array(tile(many, [f"gene{n}" for n in range(20)]))).all()
    assert (np.array(tile(values)) == np.array(tile(values, ["ph"]))).all(), "names of other channels"


def test_a_signal_is_a_line():
    picture = drawable(torch.linspace(0, 1, 50)[None])[0]
    dark = [int(torch.nonzero(picture[:, column] < 0.2).float().mean()) for column in (20, 80, 140)]
    assert dark == sorted(dark, reverse=True) and dark[0] > dark[2] + 40


def test_a_grid_takes_tiles_and_samples():
    cells = [torch.full((1, 8, 8), 0.5), tile(torch.full((1, 8, 8), 0.5)), None]
    with Image.open(io.BytesIO(grid([cells]))) as picture:
        pixels = np.array(picture)
    assert (pixels[:, :72] == pixels[:, 76:148]).all() and not pixels[:, 152:, 3].any()
