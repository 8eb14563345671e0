"""The cached latents as stage 2 reads them: drawn from posteriors, whitened, and of no other run."""

import json

import numpy as np
import pytest
import torch
from tiny import latents_of

from mandorla.errors import MandorlaError

RUNS = ["polydigits_run", "phantom_run", "signals_run"]


@pytest.mark.parametrize("fixture", RUNS)
def test_whitening_is_that_of_numpy_over_the_whole_training_set(fixture, request):
    run = request.getfixturevalue(fixture)
    parts, whitening = latents_of(run)
    everything = list(parts["train"].drawn())
    for name in parts["train"].layout.shapes:
        z = np.concatenate([components[name][given[name]].numpy() for components, given in everything])
        axes = tuple(axis for axis in range(z.ndim) if axis != 1)
        np.testing.assert_allclose(whitening.mean[name].flatten(), z.mean(axes, dtype=float), atol=1e-6)
        np.testing.assert_allclose(whitening.std[name].flatten(), z.std(axes, dtype=float), rtol=1e-5)


def test_whitening_counts_the_spread_of_the_posterior(polydigits_run):
    """Law of total variance: that of the means and the mean of the variances, up to the error of one draw."""
    parts, whitening = latents_of(polydigits_run)
    encoded = parts["train"].batch(np.arange(200))
    for name, mean in encoded.latents.private.items():
        variance = mean.var(0, correction=0) + encoded.std[name].square().mean(0)
        torch.testing.assert_close(whitening.std[name].square(), variance, rtol=0.5, atol=0)
        assert (whitening.std[name].square() > 2 * mean.var(0)).any()


def test_drawn_does_not_touch_the_generator_and_repeats(polydigits_run):
    part = latents_of(polydigits_run)[0]["train"]
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = (next(part.drawn())[0] for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_cache_of_another_run_is_refused(polydigits_run, scans_run, copy_of):
    run = copy_of(scans_run)
    manifest = run / "latents" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"data": "0"}))
    with pytest.raises(MandorlaError, match="was made of other data"):
        latents_of(run)
