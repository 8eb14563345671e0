"""Samplers against the exact flow between Gaussians, in float64 and without Monte Carlo."""

import numpy as np
import pytest
import torch
from oracles import GaussianFlow, affine_map

from mandorla.diffusion.samplers import SAMPLERS

FLOW = GaussianFlow.draw(5)


def recovered(name: str, steps: int, flow: GaussianFlow = FLOW):
    """Return mean and covariance of what a sampler draws with the exact velocity."""
    mean, matrix = affine_map(lambda x: SAMPLERS[name].integrate(flow.velocity, x, steps), len(flow.mean))
    return mean, matrix @ matrix.T


@pytest.mark.parametrize(("name", "steps", "tolerance"), [("heun", 64, 2e-3), ("euler", 1000, 1e-2)])
def test_samplers_recover_mean_and_covariance(name, steps, tolerance):
    mean, covariance = recovered(name, steps)
    torch.testing.assert_close(mean, FLOW.mean, atol=tolerance, rtol=0)
    torch.testing.assert_close(covariance, FLOW.covariance, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2)])
def test_error_falls_at_the_order_of_the_sampler(name, order):
    noise = torch.randn(64, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    steps = np.array([4, 8, 16, 32, 64])
    exact = FLOW.transport(noise)
    samples = [SAMPLERS[name].integrate(FLOW.velocity, noise, num) for num in steps.tolist()]
    errors = [(x - exact).square().mean().sqrt().item() for x in samples]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(-order, abs=0.3)


def test_backwards_then_forwards_returns_the_start():
    data = FLOW.transport(torch.randn(8, 5, dtype=torch.float64))
    heun = SAMPLERS["heun"]
    noise = heun.integrate(FLOW.velocity, data, 400, start=1.0, stop=0.0)
    torch.testing.assert_close(heun.integrate(FLOW.velocity, noise, 400), data, atol=1e-5, rtol=0)
    torch.testing.assert_close(FLOW.transport(noise), data, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_number_of_evaluations_and_times(name):
    times = []

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        times.append(t)
        return torch.ones_like(x)

    x = SAMPLERS[name].integrate(velocity, torch.zeros(2, 1), 5)
    assert len(times) == 5 * {"heun": 2, "euler": 1}[name]
    assert min(times) == 0
    assert max(times) <= 1
    torch.testing.assert_close(x, torch.ones(2, 1))
