"""The network that outlines lesions finds what it was shown, and only that."""

import numpy as np
import pytest
import torch

from mandorla.data.dataset import Batch, Modality
from mandorla.errors import MandorlaError
from mandorla.evaluate.segmenter import Segmenter, dice, train_segmenter


class Spots:
    """Answer dark images, some of them missing; every second one has a bright square."""

    modalities = (Modality("flair", 1, (24, 24)), Modality("t1", 1, (24, 24)))

    def __len__(self) -> int:
        return 200

    def batch(self, indices) -> Batch:
        x, mask = torch.zeros(len(indices), 1, 24, 24), np.zeros((len(indices), 24, 24), bool)
        for row, index in enumerate(indices):
            rng = np.random.default_rng(int(index))
            x[row] = 0.1 + 0.1 * torch.as_tensor(rng.random((1, 24, 24)))
            if index % 2:
                top, left = rng.integers(3, 13, size=2)
                mask[row, top : top + 7, left : left + 7] = True
        x[:, 0][torch.as_tensor(mask)] += 0.5
        present = torch.as_tensor(np.asarray(indices) % 5 > 0)
        return Batch({"flair": x, "t1": x}, {"flair": present, "t1": present}, {"lesion_mask": mask})


def test_dice_of_masks():
    a = np.zeros((4, 4, 4))
    b = a.copy()
    a[0, :2], b[0, 1:3] = 1, 1
    a[1, 0], b[1, 0] = 1, 1
    a[2, 0] = 1
    np.testing.assert_allclose(dice(a, b), [0.5, 1, 0, np.nan])
    np.testing.assert_allclose(dice(torch.as_tensor(a) > 0, b), dice(a, b))
    with pytest.raises(MandorlaError, match=r"\(4, 4, 4\) and \(3, 4, 4\): give pairs"):
        dice(a, b[:3])


def test_it_outlines_what_is_there_and_nothing_where_nothing_is():
    segmenter, unseen = train_segmenter(Spots(), "flair", 80, seed=0), Spots().batch(range(200, 240))
    mask, found = unseen.factors["lesion_mask"], segmenter.outline(unseen.x["flair"])
    assert np.nanmean(dice(found, mask)[1::2]) > 0.9 and found[::2].mean() < 0.01
    flat = torch.full_like(unseen.x["flair"], 0.15)
    assert np.nanmean(dice(segmenter.outline(flat), mask)[1::2]) < 0.1


def test_it_is_the_same_for_the_same_seed_and_leaves_the_random_state():
    torch.manual_seed(1)
    before = torch.rand(1)
    torch.manual_seed(1)
    first, second, other = (train_segmenter(Spots(), "t1", 2, seed=seed) for seed in (3, 3, 4))
    assert torch.rand(1) == before
    x = Spots().batch(range(4)).x["t1"]
    with torch.no_grad():
        assert torch.equal(first(x), second(x)) and not torch.equal(first(x), other(x))


@pytest.mark.parametrize("size", [(40,), (130, 100), (20, 30, 20)])
def test_any_size(size):
    segmenter = Segmenter(size).eval()
    assert segmenter.outline(torch.rand(2, 1, *size)).shape == (2, *size)
