"""Distil the shared codes: each comes to say what the others' codes tell of a sample, and no more.

c_m <- argmin E |c_m(x_m) - T_m|^2,   T_m: the code of all modalities but m, as the training before left it.

The best c_m is the mean of T_m given x_m. What is private to m foretells nothing of the others, so it leaves c_m, which
agreement alone does not ask: there partners need only be nearest. One step of alternating conditional expectations.
What u and the decoders know of c is then out of date: they go on learning, with c held.

References: Estimating Optimal Transformations for Multiple Regression and Correlation, Breiman and Friedman, 1985,
https://doi.org/10.1080/01621459.1985.10478157 (Sec. 5); Cross Modal Distillation for Supervision Transfer, Gupta et
al., 2016, https://arxiv.org/abs/1507.00448 (Eq. 2).
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from mandorla.config import Settings
from mandorla.data.dataset import rows_of
from mandorla.errors import MandorlaError
from mandorla.parallel import gather
from mandorla.vae.model import VAE, pool
from mandorla.vae.objective import masks_on, others


class DistillationConfig(Settings):
    """Two trainings after that of stage 1: shared codes learn of each other, then all else learns anew."""

    steps: int = Field(3000, ge=1)
    """steps in which c of each modality learns what the others' codes say; networks must read c `apart`"""
    batch_size: int = Field(32, ge=2)
    """samples in each of these steps, which are cheap: nothing is decoded"""
    steps_after: int = Field(600, ge=1)
    """steps of the usual length in which private codes and decoders follow, c held"""


class Distillation(nn.Module):
    """Compute how far the shared codes of a stage 1 are from what others say; only what reads c can be trained."""

    def __init__(self, vae: VAE):
        super().__init__()
        self.vae = vae.requires_grad_(False)
        for part in vae.shared_alone():
            part.requires_grad_(True)

    def train(self, mode: bool = True) -> "Distillation":
        """Set the mode of what reads c; all else stays as in use."""
        super().train(False)
        for part in self.vae.shared_alone():
            part.train(mode)
        return self

    def forward(
        self, x: dict[str, Tensor], present: dict[str, Tensor], told: dict[str, Tensor], known: dict[str, Tensor]
    ) -> Tensor:
        """Return the mean squared distance of each c_m to what it is `told`, over modalities; 0 .. 4.

        `x[name]` `(B, C, *size)`; `told[name]` `(B, *shape)` is what the others say, where anything is `known`, bool
        `(B,)`, which holds for samples alone that have the modality.
        """
        codes = self.vae.encode_shared(x, present)
        terms = []
        for name, rows in known.items():
            apart = gather((rows_of(codes[name], rows) - rows_of(told[name], rows)).square().flatten(1).mean(1))
            terms.append(apart.sum() / max(1, len(apart)))
        return torch.stack(terms).mean()


def check_apart(vae: VAE) -> None:
    """Raise MandorlaError for networks in which u is read from the layers that c is read from."""
    for name, network in vae.networks.items():
        if not network.shared_alone():
            raise MandorlaError(
                f"vae.distillation: the network of {name!r} reads c and u by the same layers: set apart: true in"
                " vae.model.encoder_decoder, or leave vae.distillation out"
            )


@torch.no_grad()
def what_others_say(
    teacher: VAE, x: dict[str, Tensor], present: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return for each modality the code of all others that a sample has, `(B, *shape)`, and where there is any.

    It is known, bool `(B,)`, for samples that have the modality and another one.
    """
    codes = teacher.encode_shared(x, present)
    there = masks_on(present, next(iter(codes.values())).device)
    told = {name: pool({other: z for other, z in codes.items() if other != name}, there) for name in codes}
    return told, {name: rows & others(present, name) for name, rows in present.items()}
