"""Integrate the probability flow dx/dt = velocity(x, t). One loop owns time; a sampler writes only `step`.

Times are equidistant in t', (1 - t) = shift (1 - t') / (1 + (shift - 1) (1 - t')): shift > 1 spends more steps near
noise.

References: Scaling Rectified Flow Transformers, Esser et al., 2024, https://arxiv.org/abs/2403.03206 (Eq. 23: shift).
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mandorla.config import Settings

Velocity = Callable[[Tensor, float], Tensor]


class SamplingConfig(Settings):
    """How samples are drawn."""

    sampler: Literal["multistep", "dpm", "heun", "euler", "sde"] = "multistep"
    """multistep: second order, one network evaluation per step; dpm: the same, of the end that a way seems to have;
    heun: second order, two; euler: first order, one; sde: Euler with fresh noise in every step, which forgets errors
    made before"""
    steps: int = Field(12, ge=1)
    """steps from noise to data"""
    shift: float = Field(1.0, gt=0)
    """above 1: more of the steps near noise; below: near data"""
    guidance: float = Field(1.0, ge=0)
    """how far what is known pushes what is drawn: 1 as learned, above 1 further, 0 not at all; other than 1 each
    evaluation costs two"""
    autoguidance: float = Field(1.0, ge=0)
    """how far samples are led away from those of a weaker network (`diffusion.weak_share`): 1 not at all, 2 is a good
    value; other than 1 each evaluation costs one more"""
    guided_from: float = Field(0.0, ge=0, lt=1)
    """time in [0, 1) before which neither guides, which saves evaluations: early on the way guidance does least good;
    the multistep sampler feels its beginning half a step before"""
    precision: Literal["bf16", "fp32"] = "bf16"
    """arithmetic of the network while samples are drawn: bfloat16 autocast, with states in float32; or float32
    throughout, as residuals and likelihoods always are"""
    residual_steps: int = Field(20, ge=1)
    """steps from a private part to its residual, and back: enough that the way back ends where it began"""

    def guided_at(self, t: float) -> bool:
        """Return whether what guides does so at time `t`, which may be rounded."""
        return t > self.guided_from - 1e-6


def evaluations(sampling: SamplingConfig, known: bool = False) -> int:
    """Return how many evaluations of networks a sample takes from noise on.

    `known`: whether something that stage 2 knows, or a label, is given, which guides.
    """
    count, still = 0, torch.zeros(1, 1)

    def velocity(x: Tensor, t: float) -> Tensor:
        nonlocal count
        count += 1 + sampling.guided_at(t) * ((sampling.autoguidance != 1) + (known and sampling.guidance != 1))
        return x

    times = time_grid(sampling.steps, shift=sampling.shift)
    SAMPLERS[sampling.sampler]().integrate(velocity, still, times, lambda _: still)
    return count


def time_grid(steps: int, start: float = 0.0, stop: float = 1.0, shift: float = 1.0) -> list[float]:
    """Return `steps` + 1 times from `start` to `stop`, backwards if stop < start."""

    def unwarped(t: float) -> float:
        return 1 - (1 - t) / (shift - (shift - 1) * (1 - t))

    grid = torch.linspace(unwarped(start), unwarped(stop), steps + 1, dtype=torch.float64)
    left = shift * (1 - grid) / (1 + (shift - 1) * (1 - grid))
    return [start, *(1 - left).tolist()[1:-1], stop]


class Sampler:
    """Move states through time. One object serves one integration: it may remember the steps before."""

    def integrate(
        self, velocity: Velocity, x: Tensor, times: Sequence[float], fresh: Callable[[int], Tensor] | None = None
    ) -> Tensor:
        """Return the state at the last of `times` that begins as `x` `(B, D)` at the first.

        `fresh(k)` gives the standard normal noise `(B, D)` that step k may add; only sde asks for it.
        """
        for number, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
            if s != t:  # as where a way begins at its end
                x = self.step(velocity, x, t, s, lambda number=number: fresh(number))
        return x

    def step(self, velocity: Velocity, x: Tensor, t: float, s: float, fresh: Callable[[], Tensor]) -> Tensor:
        """Return the state at time `s` given the state `x` at time `t`."""
        raise NotImplementedError


class Euler(Sampler):
    """First order."""

    def step(self, velocity: Velocity, x: Tensor, t: float, s: float, fresh: Callable[[], Tensor]) -> Tensor:
        return x + (s - t) * velocity(x, t)


class Heun(Sampler):
    """Second order: the mean of the slopes at both ends.

    References: Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al., 2022,
    https://arxiv.org/abs/2206.00364 (Alg. 1).
    """

    def step(self, velocity: Velocity, x: Tensor, t: float, s: float, fresh: Callable[[], Tensor]) -> Tensor:
        return _heun(velocity, x, t, s, velocity(x, t))


class Multistep(Sampler):
    """Second order: this slope and the one before, extrapolated; the first step is Heun's.

    References: Solving Ordinary Differential Equations I, Hairer, Norsett, Wanner, 1993,
    https://doi.org/10.1007/978-3-540-78862-1 (III.5, Adams-Bashforth with variable steps).
    """

    before: tuple[float, Tensor] | None = None  # length of the last step, and its slope

    def step(self, velocity: Velocity, x: Tensor, t: float, s: float, fresh: Callable[[], Tensor]) -> Tensor:
        slope = velocity(x, t)
        if self.before is None:
            end = _heun(velocity, x, t, s, slope)
        else:
            ratio = (s - t) / self.before[0]
            end = x + (s - t) * (slope + ratio / 2 * (slope - self.before[1]))
        self.before = s - t, slope
        return end


class DataMultistep(Sampler):
    """Second order: where the way seems to end, extrapolated, and the way there as it follows; first a step of Heun's.

    On the straight path the end is x + (1 - t) v, and dx/dt = (end - x) / (1 - t) is solved for an end that moves
    evenly. DPM-Solver++ lets it move evenly in log(t / (1 - t)), of which the first steps are not small.

    References: DPM-Solver++, Lu et al., 2022, https://arxiv.org/abs/2211.01095 (2M: prediction of data, two steps).
    """

    before: tuple[float, Tensor] | None = None  # time of the last step, and the end as it seemed

    def step(self, velocity: Velocity, x: Tensor, t: float, s: float, fresh: Callable[[], Tensor]) -> Tensor:
        slope = velocity(x, t)
        end = x + (1 - t) * slope
        before, self.before = self.before, (t, end)
        if before is None:
            return _heun(velocity, x, t, s, slope)
        left = (1 - s) / (1 - t)
        moved = s - t + (1 - s) * math.log(left) if s < 1 else 1 - t
        return left * x + (1 - left) * end + moved / (t - before[0]) * (end - before[1])


class StochasticEuler(Sampler):
    """First order in law: dx = (v + (1 - t) score) dt + sqrt(2 (1 - t)) dw has the same distribution at every time.

    On the straight path (1 - t) score = -E[x_0 | x_t] = t v - x. The last step adds no noise.

    References: Score-Based Generative Modeling through Stochastic Differential Equations, Song et al., 2021,
    https://arxiv.org/abs/2011.13456 (App. D.1: one law, many diffusions).
    """

    def step(self, velocity: Velocity, x: Tensor, t: float, s: float, fresh: Callable[[], Tensor]) -> Tensor:
        v = velocity(x, t)
        if s == 1:
            return x + (s - t) * v
        return x + (s - t) * (v + t * v - x) + (2 * (1 - t) * (s - t)) ** 0.5 * fresh()


def _heun(velocity: Velocity, x: Tensor, t: float, s: float, slope: Tensor) -> Tensor:
    return x + (s - t) * (slope + velocity(x + (s - t) * slope, s)) / 2


SAMPLERS: dict[str, type[Sampler]] = {
    "multistep": Multistep,
    "dpm": DataMultistep,
    "heun": Heun,
    "euler": Euler,
    "sde": StochasticEuler,
}
