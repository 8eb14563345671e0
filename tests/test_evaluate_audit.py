"""The audit catches planted copies and lets new samples of the same kind pass."""

import numpy as np
import torch

from mandorla.evaluate.audit import flatten_tuples, nearest, suspicious


def rows(num: int, seed: int) -> torch.Tensor:
    return torch.rand(num, 30, generator=torch.Generator().manual_seed(seed))


def test_planted_copies_are_caught_and_named():
    train, held_out, samples = rows(500, 0), rows(400, 1), rows(100, 2)
    samples[:20] = train[40:60] + 0.01
    found, real = nearest(samples, train), nearest(held_out, train)
    assert (found.index[:20] == np.arange(40, 60)).all()
    np.testing.assert_allclose(found.distance[:20], 0.01, rtol=1e-3)
    for quantity in ("distance", "ratio"):
        caught = suspicious(getattr(found, quantity), getattr(real, quantity))
        assert caught[:20].all() and caught[20:].mean() < 0.06


def test_blur_alone_does_not_look_like_copying_in_the_ratio():
    train, held_out = rows(500, 0), rows(400, 1)
    blurred = 0.5 + 0.1 * (rows(400, 2) - 0.5)
    found, real = nearest(blurred, train), nearest(held_out, train)
    assert suspicious(found.distance, real.distance).mean() > 0.5
    assert suspicious(found.ratio, real.ratio).mean() < 0.05


def test_large_images_are_averaged_down_and_modalities_joined():
    x = {"a": torch.rand(2, 3, 64, 48), "b": torch.rand(2, 1, 8, 8, 8), "c": torch.rand(2, 5)}
    assert flatten_tuples(x).shape == (2, 3 * 32 * 32 + 512 + 5)
