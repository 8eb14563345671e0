"""Integrate the probability flow dx/dt = velocity(x, t). One loop owns time; a sampler writes only `step`."""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mandorla.config import Settings

Velocity = Callable[[Tensor, float], Tensor]


class SamplingConfig(Settings):
    """How samples are drawn."""

    sampler: Literal["heun", "euler"] = "heun"
    """heun: second order, two network evaluations per step; euler: first order, one"""
    steps: int = Field(8, ge=1)
    """steps from noise to data"""
    residual_steps: int = Field(20, ge=1)
    """steps from a private part to its residual, and back: enough that the way back ends where it began"""


class Sampler:
    """Move states through time in equal steps."""

    def integrate(self, velocity: Velocity, x: Tensor, steps: int, start: float = 0.0, stop: float = 1.0) -> Tensor:
        """Return the state at time `stop` that begins as `x` `(B, D)` at time `start`; backwards if stop < start."""
        grid = torch.linspace(start, stop, steps + 1, dtype=torch.float64).tolist()
        for t, s in zip(grid[:-1], grid[1:], strict=True):
            x = self.step(velocity, x, t, s)
        return x

    def step(self, velocity: Velocity, x: Tensor, t: float, s: float) -> Tensor:
        """Return the state at time `s` given the state `x` at time `t`."""
        raise NotImplementedError


class Euler(Sampler):
    """First order."""

    def step(self, velocity: Velocity, x: Tensor, t: float, s: float) -> Tensor:
        return x + (s - t) * velocity(x, t)


class Heun(Sampler):
    """Second order: the mean of the slopes at both ends.

    References: Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al., 2022,
    https://arxiv.org/abs/2206.00364 (Alg. 1).
    """

    def step(self, velocity: Velocity, x: Tensor, t: float, s: float) -> Tensor:
        slope = velocity(x, t)
        return x + (s - t) * (slope + velocity(x + (s - t) * slope, s)) / 2


SAMPLERS: dict[str, Sampler] = {"heun": Heun(), "euler": Euler()}
