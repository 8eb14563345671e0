import gzip
import itertools
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from pydantic import ValidationError
from scipy import stats

from mandorla.data import load_data
from mandorla.data.dataset import on_device
from mandorla.data.mnist import IDX
from mandorla.data.polymnist import PHOTOGRAPHS, Polymnist, PolymnistConfig, resize_exactly
from mandorla.errors import MandorlaError
from mandorla.recipe import read_recipe

SHARED_DATA = Path(os.environ.get("MANDORLA_DATA") or Path(__file__).parents[2] / "shared" / "data")
needs_mnist = pytest.mark.skipif(
    not (SHARED_DATA / "mnist" / "mnist.npz").exists(), reason="no mnist/mnist.npz under MANDORLA_DATA"
)


def blobs(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images `(N, 28, 28)` with one bright square each, at a height that tells its class, and the classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % 10
    images = np.zeros((num, 28, 28), np.uint8)
    for image, label in zip(images, labels, strict=True):
        left = rng.integers(4, 18)
        image[2 * label + 2 : 2 * label + 8, left : left + 6] = rng.integers(1, 256, (6, 6))
    return images, labels.astype(np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a folder with 1200 training and 60 test images that MNIST's files could hold."""
    root = tmp_path_factory.mktemp("data")
    (x_train, y_train), (x_test, y_test) = blobs(1200, 0), blobs(60, 1)
    (root / "mnist").mkdir()
    np.savez(root / "mnist" / "mnist.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return root


def config(root: Path, recipe: str = "polymnist-quadrant-mini", **changes) -> PolymnistConfig:
    """Return the data of a shipped recipe, of few samples."""
    few = {"root": str(root), "num_train": 2000, "num_val": 300, "num_test": 300}
    return PolymnistConfig(**read_recipe(recipe).data.model_dump() | few | changes)


@pytest.fixture(scope="module")
def splits(root):
    return load_data(config(root), seed=0)


@pytest.fixture(scope="module")
def batch(splits):
    return splits.train.batch(range(2_000))


def test_contract(splits, batch):
    assert [(m.name, m.shape) for m in splits.modalities] == [(f"view{k}", (3, 32, 32)) for k in range(3)]
    assert [len(part) for part in splits.parts.values()] == [2_000, 300, 300]
    for x in batch.x.values():
        assert x.shape == (2_000, 3, 32, 32)
        assert x.dtype == torch.float32
        assert x.min() == 0 and x.max() == 1
    assert batch.ids == splits.train.ids


def test_sizes_of_the_published_protocol():
    data = read_recipe("polymnist-quadrant").data
    assert (data.num_train, data.num_val, data.num_test, data.size, data.ink) == (220_000, 5_000, 10_000, 64, 16)
    assert data.views == ("red", "inverted", "inverted", "inverted", "blue")
    mini = read_recipe("polymnist-quadrant-mini").data
    assert mini == data.model_copy(update={"views": ("red", "inverted", "inverted"), "size": 32})


def test_a_sample_does_not_depend_on_its_batch(splits, batch):
    few = splits.train.batch(np.array([17, 1_999, 4]))
    for name, x in few.x.items():
        assert torch.equal(x, batch.x[name][[17, 1_999, 4]])
    for key, value in few.factors.items():
        np.testing.assert_array_equal(value, batch.factors[key][[17, 1_999, 4]])


def test_seed_changes_training_alone(root, splits):
    other = load_data(config(root), seed=1)
    for part in ("val", "test"):
        x, y = (getattr(s, part).batch(range(9)).x["view1"] for s in (splits, other))
        assert torch.equal(x, y)
    assert not torch.equal(splits.train.batch(range(9)).x["view1"], other.train.batch(range(9)).x["view1"])


def test_fingerprint_follows_files_and_settings_but_not_their_place(root, splits, tmp_path):
    (tmp_path / "mnist").mkdir()
    arrays = dict(np.load(root / "mnist" / "mnist.npz"))
    np.savez(tmp_path / "mnist" / "mnist.npz", **arrays)
    assert load_data(config(tmp_path), seed=0).fingerprint == splits.fingerprint
    assert load_data(config(tmp_path, ink=17), seed=0).fingerprint != splits.fingerprint
    arrays["x_test"][0, 0, 0] += 1
    np.savez(tmp_path / "mnist" / "mnist.npz", **arrays)
    assert load_data(config(tmp_path), seed=0).fingerprint != splits.fingerprint


@pytest.mark.parametrize("recipe", ["polymnist-quadrant", "polymnist-quadrant-mini", "polymnist"])
def test_views_are_drawn_as_described(root, recipe):
    """Rebuild images from the factors with loops and slices, as the docstring of the module describes them."""
    settings = config(root, recipe)
    files = np.load(root / "mnist" / "mnist.npz")
    size, side = settings.size, settings.size // 2 if settings.quadrants else settings.size
    first = {"train": 0, "val": 1100, "test": 0}
    for part, dataset in load_data(settings, seed=0).parts.items():
        images = files["x_test" if part == "test" else "x_train"]
        labels = files["y_test" if part == "test" else "y_train"]
        batch = dataset.batch(range(8))
        for i, (k, drawing) in itertools.product(range(8), enumerate(settings.views)):
            row = first[part] + batch.factors[f"instance_view{k}"][i]
            assert labels[row] == batch.factors["digit"][i]
            digit = resize_exactly(torch.from_numpy(images[row][None]), side)[0].numpy()
            quadrant = batch.factors[f"quadrant_view{k}"][i] if settings.quadrants else 0
            value = np.zeros((size, size), np.uint8)
            top, left = quadrant // 2 * side, quadrant % 2 * side
            value[top : top + side, left : left + side] = digit
            top, left = batch.factors[f"crop_view{k}"][i]
            image = getattr(skimage.data, PHOTOGRAPHS[k])()[top : top + size, left : left + size].copy()
            at = value > settings.ink
            if drawing == "inverted":
                image[at] = 255 - image[at]
            else:
                image[at] = 0
                image[at, {"red": 0, "blue": 2}[drawing]] = value[at]
            np.testing.assert_allclose(batch.x[f"view{k}"][i].permute(1, 2, 0), image / 255, rtol=0, atol=1e-7)


def test_parts_use_images_of_their_own(splits):
    for part, num in (("train", 1100), ("val", 100), ("test", 60)):
        size = len(splits.parts[part])
        used = splits.parts[part].batch(range(size)).factors["instance_view0"]
        expected = num * (1 - (1 - 1 / num) ** size)  # different ones among so many draws
        assert abs(len(set(used)) - expected) < 0.1 * num and used.max() < num


def test_views_show_different_images(batch):
    for one, other in itertools.combinations(range(3), 2):
        assert (batch.factors[f"instance_view{one}"] != batch.factors[f"instance_view{other}"]).all()


def test_private_factors_are_uniform_and_independent(batch):
    factors = batch.factors
    for name, classes in [("digit", 10), *((f"quadrant_view{k}", 4) for k in range(3))]:
        assert stats.chisquare(np.bincount(factors[name], minlength=classes)).pvalue > 1e-3
    for one, other in itertools.combinations([f"quadrant_view{k}" for k in range(3)] + ["digit"], 2):
        table = stats.contingency.crosstab(factors[one], factors[other]).count
        assert stats.chi2_contingency(table).pvalue > 1e-3


def test_crops_reach_every_edge(root, monkeypatch):
    monkeypatch.setattr("mandorla.data.polymnist.PHOTOGRAPHS", ("chelsea",) * 2)
    part = load_data(config(root, views=("red", "blue"), size=256), seed=0).train
    crops = part.batch(range(300)).factors["crop_view0"]
    height, _ = skimage.data.chelsea().shape[:2]
    assert (crops[:, 0].min(), crops[:, 0].max()) == (0, height - 256)


@pytest.mark.parametrize("size", [28, 32, 16, 14, 56, 9])
def test_resize_is_that_of_pillow_within_a_grey_level(size):
    from PIL import Image

    images = blobs(12, 0)[0]
    ours = resize_exactly(torch.from_numpy(images), size).numpy()
    theirs = [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)) for image in images]
    assert np.abs(ours.astype(int) - np.stack(theirs)).max() <= 1 + (size < 28)  # Pillow rounds between its two passes
    assert (resize_exactly(torch.full((1, 28, 28), 255, dtype=torch.uint8), size) == 255).all()


def test_resize_is_exact_in_integers():
    """The same sums in Python's integers, whose size is unbounded."""
    from mandorla.data.polymnist import _weights

    images = blobs(2, 3)[0]
    weights = _weights(28, 16).astype(int).astype(object)
    assert (weights.sum(1) == 256).all()
    exact = [(weights @ image.astype(object) @ weights.T + 2**15) // 2**16 for image in images]
    np.testing.assert_array_equal(resize_exactly(torch.from_numpy(images), 16), np.array(exact, dtype=int))


def test_files_of_the_authors(root, splits, tmp_path):
    (tmp_path / "mnist").mkdir()
    for key, name in IDX.items():
        array = np.load(root / "mnist" / "mnist.npz")[key]
        content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
        if key.startswith("x"):
            (tmp_path / "mnist" / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (tmp_path / "mnist" / name).write_bytes(content)
    assert load_data(config(tmp_path), seed=0).fingerprint == splits.fingerprint
    path = tmp_path / "mnist" / IDX["y_test"]
    for damage, complaint in (
        (content[:-3], "does not fit the shape"),
        (b"", "does not begin as an IDX file"),
        (content[:6], "buffer is smaller"),
    ):
        path.write_bytes(damage)
        with pytest.raises(MandorlaError, match=f"t10k-labels-idx1-ubyte: cannot be read as an IDX file .*{complaint}"):
            load_data(config(tmp_path), seed=0)


def test_missing_and_wrong_files(root, tmp_path):
    with pytest.raises(MandorlaError, match=r"mnist/mnist\.npz: no such file; it comes from https.*data\.root"):
        load_data(config(tmp_path), seed=0)
    (tmp_path / "mnist").mkdir()
    path = tmp_path / "mnist" / "mnist.npz"
    path.write_bytes((root / "mnist" / "mnist.npz").read_bytes()[:500])
    with pytest.raises(MandorlaError, match="mnist.npz: cannot be read as a NumPy file"):
        load_data(config(tmp_path), seed=0)
    arrays = dict(np.load(root / "mnist" / "mnist.npz"))
    np.savez(path, **arrays | {"x_train": arrays["x_train"][:, :14]})
    with pytest.raises(MandorlaError, match=r"train images are uint8 \(1200, 14, 28\), no MNIST"):
        load_data(config(tmp_path), seed=0)
    np.savez(path, **arrays | {"y_test": arrays["y_test"] % 9})
    with pytest.raises(MandorlaError, match="not 5 images of each digit 0 to 9 for test"):
        load_data(config(tmp_path), seed=0)
    with pytest.raises(ValidationError, match="size 33 must be even"):
        PolymnistConfig(size=33)


def test_moved_to_a_device_it_gives_the_same(splits):
    moved = on_device(splits.train, torch.device("cpu"))
    assert isinstance(moved, Polymnist) and moved is not splits.train
    assert torch.equal(moved.batch([5]).x["view2"], splits.train.batch([5]).x["view2"])


@pytest.mark.gpu
def test_bit_identical_on_a_gpu(splits):
    ours, theirs = (part.batch(range(500)) for part in (splits.train, on_device(splits.train, torch.device("cuda"))))
    for name, x in theirs.x.items():
        assert x.device.type == "cuda"
        assert torch.equal(x.cpu(), ours.x[name])


@needs_mnist
def test_official_files():
    parts = load_data(config(SHARED_DATA), seed=0).parts
    assert [len(part._digits) for part in parts.values()] == [55_000, 5_000, 10_000]
    assert parts["test"].batch(range(50)).factors["digit"].max() == 9
