"""Information between Gaussian codes is known exactly; where there is none both estimators say so."""

import numpy as np
import pytest
import torch

from mandorla.errors import MandorlaError
from mandorla.evaluate import critic_information, gaussian_information
from mandorla.evaluate.information import MOST, principal


def pairs(num: int, correlation: float, size: int = 4, seed: int = 0):
    """Return codes of which each coordinate has this correlation with its partner, mixed by an orthogonal matrix."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(num, size))
    b = correlation * a + np.sqrt(1 - correlation**2) * rng.normal(size=(num, size))
    return a, b @ np.linalg.qr(np.random.default_rng(99).normal(size=(size, size)))[0]


@pytest.mark.parametrize("correlation", [0.3, 0.6, 0.9])
def test_both_find_the_information_of_gaussians(correlation):
    exact = -0.5 * 4 * np.log(1 - correlation**2)
    found = gaussian_information(*pairs(3000, correlation))
    assert found.nats == pytest.approx(exact, abs=0.05) and found.p < 0.02
    found = critic_information(*pairs(3000, correlation), *pairs(1000, correlation, seed=1))
    assert exact - 0.5 < found.nats < exact + 0.1 and found.nats > 0.6 * exact and found.p is None
    assert found.nats > found.zeros.max()


def test_independent_codes_have_none():
    a, _ = pairs(3000, 0)
    b, _ = pairs(3000, 0, seed=5)
    found = gaussian_information(a, b)
    assert found.nats < 0.01 and found.p > 0.02 and abs(found.nats - found.zeros.mean()) < 4 * found.zeros.std()
    found = critic_information(a, b, a[:1000][::-1], b[:1000])
    assert abs(found.nats) < 0.02 and abs(found.zeros.mean()) < 0.02


def test_the_bias_of_few_samples_shows_in_the_zero():
    """F G / 2N nats of nothing."""
    rng = np.random.default_rng(0)
    found = gaussian_information(rng.normal(size=(200, 10)), rng.normal(size=(200, 10)))
    assert found.nats > 0.2 and found.zeros.mean() == pytest.approx(found.nats, abs=0.1)


def test_only_the_critic_sees_what_no_line_shows():
    def folded(num, seed):
        a = np.random.default_rng(seed).normal(size=(num, 2))
        return a, np.abs(a) + 0.1 * np.random.default_rng(seed + 1).normal(size=a.shape)

    assert gaussian_information(*folded(3000, 0)).nats < 0.05
    assert critic_information(*folded(3000, 0), *folded(1000, 7)).nats > 1


@pytest.mark.parametrize("groups", [None, np.repeat(np.arange(40), 50)])
def test_the_order_of_the_samples_plays_no_role(groups):
    """Eight classes that both codes tell: among candidates of one class alone there would be nothing to find."""
    rng = np.random.default_rng(0)

    def sorted_by_class(num):
        label = np.repeat(np.arange(8), num // 8)
        return (8 * np.eye(8)[label] + rng.normal(size=(num, 8)) for _ in range(2))

    (a, b), (new_a, new_b) = sorted_by_class(2000), sorted_by_class(2000)
    found = critic_information(a, b, new_a, new_b, 5, groups=groups, new_groups=groups).nats
    assert found > 0.8 * np.log(8)


def test_the_same_code_twice_is_no_error():
    a, _ = pairs(500, 0)
    assert gaussian_information(a, a).nats > 10
    assert gaussian_information(np.c_[a, a[:, 0]], a[:, :1]).nats > 10


def test_large_codes_are_reduced_and_small_ones_kept():
    train, test = torch.randn(400, 3, 8, 8), torch.randn(50, 3, 8, 8)
    assert [z.shape for z in principal(train, test)] == [(400, MOST), (50, MOST)]
    small = principal(train[:, :, 0, 0], test[:, :, 0, 0])
    np.testing.assert_array_equal(small[1], test[:, :, 0, 0].numpy())


def test_too_few_samples():
    a, b = pairs(8, 0.5)
    with pytest.raises(MandorlaError, match="8 samples are too few for codes of 4 and 4"):
        gaussian_information(a, b)
    with pytest.raises(MandorlaError, match="8 pairs are too few"):
        critic_information(a, b, a, b)


def test_codes_that_tell_the_patient_alone_are_not_told_from_chance():
    """Forty patients, ten samples each, both codes constant but for noise: pairs are like those of other patients."""
    rng = np.random.default_rng(0)
    patient = rng.permutation(np.repeat(np.arange(40), 10))
    found = {"whole": [], "single": []}
    for _ in range(20):
        a, b = (rng.normal(size=(40, 2))[patient] + 0.1 * rng.normal(size=(400, 2)) for _ in range(2))
        found["whole"].append(gaussian_information(a, b, 40, groups=patient).p)
        found["single"].append(gaussian_information(a, b, 40).p)
    assert np.mean(np.array(found["whole"]) < 0.05) < 0.2 and np.mean(np.array(found["single"]) < 0.05) > 0.5
    with pytest.raises(MandorlaError, match="pairs of codes and their groups are 400 and 399"):
        gaussian_information(a, b, groups=patient[1:])


def test_a_leak_of_the_place_in_a_patient_is_found():
    """Both codes tell the height of a slice: pairs of two patients at one height would be no zero of it."""
    rng = np.random.default_rng(0)
    patient, height = np.divmod(np.arange(400), 10)
    a, b = (height[:, None] + 0.5 * rng.normal(size=(400, 2)) for _ in range(2))
    found = gaussian_information(a, b, 40, groups=patient)
    assert found.nats > 1 and found.zeros.max() < 0.1
