"""Flow matching on whitened latent components, each with its own time.

x_t = (1 - t) x_0 + t x_1 with noise x_0 ~ N(0, I) and data x_1: t = 0 is pure noise, t = 1 is data. The network learns
the velocity E[x_1 - x_0 | x_t, t]. With one time t_k per component, one set of weights learns every conditional:

    known component: t = 1    wanted: t travels from 0 to 1    unknown: t = 0

References: Flow Matching for Generative Modeling, Lipman et al., 2023, https://arxiv.org/abs/2210.02747 (Eq. 23 with
sigma_min = 0); Scaling Rectified Flow Transformers, Esser et al., 2024, https://arxiv.org/abs/2403.03206 (Eq. 19:
logit-normal times); Multimodal Latent Diffusion, Bounoua et al., 2023, https://arxiv.org/abs/2306.04445 (masked times).
"""

import torch
from torch import Tensor

from mandorla.latents import SHARED, Components


def interpolate(noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
    """Return x_t `(B, ...)` on the straight path at times `t` `(B,)`."""
    t = t.view(-1, *[1] * (data.ndim - 1))
    return (1 - t) * noise + t * data


def draw_times(
    names: list[str], given: dict[str, Tensor], joint_share: float, mode: str, time_std: float
) -> tuple[Tensor, Tensor]:
    """Draw a time for each component of each sample; return times `(B, K)` and which travel, bool `(B, K)`.

    A share `joint_share` of the samples lets all components travel together; in the others each component is known,
    wanted or unknown at random, at least one wanted. In mode "conditional" the shared component is always known.
    Components that a sample does not have (`given[name]`, bool `(B,)`) are unknown and never travel.
    """
    exists = torch.stack([given[name] for name in names], 1)
    size, device = exists.shape, exists.device
    role = torch.randint(0, 3, size, device=device)  # 0 unknown, 1 wanted, 2 known
    role[torch.rand(size[0], device=device) < joint_share] = 1
    forced = torch.randint(0, size[1], (size[0], 1), device=device)
    if mode == "conditional":
        shared = names.index(SHARED)
        role[:, shared] = 2
        others = torch.tensor([k for k in range(size[1]) if k != shared], device=device)
        forced = others[torch.randint(0, len(others), (size[0], 1), device=device)]
    role.scatter_(1, forced, 1)
    role = torch.where(exists, role, 0)
    travels = role == 1
    t = torch.sigmoid(time_std * torch.randn(size[0], 1, device=device)).expand(size)
    return torch.where(travels, t, (role == 2).to(t)), travels


def flow_loss(velocity: Components, noise: Components, data: Components, travels: Tensor) -> tuple[Tensor, Components]:
    """Return the mean squared error of the velocity over travelling components, and its mean per component.

    Each component counts alike, whatever its size. `travels` is bool `(B, K)` in the order of `data`.
    """
    errors = {name: (velocity[name] - (z - noise[name])).square().flatten(1).mean(1) for name, z in data.items()}
    total = torch.stack(list(errors.values()), 1)[travels].mean()
    parts = {
        name: error[rows].mean().detach()
        for (name, error), rows in zip(errors.items(), travels.unbind(1), strict=True)
        if rows.any()
    }
    return total, parts
