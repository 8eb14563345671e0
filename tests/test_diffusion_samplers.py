"""Samplers against the exact flow between Gaussians, in float64 and without Monte Carlo."""

import numpy as np
import pytest
import torch
from oracles import GaussianFlow, affine_map

from mandorla.diffusion.samplers import SAMPLERS, time_grid

FLOW = GaussianFlow.draw(5)
EVALUATIONS = {"heun": 10, "euler": 5, "multistep": 6, "dpm": 6, "sde": 5}  # of five steps


def recovered(name: str, steps: int, shift: float = 1.0):
    """Return mean and covariance of what a sampler draws with the exact velocity.

    What it draws is affine in the noise that it begins with and in that of every step.
    """
    size = len(FLOW.mean)

    def transport(noise: torch.Tensor) -> torch.Tensor:
        first, *others = noise.split(size, dim=1)
        times = time_grid(steps, shift=shift)
        return SAMPLERS[name]().integrate(FLOW.velocity, first, times, lambda step: others[step])

    mean, matrix = affine_map(transport, size * (1 + steps if name == "sde" else 1))
    return mean, matrix @ matrix.T


@pytest.mark.parametrize(
    ("name", "steps", "tolerance", "shift"),
    [
        ("heun", 64, 2e-3, 1.0),
        ("heun", 64, 2e-3, 3.0),
        ("multistep", 64, 2e-3, 1.0),
        ("multistep", 64, 4e-3, 0.5),
        ("dpm", 64, 4e-3, 1.0),
        ("dpm", 64, 4e-3, 0.5),
        ("euler", 1000, 1e-2, 1.0),
        ("sde", 300, 2e-2, 1.0),
    ],
)
def test_samplers_recover_mean_and_covariance(name, steps, tolerance, shift):
    mean, covariance = recovered(name, steps, shift)
    torch.testing.assert_close(mean, FLOW.mean, atol=tolerance, rtol=0)
    torch.testing.assert_close(covariance, FLOW.covariance, atol=tolerance, rtol=0)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("multistep", 2), ("dpm", 2)])
def test_error_falls_at_the_order_of_the_sampler(name, order, shift):
    noise = torch.randn(64, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    steps = np.array([8, 16, 32, 64, 128])
    exact = FLOW.transport(noise)
    samples = [SAMPLERS[name]().integrate(FLOW.velocity, noise, time_grid(num, shift=shift)) for num in steps.tolist()]
    errors = [(x - exact).square().mean().sqrt().item() for x in samples]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(-order, abs=0.3)


def test_fresh_noise_forgets_where_it_began():
    """Followed by the equation with noise, two starts end closer together than by the flow, which keeps all."""
    starts = torch.randn(2, 200, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    added = torch.randn(200, 200, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gaps = {}
    for name in ("sde", "euler"):
        a, b = (
            SAMPLERS[name]().integrate(FLOW.velocity, start, time_grid(200), lambda step: added[step])
            for start in starts
        )
        gaps[name] = (a - b).square().mean().sqrt().item()
    assert gaps["sde"] < 0.8 * gaps["euler"]


def test_backwards_then_forwards_returns_the_start():
    data = FLOW.transport(torch.randn(8, 5, dtype=torch.float64))
    heun = SAMPLERS["heun"]
    noise = heun().integrate(FLOW.velocity, data, time_grid(400, 1.0, 0.0))
    torch.testing.assert_close(heun().integrate(FLOW.velocity, noise, time_grid(400)), data, atol=1e-5, rtol=0)
    torch.testing.assert_close(FLOW.transport(noise), data, atol=1e-4, rtol=0)


def test_times():
    assert time_grid(4) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert time_grid(2, 1.0, 0.5) == [1.0, 0.75, 0.5]
    for start, stop in ((0.0, 1.0), (0.3, 1.0), (1.0, 0.0)):
        many, few = (np.array(time_grid(6, start, stop, shift)) for shift in (3.0, 1 / 3))
        assert (many[0], many[-1], few[0], few[-1]) == (start, stop, start, stop)
        assert (np.diff(many) * (stop - start) > 0).all() and (many[1:-1] < few[1:-1]).all(), "more near noise, t = 0"
    left = 1 - np.array(time_grid(6, shift=3.0))
    even = left / (3 - 2 * left)  # the inverse of Eq. 23
    np.testing.assert_allclose(np.diff(even), -1 / 6, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_number_of_evaluations_and_times(name):
    times = []

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        times.append(t)
        return torch.ones_like(x)

    x = SAMPLERS[name]().integrate(velocity, torch.zeros(2, 1), time_grid(5), lambda step: torch.zeros(2, 1))
    assert len(times) == EVALUATIONS[name]
    assert min(times) == 0
    assert max(times) <= 1
    if name != "sde":
        torch.testing.assert_close(x, torch.ones(2, 1))
