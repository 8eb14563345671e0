import numpy as np
import pytest
from scipy import stats

from mandorla.data.random import Draws

INDICES = np.arange(2_000)


def test_a_sample_depends_on_seed_stream_and_index_alone():
    draws = Draws(7, INDICES, "a")
    together = draws.uniform(shape=(3,))
    np.testing.assert_array_equal(Draws(7, [5, 1999, 0], "a").uniform(shape=(3,)), together[[5, 1999, 0]])
    for other in (Draws(8, INDICES, "a"), Draws(7, INDICES, "b"), draws / "b", Draws(7, INDICES + 1, "a")):
        assert not np.any(other.uniform(shape=(3,)) == together)


def test_known_answer():
    """SplitMix64 with state 0 gives 0xE220A8397B1DCDAF first (the reference implementation, prng.di.unimi.it)."""
    from mandorla.data.random import GOLDEN, _mix

    assert _mix(np.array([GOLDEN]))[0] == 0xE220A8397B1DCDAF


@pytest.mark.parametrize(
    ("sample", "law"),
    [
        (lambda draws: draws.uniform(-1, 3, shape=(20,)), stats.uniform(-1, 4).cdf),
        (lambda draws: draws.normal(21), stats.norm.cdf),
    ],
)
def test_follows_its_law_and_is_uncorrelated(sample, law):
    numbers = sample(Draws(0, INDICES, "law")).astype(np.float64)
    assert stats.kstest(numbers.ravel(), law).pvalue > 1e-3
    z = (numbers - numbers.mean()) / numbers.std()
    bound = 5 / np.sqrt(z.size)  # five standard errors of a correlation
    assert abs((z[1:] * z[:-1]).mean()) < bound  # neighbouring samples
    assert abs((z[:, 1:] * z[:, :-1]).mean()) < bound  # neighbouring numbers of a sample
    half = z.shape[1] // 2
    assert abs((z[:, :half] * z[:, -half:]).mean()) < bound  # sine and cosine


def test_integers_are_uniform_below_their_bound():
    counts = np.bincount(Draws(0, np.arange(70_000), "die").integers(7), minlength=7)
    assert len(counts) == 7
    assert stats.chisquare(counts).pvalue > 1e-3
    high = np.array([1, 10])
    numbers = Draws(0, INDICES, "pair").integers(high, shape=(2,))
    np.testing.assert_array_equal(numbers.max(axis=0), high - 1)
