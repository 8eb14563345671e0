"""Copies, and near copies, are found in two parts; other images are not."""

import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mandorla.data import load_data
from mandorla.data.arrays import ArraysConfig
from mandorla.data.duplicates import Marks, find_alike, sketch
from mandorla.errors import MandorlaError, MandorlaWarning

RNG = np.random.default_rng(0)


def pictures(num: int, side: int = 32) -> np.ndarray:
    """Return smooth pictures, uint8 `(num, side, side)`, no two of which look alike."""
    coarse = RNG.random((num, 8, 8)).repeat(side // 8, 1).repeat(side // 8, 2)
    return (coarse * 255).astype(np.uint8)


def load(tmp_path, a, b, **settings):
    np.savez(tmp_path / "d.npz", a=a, b=b, split=["train"] * 6 + ["val"] * 2 + ["test"] * 2)
    names = {"a": "d.npz:a", "b": "d.npz:b"}
    return load_data(ArraysConfig(root=str(tmp_path), images=names, split="d.npz:split", **settings), 0)


def test_the_same_image_in_two_parts_is_refused_unless_kept(tmp_path):
    a, b = pictures(10), pictures(10)
    load(tmp_path, a, b)
    b[9] = b[1]
    with pytest.raises(MandorlaError, match=r"1 image\(s\) lie in two parts, such as b of samples '1' and '9'; remove"):
        load(tmp_path, a, b)
    load(tmp_path, a, b, duplicates="keep")
    b[9] = pictures(1)[0]
    b[0] = b[1]
    a[1] = a[9] = 7
    load(tmp_path, a, b)  # twice in one part, and blank ones anywhere


def test_what_looks_the_same_is_counted_in_a_warning(tmp_path):
    a, b = pictures(10), pictures(10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path, a, b)
    a[6] = np.minimum(a[2], 254) + 1
    with pytest.warns(MandorlaWarning, match=r"1 image\(s\) look like one in another part, such as a of samples '2'"):
        load(tmp_path, a, b)


def jpeg(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file))


COPIES = {
    "itself": lambda x: x,
    "brighter": lambda x: np.clip(x * 1.02, 0, 255).astype(np.uint8),
    "a level up": lambda x: np.minimum(x, 254) + 1,
    "JPEG": lambda x: np.stack([jpeg(image) for image in x]),
    "half": lambda x: x.reshape(len(x), x.shape[1] // 2, 2, -1, 2).mean((2, 4)),
    "noise": lambda x: np.clip(x + np.random.default_rng(0).normal(0, 1, x.shape).round(), 0, 255),
}


def alike(train: np.ndarray, test: np.ndarray) -> list[tuple[str, str]]:
    """Return which images of `test` look like one of `train`, as (index in train, index in test)."""
    sketches = np.concatenate([sketch(Marks.of(x[:, None], np.ones(len(x), bool)).cells) for x in (train, test)])
    rows = {"train": np.arange(len(train)), "val": np.arange(0), "test": len(train) + np.arange(len(test))}
    ids = [*range(len(train)), *range(len(test))]
    return [pair for _, pair in find_alike({"x": sketches}, rows, ids)]


@pytest.mark.parametrize("how", COPIES)
def test_near_copies_are_found_and_nothing_else(how):
    x = pictures(40)
    assert alike(x, COPIES[how](x[:20])) == [(str(i), str(i)) for i in range(20)]
    assert alike(x[20:], COPIES[how](x[:20])) == []


@pytest.fixture(scope="module")
def lgg() -> tuple[np.ndarray, np.ndarray]:
    path = Path(os.environ.get("MANDORLA_DATA", "")) / "lgg" / "lgg_128.npz"
    if not path.is_file():
        pytest.skip("needs $MANDORLA_DATA/lgg")
    with np.load(path) as file:
        x, patient = file["x"][..., 0], file["patient"]
    return x, patient


@pytest.mark.parametrize("how", COPIES)
def test_near_copies_of_heads_are_found_and_no_other_patients(how, lgg):
    x, patient = lgg
    train, test = x[patient < 45], x[patient >= 45]
    assert len(alike(train[::8], COPIES[how](train[::8]))) > 0.97 * len(train[::8])
    assert alike(train, COPIES[how](test)) == []


def test_sketches_are_of_what_has_space_and_varies():
    for level in (0.5, np.float32(0.7)):  # whose mean is another number by rounding
        assert np.isnan(sketch(np.full((2, 1, 8, 8), level))).all(), "blank"
    spot = np.zeros((1, 1, 8, 8))
    spot[..., 3, 3] = 1
    assert np.isnan(sketch(spot)).all(), "a single spot"
    faint = RNG.random((5, 1, 8, 8)) * np.array([1, 1, 1, 1, 0.01])[:, None, None, None]
    assert np.isnan(sketch(faint)).all(1).tolist() == [False] * 4 + [True]
    for shape, num in (((9,), 0), ((1, 64), 64), ((1, 4, 4, 4), 64), ((2, 16, 16), 128)):
        cells = Marks.of(RNG.random((1, *shape)), np.ones(1, bool)).cells
        assert sketch(cells).shape == (1, num)
        assert not num or np.linalg.norm(sketch(cells)) == pytest.approx(1)
    assert find_alike({"x": np.zeros((2, 0))}, dict.fromkeys(("train", "val", "test"), np.arange(2)), "ab") == []
