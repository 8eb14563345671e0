"""Exact answers for Gaussian data: what the flow, its samplers and its conditionals must give.

Data x_1 ~ N(mean, covariance), noise x_0 ~ N(0, I) independent of it, x_t = (1 - t) x_0 + t x_1 with a time of its
own for each coordinate; T is the diagonal matrix of the times. With S = T covariance T + (I - T)^2

    E[x_1 - x_0 | x_t] = mean + (covariance T - (I - T)) S^-1 (x_t - T mean).

Where all times are equal the flow of this velocity takes x_0 to mean + covariance^(1/2) x_0 exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mandorla.latents import Components, Layout
from mandorla.nets.diffusion_network import DiffusionNetwork


@dataclass
class GaussianFlow:
    """Hold `mean` (D,) and `covariance` (D, D) of the data, in float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def draw(cls, size: int, seed: int = 0) -> "GaussianFlow":
        """Draw some correlated Gaussian."""
        generator = torch.Generator().manual_seed(seed)
        factor = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
        mean = torch.randn(size, generator=generator, dtype=torch.float64)
        return cls(mean, factor @ factor.T + 0.2 * torch.eye(size, dtype=torch.float64))

    def velocity(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return E[x_1 - x_0 | x_t = x] `(B, D)` at times `t`, a number or `(B, D)`."""
        times = torch.as_tensor(t, dtype=torch.float64).expand(x.shape)
        forward = torch.diag_embed(times)
        backward = torch.diag_embed(1 - times)
        gain = (self.covariance @ forward - backward) @ torch.linalg.inv(
            forward @ self.covariance @ forward + backward @ backward
        )
        offset = x.double() - times * self.mean
        return (self.mean + (gain @ offset[..., None])[..., 0]).to(x.dtype)

    def transport(self, noise: Tensor) -> Tensor:
        """Return where the flow takes `noise` `(B, D)` at time 1."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return self.mean + noise.double() @ (vectors * values.sqrt()) @ vectors.T

    def conditional(self, wanted: list[int], known: list[int], value: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and covariance of the coordinates `wanted` given that those `known` have `value`."""
        cross = self.covariance[wanted][:, known] @ torch.linalg.inv(self.covariance[known][:, known])
        mean = self.mean[wanted] + cross @ (value.double() - self.mean[known])
        return mean, self.covariance[wanted][:, wanted] - cross @ self.covariance[known][:, wanted]


class GaussianNetwork(DiffusionNetwork):
    """Answer like the network of stage 2 would after perfect training on Gaussian components of `layout`."""

    common_times = True

    def __init__(self, layout: Layout, flow: GaussianFlow):
        super().__init__(layout, {})
        self.flow = flow

    def forward(
        self, components: Components, times: Tensor, held: Components | None = None, labels: Components | None = None
    ) -> Components:
        sizes = [torch.Size(shape).numel() for shape in self.layout.shapes.values()]
        each = self.layout.split(times.repeat_interleave(torch.tensor(sizes), dim=1))
        for name, cells in (held or {}).items():
            each[name] = each[name].where(~cells[:, None], 1.0)
        return self.layout.split(self.flow.velocity(self.layout.join(components), self.layout.join(each)))


def affine_map(transport: Callable[[Tensor], Tensor], size: int) -> tuple[Tensor, Tensor]:
    """Return offset b and matrix A of a map that is affine, x -> A x + b, by sending the unit vectors through it.

    A sampler of a Gaussian is such a map: its samples have the mean b and the covariance A A^T, without Monte Carlo.
    """
    out = transport(torch.cat([torch.zeros(1, size), torch.eye(size)]).double())
    return out[0], (out[1:] - out[0]).T
