"""The loss of stage 1: what makes the shared code shared and the private codes private.

loss = reconstruction / n + kl_weight KL / n                        x_m from (c_S, u_m), S drawn anew for each target m
     + agreement_weight InfoNCE(c_m, c_n)                           c holds what modalities have in common
     + swap_weight [InfoNCE(c', c_i) - log q(u_j | x', c_i) / d]    x' = d_m(c_i, u_j): both parts must be read again
     + leak_weight I(u_m; c)                                        estimated by a critic, lowered by the encoder

n: number of values of x_m, d: size of u_m. The target's own gradient does not flow into its c (`target-detached`), so
nothing private has a reason to enter c. Re-encoding x' uses frozen encoders: the decoder learns to show c_i and u_j in
the image, the encoders do not learn to read hidden marks.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import Tensor, nn

from mandorla.config import Settings
from mandorla.data.dataset import Batch
from mandorla.latents import SHARED
from mandorla.nets.blocks import resize
from mandorla.vae.losses import ReverseGradient, agreement, info_nce, kl, private_recovery, reconstruction
from mandorla.vae.model import VAE, pool, random_subsets


class LossConfig(Settings):
    """Weights of the terms; a weight of zero switches a term off."""

    decoder_std: float = Field(0.1, gt=0)
    """standard deviation of p(x | c, u): smaller means more detail and a higher rate of u"""
    kl_weight: float = Field(1.0, ge=0)
    """weight of KL(q(u | x, c) || N(0, I)); 1 is the evidence lower bound"""
    agreement_weight: float = Field(1.0, ge=0)
    """weight of InfoNCE between the shared codes of different modalities"""
    temperature: float = Field(0.2, gt=0)
    """temperature of every InfoNCE term"""
    max_cells: int = Field(1024, ge=2)
    """most locations in one dense InfoNCE"""
    swap_weight: float = Field(0.1, ge=0)
    """weight of swap-and-re-encode"""
    swap_fraction: float = Field(0.5, gt=0, le=1)
    """share of each batch that is swapped and re-encoded"""
    leak_weight: float = Field(0.1, ge=0)
    """weight of the estimated mutual information between u and c"""
    shared_noise: float = Field(0.1, ge=0)
    """standard deviation of the noise on c (unit mean square) before decoding"""


class Critic(nn.Module):
    """Embed a private and a shared code so that matching pairs can be told from others: I(u; c) from below.

    Vectors are embedded whole, maps cell by cell on the grid of u.
    """

    def __init__(self, shared: tuple[int, ...], private: tuple[int, ...], width: int = 256, embedding: int = 32):
        super().__init__()
        self.grid = private[1:]
        flat = not self.grid
        cells = math.prod(shared[1:]) if flat else 1
        self.of_private = _perceptron(private[0], width, embedding)
        self.of_shared = _perceptron(shared[0] * cells, width, embedding)

    def forward(self, u: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Return two embeddings `(N, E)`; N is B for vectors and B times the number of cells for maps."""
        if not self.grid:
            return self.of_private(u), self.of_shared(c.flatten(1))
        c = resize(c, self.grid) if c.ndim > 2 else c.view(*c.shape, *[1] * len(self.grid)).expand(-1, -1, *self.grid)
        return self.of_private(_cells(u)), self.of_shared(_cells(c))


class Objective(nn.Module):
    """Compute every term of stage 1 on a batch; holds the critics, which are not part of the model."""

    def __init__(self, vae: VAE, config: LossConfig):
        super().__init__()
        self.vae, self.config = vae, config
        shapes = vae.layout.shapes
        self.critics = nn.ModuleDict({name: Critic(shapes[SHARED], shapes[name]) for name in vae.layout.modalities})

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its terms by name, unweighted, before means over modalities are weighted."""
        vae, config = self.vae, self.config
        features = vae.features(batch.x)
        codes = vae.shared_codes(features)
        whole = pool(codes, batch.present).detach()
        terms: dict[str, list[Tensor]] = {}
        loss = whole.new_zeros(())

        def add(name: str, value: Tensor, weight: float) -> None:
            nonlocal loss
            loss = loss + weight * value
            terms.setdefault(name, []).append(value.detach())

        count = len(batch.x)
        if config.agreement_weight:
            add("agreement", agreement(codes, batch.present, config.temperature, config.max_cells), config.agreement_weight)
        for name, x in batch.x.items():
            rows = batch.present[name]
            if rows.sum() < 2:
                continue
            detached = codes | {name: codes[name].detach()}
            c = pool(detached, random_subsets(batch.present))[rows]
            c = c + config.shared_noise * torch.randn_like(c)
            mean, log_std = vae.posterior(name, features[name][rows], c.detach())
            u = mean + log_std.exp() * torch.randn_like(mean)
            values = x[0].numel()
            add("reconstruction", reconstruction(x[rows], vae.decode(name, c, u), config.decoder_std).mean(), 1 / count)
            add("kl", kl(mean, log_std).mean(), config.kl_weight / values / count)
            if config.swap_weight:
                shown, recovered = self.swap(name, whole[rows], u.detach())
                add("swap_shared", shown, config.swap_weight / count)
                add("swap_private", recovered, config.swap_weight / count)
            if config.leak_weight:
                add("leak", self.leak(name, u, whole[rows]), 1 / count)
        return loss, {name: torch.stack(values).mean() for name, values in terms.items()} | {"loss": loss.detach()}

    def swap(self, name: str, c: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Decode c with the private code of another sample, read both again; return the two losses (means).

        References: IDMVAE, 2025, https://arxiv.org/abs/2509.23548 (cross-view re-encoding).
        """
        size = max(2, int(self.config.swap_fraction * len(c)))
        c, u = c[:size], u[torch.randperm(len(u), device=u.device)[:size]]
        x = self.vae.decode(name, c + self.config.shared_noise * torch.randn_like(c), u)
        with frozen(self.vae):
            features = self.vae.features({name: x})
            again = self.vae.shared_codes(features)
            mean, log_std = self.vae.posterior(name, features[name], c)
        everyone = {name: torch.ones(size, dtype=torch.bool, device=c.device)} | {
            "": torch.ones(size, dtype=torch.bool, device=c.device)
        }
        shown = agreement({name: again[name], "": c}, everyone, self.config.temperature, self.config.max_cells)
        return shown, private_recovery(u, mean, log_std).mean() / u[0].numel()

    def leak(self, name: str, u: Tensor, c: Tensor) -> Tensor:
        """Return the critic's InfoNCE between u and c; the critic lowers it, the encoder of u raises it.

        log N minus this loss is a lower bound of I(u; c) that the critic makes tight.
        References: Learning Disentangled Representations via Mutual Information Estimation, Sanchez et al., 2020,
        https://arxiv.org/abs/1912.03915 (Eq. 9: adversarial minimisation between shared and exclusive parts).
        """
        a, b = self.critics[name](ReverseGradient.apply(u, self.config.leak_weight), c)
        if len(a) > self.config.max_cells:
            chosen = torch.randperm(len(a), device=a.device)[: self.config.max_cells]
            a, b = a[chosen], b[chosen]
        return info_nce(a.float(), b.float(), self.config.temperature)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Keep the module's weights out of the graph built inside; gradients still flow through its inputs."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in module.parameters():
            parameter.requires_grad_(True)


def _perceptron(channels_in: int, width: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(channels_in, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, channels_out)
    )


def _cells(z: Tensor) -> Tensor:
    return z.flatten(2).transpose(1, 2).flatten(0, 1)
