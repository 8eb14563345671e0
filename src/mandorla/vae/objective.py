"""The loss of stage 1: what makes the shared code shared and the private codes private.

loss = reconstruction / n + kl_weight KL / n                        x_m from (c_S, u_m), S drawn anew for each target m
     + agreement_weight InfoNCE(c_m, c_n)                           c holds what modalities have in common
     + alignment_weight |c_m - c_n|^2 / d                           and nothing else
     + swap_weight [InfoNCE(c', c_i) - log q(u_j | x', c_i) / d]    x' = d_m(c_i, u_j): both parts must be read again
     + leak_weight dependence(u_m; c)                               kernel measure, zero if u says nothing about c

n: number of values of x_m, d: size of u_m. The target's own gradient does not flow into its c (`target_gradient`), so
nothing private has a reason to enter c. Re-encoding x' uses frozen encoders: the decoder learns to show c_i and u_j in
the image, the encoders do not learn to read hidden marks.

Codes are those of the whole batch, also where several processes divide it: each sends its `own` rows through the
networks, and what comes out is gathered (`mandorla.parallel`).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mandorla.config import Settings
from mandorla.data.dataset import Batch, rows_of
from mandorla.latents import SHARED, Components, column
from mandorla.nets.blocks import resize
from mandorla.nets.encoder_decoder import Convolutional, Perceptron
from mandorla.parallel import counts_of, gather, mean_of_all, share_of
from mandorla.vae.losses import agreement, alignment, dependence, kl, private_recovery, reconstruction
from mandorla.vae.memory import Memory
from mandorla.vae.model import VAE, pool, random_subsets

Term = tuple[str, Tensor, float]  # name, value and weight in the loss


class LossConfig(Settings):
    """Weights of the terms; a weight of zero switches a term off."""

    decoder_std: float | None = Field(0.1, gt=0)
    """standard deviation of p(x | c, u): smaller means more detail and a higher rate of u; null: of each modality as
    large as its error is, which is the likeliest"""
    likelihood: Literal["normal", "laplace"] = "normal"
    """law of p(x | c, u): normal counts squares of errors, laplace their sizes, so that edges are sharper and what is
    empty stays empty"""
    kl_weight: float = Field(1.0, ge=0)
    """weight of KL(q(u | x, c) || N(0, I)); 1 is the evidence lower bound"""
    agreement_weight: float = Field(1.0, ge=0)
    """weight of InfoNCE between the shared codes of different modalities"""
    agreement_first: float = Field(0.4, ge=0, lt=1)
    """share of the training in which agreement is the only term, so that u never has to carry what c soon will"""
    temperature: float = Field(0.3, ge=0.02)
    """temperature of every InfoNCE term"""
    alignment_weight: float = Field(0.0, ge=0)
    """weight of the squared difference between the shared codes of different modalities"""
    max_cells: int = Field(512, ge=4)
    """most locations in one dense InfoNCE or one kernel of the leak; the cost grows with the square"""
    private_dropout: float = Field(0.0, ge=0, lt=1)
    """share of the samples decoded as in a translation, with u = 0 and c from other modalities than the target: c then
    has to hold all they tell of each other, and the decoder knows the mean image where u is not known"""
    swap_weight: float = Field(0.1, ge=0)
    """weight of swap-and-re-encode"""
    swap_fraction: float = Field(0.5, gt=0, le=1)
    """share of each batch that is swapped and re-encoded"""
    leak_weight: float = Field(3.0, ge=0)
    """weight of the dependence of u on c"""
    leak_memory: int = Field(0, ge=0)
    """rows of u and c of past steps that the dependence is measured on too, beside those of the batch"""
    shared_noise: float = Field(0.1, ge=0)
    """standard deviation of the noise on c (unit mean square) before decoding"""
    subsets: bool = True
    """decode from the c of a random subset of the modalities, drawn anew for each target; else of all that are there"""
    target_gradient: float = Field(0.0, ge=0, le=1)
    """share of the gradient of a target's reconstruction that flows into the c read from that target itself"""


class Objective(nn.Module):
    """Compute every term of stage 1 on a batch."""

    def __init__(self, vae: VAE, config: LossConfig):
        super().__init__()
        self.vae, self.config, self.laplace = vae, config, config.likelihood == "laplace"
        self.names = [modality.name for modality in vae.modalities]
        self.register_buffer("errors", torch.ones(len(self.names)))  # 1 until something is decoded
        self.past = nn.ModuleDict({name: self._memory(name) for name in self.names})

    def forward(self, batch: Batch, progress: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its terms by name (unweighted means over modalities) at `progress` in [0, 1].

        `batch.present` is on the host: where nothing is missing no step waits for a GPU.
        """
        features, codes = self.vae.encode(batch.x, batch.present)
        present = joined(batch.present)
        codes = joined(codes, counts_of(torch.ones_like(present[self.names[0]])))
        zero = features if self.vae.shared_held else codes
        loss = 0 * next(iter(zero.values())).sum()  # zero, and differentiable even where no term applies
        terms: dict[str, list[Tensor]] = {}
        for name, value, weight in self._terms(batch, features, codes, present, self.agrees_alone(progress)):
            loss = loss + weight * value
            terms.setdefault(name, []).append(value.detach())
        return loss, {name: torch.stack(values).mean() for name, values in terms.items()} | {"loss": loss.detach()}

    def _terms(
        self, batch: Batch, features: Components, codes: Components, present: dict[str, Tensor], alone: bool
    ) -> Iterator[Term]:
        """Yield all terms of a batch: agreement and, unless that is `alone`, those of each modality."""
        config = self.config
        if config.agreement_weight:
            value = agreement(codes, present, config.temperature, config.max_cells)
            yield "agreement", value, config.agreement_weight
        if config.alignment_weight:
            yield "alignment", alignment(codes, present), config.alignment_weight
        if alone:
            return
        there = masks_on(present, codes[self.names[0]].device)
        whole = pool(codes, there).detach()
        for name, x in batch.x.items():
            rows = present[name]
            if rows.sum() >= (_LEAST if self.training else 1):
                x = rows_of(x, batch.present[name])
                c, heard = self._shared_for(name, codes, there, rows)
                given = features[name], rows_of(whole, rows), c, heard
                for term, value, weight in self._terms_of(name, x, *given, counts_of(rows)):
                    yield term, value, weight / len(batch.x)

    def _shared_for(
        self, name: str, codes: Components, there: dict[str, Tensor], rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the noisy c from which the `rows` of a modality are decoded, and which are decoded with u, `(B,)`.

        c is read from a random subset of the modalities that are `there`. Those without u are decoded as in a
        translation: not from the modality itself, unless there is no other.
        """
        config = self.config
        held = codes | {name: let_through(codes[name], config.target_gradient)}
        heard = some(there[name], 1 - config.private_dropout)
        seen = there | {name: heard | there[name] & ~others(there, name)}
        c = rows_of(pool(held, random_subsets(seen) if config.subsets else seen), rows)
        return c + config.shared_noise * noise_like(c), rows_of(heard, rows)

    def _terms_of(
        self,
        name: str,
        x: Tensor,
        features: Tensor,
        whole: Tensor,
        c: Tensor,
        heard: Tensor,
        counts: Sequence[int] | None,
    ) -> Iterator[Term]:
        """Yield the terms of a modality, of which this process has the images `x` and their `features`.

        Of all processes, which have so many (`counts`), are: `whole`, the code of all that is there; `c`, from which is
        decoded; and which rows are `heard`, decoded with u.
        """
        vae, config = self.vae, self.config
        own = share_of(counts)
        posterior = vae.posterior(name, features, c[own].detach())
        mean, log_std = gather(torch.cat(posterior, 1), counts).chunk(2, 1)
        u = mean + log_std.exp() * noise_like(mean)
        told = heard.to(u)
        decoded = vae.decode(name, c[own], (u * column(told, u))[own])
        std = config.decoder_std or self.likeliest_std(name, x, decoded)
        missed = gather(reconstruction(x, decoded, std, self.laplace), counts)
        yield "reconstruction", missed.mean(), 1.0
        yield "kl", (told * kl(mean, log_std)).mean(), config.kl_weight / x.shape[1:].numel()
        if len(whole) < _LEAST_APART:
            return
        if config.swap_weight:
            shown, recovered = self.swap(name, whole, u.detach())
            yield "swap_shared", shown, config.swap_weight
            yield "swap_private", recovered, config.swap_weight
        if config.leak_weight:
            yield "leak", leak(mean, whole, config.max_cells, self.past[name]), config.leak_weight

    def agrees_alone(self, progress: float) -> bool:
        """Return whether agreement is the only term at `progress`; it is not where codes agree already and are held."""
        first = 0 if self.vae.shared_held else self.config.agreement_first
        return self.config.agreement_weight > 0 and progress < first

    def kind(self, present: dict[str, Tensor], progress: float) -> tuple | None:
        """Return what decides which kernels a step runs (see `mandorla.replay`).

        None where values of tensors do, or a network of the user's own might: what it does is not known.
        """
        own = all(type(network) in (Convolutional, Perceptron) for network in self.vae.networks.values())
        whole = all(rows.all() for rows in present.values())
        return (self.agrees_alone(progress),) if own and whole and not self.config.leak_memory else None

    def likeliest_std(self, name: str, x: Tensor, decoded: Tensor) -> Tensor:
        """Return the likeliest standard deviation of p(x | c, u) for the mean error of a modality in a training so far.

        The error is a moving average over steps: of squares for a normal law, of sizes for a Laplace law.

        References: Simple and Effective VAE Training with Calibrated Decoders, Rybkin et al., 2021,
        https://arxiv.org/abs/2006.13202 (Eq. 4).
        """
        error = self.errors[self.names.index(name)]
        if self.training:
            missed = (decoded.detach() - x).abs()
            now = mean_of_all(missed if self.laplace else missed.square())
            error.copy_(torch.where(error < 1, error.lerp(now, _PACE), now))
        return math.sqrt(2) * error if self.laplace else error.sqrt()

    def _memory(self, name: str) -> Memory:
        u, c = (torch.zeros(4, *self.vae.layout.shapes[key]) for key in (name, SHARED))
        return Memory(self.config.leak_memory, *(rows.shape[1] for rows in paired_rows(u, c, 1)))

    def swap(self, name: str, c: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Decode c with the private code of another sample, read both again; return the two losses (means).

        References: IDMVAE, 2025, https://arxiv.org/abs/2509.23548 (cross-view re-encoding).
        """
        size = max(2, int(self.config.swap_fraction * len(c)))
        c, u = c[:size], u[torch.randperm(len(u), device=u.device)[:size]]
        noisy = c + self.config.shared_noise * noise_like(c)
        everyone = torch.ones(size, dtype=torch.bool)
        own = share_of(counts := counts_of(everyone))
        x = self.vae.decode(name, noisy[own], u[own])
        with frozen(self.vae):
            features, again = self.vae.encode({name: x}, {name: everyone[own]})
            mean, _ = self.vae.posterior(name, features[name], c[own])
        pair, both = {"decoded": gather(again[name], counts), "given": c}, {"decoded": everyone, "given": everyone}
        shown = agreement(pair, both, self.config.temperature, self.config.max_cells)
        return shown, gather(private_recovery(u[own], mean), counts).mean()


_PACE = 0.02  # of the moving average of the error
_LEAST = 2  # samples with a modality in a batch that train its decoder: of one there are no statistics to normalise by
_LEAST_APART = 4  # that tell whether u and c depend on each other, and what another u shows


def joined(parts: dict[str, Tensor], counts: Sequence[int] | None = None) -> dict[str, Tensor]:
    """Return the rows of all processes of tensors of one shape, in one exchange."""
    return dict(zip(parts, gather(torch.stack(list(parts.values()), 1), counts).unbind(1), strict=True))


def masks_on(masks: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return masks `(B,)` of the host on a `device`; those that choose all are made there."""
    return {
        name: torch.ones(len(rows), dtype=torch.bool, device=device) if rows.all() else rows.to(device)
        for name, rows in masks.items()
    }


def noise_like(z: Tensor) -> Tensor:
    """Return normal noise of the shape of `z`, the same in whatever order `z` lies in memory."""
    return torch.randn(z.shape, device=z.device, dtype=z.dtype)


def some(rows: Tensor, share: float) -> Tensor:
    """Return `rows` `(B,)` (bool), of which each stays with a probability of `share`."""
    return rows & (torch.rand(len(rows), device=rows.device) < share) if share < 1 else rows


def others(present: dict[str, Tensor], name: str) -> Tensor:
    """Return which samples `(B,)` have a modality besides the one called `name`."""
    return torch.stack([there for other, there in present.items() if other != name]).any(0)


def let_through(z: Tensor, share: float) -> Tensor:
    """Return `z` as it is, through which that `share` of the gradient flows: none of it, a part, or a multiple."""
    still = z.detach()
    return still + share * (z - still) if share else still


def leak(u: Tensor, c: Tensor, max_cells: int, past: Memory) -> Tensor:
    """Return the `dependence` of private on shared codes: of whole vectors, or cell by cell on the grid of a map u.

    It is measured on the rows of past steps too; the gradient of a new row is as if there were none but the batch's.
    """
    u, c = paired_rows(u, c, max_cells)
    all_u, all_c = past(u, c)
    return let_through(dependence(all_u, all_c), len(all_u) / len(u))


def paired_rows(u: Tensor, c: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return private and shared codes as rows that belong together, `(N, E)` each.

    A row is a sample, or, where u is a map, one of its cells; of those at most so many are drawn.
    """
    grid = u.shape[2:]
    if grid:
        c = resize(c, grid) if c.ndim > 2 else c.view(*c.shape, *[1] * len(grid)).expand(-1, -1, *grid)
        u, c = (z.flatten(2).transpose(1, 2).flatten(0, 1) for z in (u, c))
        chosen = torch.randperm(len(u), device=u.device)[:most]
        u, c = u[chosen], c[chosen]
    return u, c.flatten(1)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Keep the module's weights out of the graph built inside and its statistics still; gradients pass through."""
    modes = [(part, part.training) for part in module.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    module.eval().requires_grad_(False)
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
