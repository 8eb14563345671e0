import itertools

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from sklearn.datasets import load_digits

from mandorla.data import load_data
from mandorla.data.polydigits import INK, VIEWS, PolydigitsConfig, split_instances

CONFIG = PolydigitsConfig(num_train=3_000, num_val=500, num_test=500)


@pytest.fixture(scope="module")
def splits():
    return load_data(CONFIG, seed=0)


@pytest.fixture(scope="module")
def batch(splits):
    return splits.train.batch(range(3_000))


def test_contract(splits, batch):
    assert [(m.name, m.shape) for m in splits.modalities] == [(name, (3, 24, 24)) for name in VIEWS]
    assert (len(splits.train), len(splits.val), len(splits.test)) == (3_000, 500, 500)
    for name, x in batch.x.items():
        assert x.shape == (3_000, 3, 24, 24)
        assert x.dtype == torch.float32
        assert x.min() >= 0 and x.max() <= 1
        assert batch.present[name].all()
    assert batch.ids == splits.train.ids


def test_a_sample_does_not_depend_on_its_batch(splits, batch):
    few = splits.train.batch(np.array([17, 2_999, 4]))
    for name in VIEWS:
        assert torch.equal(few.x[name], batch.x[name][[17, 2_999, 4]])
    for key, value in few.factors.items():
        np.testing.assert_array_equal(value, batch.factors[key][[17, 2_999, 4]])


def test_seed_changes_training_alone(splits):
    other = load_data(CONFIG, seed=1)
    for part in ("val", "test"):
        x, y = (getattr(s, part).batch(range(9)).x["view1"] for s in (splits, other))
        assert torch.equal(x, y)
    assert not torch.equal(splits.train.batch(range(9)).x["view1"], other.train.batch(range(9)).x["view1"])


def test_digit_images_are_disjoint_between_parts_and_stratified(splits):
    labels = load_digits().target
    rows = split_instances(labels)
    assert sorted(np.concatenate(list(rows.values()))) == list(range(len(labels)))
    for part, numbers in rows.items():
        share = np.bincount(labels[numbers]) / np.bincount(labels)
        assert np.ptp(share) < 0.02
        factors = getattr(splits, part).batch(range(500)).factors
        for name in VIEWS:
            used = factors[f"instance_{name}"]
            assert np.isin(used, numbers).all()
            np.testing.assert_array_equal(labels[used], factors["digit"])


def test_views_show_different_handwriting(batch):
    for one, other in itertools.combinations(VIEWS, 2):
        assert (batch.factors[f"instance_{one}"] != batch.factors[f"instance_{other}"]).all()


def test_private_factors_are_uniform_and_independent(batch):
    factors = batch.factors
    assert stats.chisquare(np.bincount(factors["digit"], minlength=10)).pvalue > 1e-3
    for name in VIEWS:
        assert stats.chisquare(np.bincount(factors[f"quadrant_{name}"], minlength=4)).pvalue > 1e-3
        assert np.unique(factors[f"position_{name}"]).tolist() == list(range(8))
    for one, other in itertools.combinations([f"quadrant_{name}" for name in VIEWS] + ["digit"], 2):
        table = stats.contingency.crosstab(factors[one], factors[other]).count
        assert stats.chi2_contingency(table).pvalue > 1e-3


def test_each_view_draws_its_digit_in_its_way(splits):
    """Rebuild images from the factors with loops and slices, as the docstring of the module describes them."""
    dataset = splits.test
    batch = dataset.batch(range(20))
    for i in range(20):
        for name, x in batch.x.items():
            row, column = batch.factors[f"position_{name}"][i]
            instance = batch.factors[f"instance_{name}"][i]
            value = np.zeros((24, 24), np.float32)
            value[row : row + 16, column : column + 16] = upscaled_digit(instance)
            image = dataset._photographs[name][tuple(batch.factors[f"crop_{name}"][i])].copy()
            at = value > INK
            if name == "view1":
                image[:, at] = 1 - image[:, at]
            else:
                image[:, at] = 0
                image[{"view0": 0, "view2": 2}[name], at] = value[at]
            np.testing.assert_allclose(x[i].numpy(), image, atol=1e-6)
            assert batch.factors[f"quadrant_{name}"][i] == 2 * (row + 8 >= 12) + (column + 8 >= 12)


def upscaled_digit(instance):
    from skimage.transform import resize

    return resize(load_digits().images[instance] / 16, (16, 16), order=3).clip(0, 1)


def test_other_sizes():
    for size, digit_size in ((32, 16), (20, 15)):
        dataset = load_data(PolydigitsConfig(size=size, digit_size=digit_size), seed=0).val
        assert dataset.batch([0]).x["view0"].shape == (1, 3, size, size)
        places = dataset.batch(range(500)).factors["position_view0"]
        assert places.min() == 0
        assert places.max() + digit_size <= size
    with pytest.raises(ValidationError, match="digit_size 24 must be below size 24"):
        PolydigitsConfig(size=24, digit_size=24)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_digits_are_legible(splits):
    """A small network reads held-out handwriting in every view; measured .97, .93, .97 after 900 steps."""
    torch.manual_seed(0)
    train = load_data(PolydigitsConfig(), seed=0).train
    for name in VIEWS:
        layers = [torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.ReLU()]
        for width in (32, 64):
            layers += [torch.nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), torch.nn.ReLU()]
        reader = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Dropout(0.3), torch.nn.Linear(128 * 36, 10))
        optimiser = torch.optim.AdamW(reader.parameters())
        lr_schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, 900)
        for step in range(900):
            batch = train.batch(range(64 * (step % 781), 64 * (step % 781) + 64))
            loss = torch.nn.functional.cross_entropy(reader(batch.x[name]), torch.from_numpy(batch.factors["digit"]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            lr_schedule.step()
        test = splits.test.batch(range(500))
        reader.eval()
        with torch.no_grad():
            right = reader(test.x[name]).argmax(dim=1).numpy() == test.factors["digit"]
        assert right.mean() > 0.88  # .90 less two standard errors of 500 samples
