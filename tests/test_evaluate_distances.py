"""Distances between sets: equal sets, Gaussians in closed form, other implementations, planted faults."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from mandorla.errors import MandorlaError
from mandorla.evaluate import density_coverage, fidelity, frechet_distance, kernel_distance, precision_recall


def normal(num: int, size: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return shift + scale * np.random.default_rng(seed).normal(size=(num, size))


def with_moments(mean: np.ndarray, covariance: np.ndarray, num: int = 300) -> np.ndarray:
    """Return rows whose sample mean and covariance are exactly these."""
    rows = normal(num, len(mean), 0)
    rows -= rows.mean(0)
    white = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows.T))).T
    return mean + white @ np.linalg.cholesky(covariance).T


def test_frechet_of_gaussians_is_the_closed_form():
    """Where covariances commute it is |m - m'|^2 + sum (s - s')^2 over the standard deviations."""
    rotation = np.linalg.qr(normal(4, 4, 1))[0]
    ours, theirs = np.array([2.0, 1.0, 0.5, 0.1]), np.array([1.0, 3.0, 0.5, 0.0])
    sets = [
        with_moments(mean, rotation @ np.diag(std**2 + 1e-14) @ rotation.T)
        for mean, std in ((np.zeros(4), ours), (np.arange(4.0), theirs))
    ]
    assert frechet_distance(*sets) == pytest.approx(14 + ((ours - theirs) ** 2).sum(), rel=1e-6)


@pytest.mark.parametrize(("num", "size"), [(200, 8), (30, 64)])
def test_frechet_is_that_of_scipy_and_of_torchmetrics(num, size):
    """Also where a covariance has no full rank."""
    a, b = normal(num, size, 0), normal(num - 5, size, 1, 0.3, 1.4)
    value = frechet_distance(a, b)
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert value == pytest.approx(expected, rel=1e-4)
    moments = [torch.as_tensor(z) for rows in (a, b) for z in (rows.mean(0), np.cov(rows.T))]
    assert value == pytest.approx(float(_compute_fid(*moments)), rel=1e-4)


def test_kernel_distance_is_that_of_torchmetrics():
    a, b = normal(1200, 6, 0), normal(1200, 6, 1, 0.3)
    assert kernel_distance(a, b) == pytest.approx(float(poly_mmd(torch.as_tensor(a), torch.as_tensor(b))), rel=1e-4)


def test_kernel_distance_is_unbiased_and_the_biased_one_is_not():
    values = [kernel_distance(normal(20, 4, 2 * seed), normal(20, 4, 2 * seed + 1)) for seed in range(300)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(300)


def brute_force(real, made, k):
    """Compute precision, recall (k) and density, coverage (k) sample by sample."""

    def radius(rows, i):
        return sorted(np.linalg.norm(rows - rows[i], axis=1))[k]

    radii, made_radii = [radius(real, i) for i in range(len(real))], [radius(made, i) for i in range(len(made))]
    distance = np.array([[np.linalg.norm(a - b) for b in made] for a in real])
    precision = [any(distance[i, j] <= radii[i] for i in range(len(real))) for j in range(len(made))]
    recall = [any(distance[i, j] <= made_radii[j] for j in range(len(made))) for i in range(len(real))]
    density = [sum(distance[i, j] < radii[i] for i in range(len(real))) / k for j in range(len(made))]
    coverage = [any(distance[i] < radii[i]) for i in range(len(real))]
    return precision, recall, density, coverage


@pytest.mark.parametrize("k", [1, 3])
def test_neighbourhoods_are_counted_as_the_definition_says(k):
    real, made = normal(40, 3, 0), normal(30, 3, 1, 0.7)
    found = (*precision_recall(real, made, k), *density_coverage(real, made, k))
    for got, expected in zip(found, brute_force(real, made, k), strict=True):
        np.testing.assert_allclose(got, expected)


def test_equal_sets():
    x = normal(200, 5, 0)
    found = fidelity(x, x)
    assert found["frechet"] < 1e-6 and found["kernel"] <= 0
    assert [found[name] for name in ("precision", "recall", "coverage")] == [1, 1, 1]
    assert found["density"] == pytest.approx(1, abs=0.01)  # a neighbour at the very edge counts or not by rounding


def test_what_a_fault_costs():
    """Samples far away are neither precise nor dense; those that all are alike are precise and recall nothing."""
    real = normal(300, 4, 0)
    good, away, alike = normal(300, 4, 1), normal(300, 4, 1, 20), normal(300, 4, 1, 0, 0.01)
    good, away, alike = (fidelity(real, made) for made in (good, away, alike))
    assert good["precision"] > 0.8 and good["recall"] > 0.8 and 0.8 < good["density"] < 1.2 and good["coverage"] > 0.9
    assert away["precision"] == away["recall"] == away["density"] == away["coverage"] == 0
    assert alike["precision"] == 1 and alike["recall"] < 0.05 and alike["density"] > 0.9 and alike["coverage"] < 0.3
    for name in ("frechet", "kernel"):
        assert good[name] < alike[name] < away[name]


def test_an_outlier_spoils_precision_but_not_density():
    real = np.concatenate([normal(200, 2, 0), [[100.0, 0.0]]])
    made = normal(200, 2, 1, 0, 0.1) + [50, 0]
    assert precision_recall(real, made)[0].mean() == 1
    assert density_coverage(real, made)[0].mean() < 0.25


@pytest.mark.parametrize(
    ("real", "made", "text"),
    [
        (np.zeros((3, 2)), np.zeros((4, 3)), "2 and 3 features"),
        (np.zeros((1, 2)), np.zeros((4, 2)), r"shape \(1, 2\): expected \(N, F\) with at least 2"),
        (np.zeros((3, 2)), np.full((3, 2), np.nan), "made features have NaN"),
        (np.zeros((3, 2, 2)), np.zeros((3, 2)), "real features have shape"),
    ],
)
def test_sets_that_cannot_be_compared(real, made, text):
    with pytest.raises(MandorlaError, match=text):
        frechet_distance(real, made)
