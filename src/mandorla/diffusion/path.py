"""Flow matching on whitened latent components, each with its own time.

x_t = (1 - t) x_0 + t x_1 with noise x_0 ~ N(0, I) and data x_1: t = 0 is pure noise, t = 1 is data. The network learns
the velocity E[x_1 - x_0 | x_t, t]. With one time t_k per component, one set of weights learns every conditional:

    known component: t = 1    wanted: t travels from 0 to 1    unknown: t = 0

A region of a map that travels may be known as well: there x_t = x_1, at t = 1, and no loss.

References: Flow Matching for Generative Modeling, Lipman et al., 2023, https://arxiv.org/abs/2210.02747 (Eq. 23 with
sigma_min = 0); Scaling Rectified Flow Transformers, Esser et al., 2024, https://arxiv.org/abs/2403.03206 (Eq. 19:
logit-normal times; Eq. 23: their shift); Multimodal Latent Diffusion, Bounoua et al., 2023,
https://arxiv.org/abs/2306.04445 (masked times).
"""

import math

import torch
from torch import Tensor

from mandorla.latents import SHARED, Components, column
from mandorla.parallel import gather


def interpolate(noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
    """Return x_t `(B, ...)` on the straight path at times `t` `(B,)`."""
    t = column(t, data)
    return (1 - t) * noise + t * data


def draw_times(
    names: list[str], given: dict[str, Tensor], joint_share: float, mode: str, time_std: float, time_shift: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Draw a time for each component of each sample; return times `(B, K)` and which travel, bool `(B, K)`.

    A share `joint_share` of the samples lets all components travel together; in the others each component is known,
    wanted or unknown at random, at least one wanted. In mode "conditional" the shared component is always known.
    Times are logit-normal of standard deviation `time_std`, moved as `time_grid` moves them by `time_shift`.
    Components that a sample does not have (`given[name]`, bool `(B,)`) are unknown and never travel; a sample without
    any that may travel has none that does.
    """
    exists = torch.stack([given[name] for name in names], 1)
    size, device = exists.shape, exists.device
    role = torch.randint(0, 3, size, device=device)  # 0 unknown, 1 wanted, 2 known
    role[torch.rand(size[0], device=device) < joint_share] = 1
    may_travel = exists.clone()
    if mode == "conditional":
        may_travel[:, names.index(SHARED)] = False
    role.scatter_(1, (torch.rand(size, device=device) * may_travel).argmax(1, keepdim=True), 1)
    if mode == "conditional":
        role[:, names.index(SHARED)] = 2
    role = torch.where(exists, role, 0)
    travels = role == 1
    t = torch.sigmoid(time_std * torch.randn(size[0], 1, device=device) - math.log(time_shift)).expand(size)
    return torch.where(travels, t, (role == 2).to(t)), travels


def draw_regions(data: Components, travels: Tensor, share: float) -> Components:
    """Return which cells of the maps in `data` are known beforehand, bool `(B, *grid)`; empty for a share of none.

    In a share of the samples in which a map travels: a random box of it, or all but a random box. `travels` is bool
    `(B, K)` in the order of `data`.
    """
    held = {}
    for (name, z), rows in zip(data.items(), travels.unbind(1), strict=True):
        grid = z.shape[2:]
        if not (grid and share):
            continue
        box = torch.ones(len(z), *grid, dtype=torch.bool, device=z.device)
        for axis, size in enumerate(grid):
            ends = (torch.rand(len(z), 2, device=z.device) * (size + 1)).floor().sort(1).values
            cells = torch.arange(size, device=z.device)
            inside = (cells >= ends[:, :1]) & (cells < ends[:, 1:])
            box &= inside.view(len(z), *(size if k == axis else 1 for k in range(len(grid))))
        chosen, outside = (torch.rand(len(z), device=z.device) for _ in range(2))
        aside = (-1, *(1 for _ in grid))
        held[name] = (box ^ (outside < 0.5).view(aside)) & (rows & (chosen < share)).view(aside)
    return held


def flow_loss(
    velocity: Components, noise: Components, data: Components, travels: Tensor, held: Components | None = None
) -> tuple[Tensor, Components]:
    """Return the mean squared error of the velocity over travelling components, and its mean per component.

    Each component counts alike, whatever its size; the mean of one that never travels is zero. `travels` is bool
    `(B, K)` in the order of `data`; where nothing travels the loss is zero, and so it is in the cells `held` (see
    `draw_regions`). All hold a process's own rows of a batch, the means are those of the whole batch.
    """
    errors = {}
    for (name, z), rows in zip(data.items(), travels.unbind(1), strict=True):
        counted = column(rows, z)
        if held and name in held:
            counted = counted & ~held[name][:, None]
        missed = torch.where(counted, velocity[name] - (z - noise[name]), 0)
        errors[name] = gather(missed.square().flatten(1).mean(1))
    counts = gather(travels).sum(0)
    total = sum(error.sum() for error in errors.values()) / counts.sum().clamp_min(1)
    means = (error.detach().sum() / count for error, count in zip(errors.values(), counts.clamp_min(1), strict=True))
    return total, dict(zip(errors, means, strict=True))
