"""Regions of images, and the cells of latent maps in which they lie."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mandorla.latents import SHARED
from mandorla.nets.blocks import touched
from mandorla.vae.model import VAE


def fitting(region: Tensor, size: Sequence[int], count: int) -> Tensor | None:
    """Return a region `(*size)` or `(count, *size)` for each of `count` images; None if it is none of theirs."""
    if tuple(region.shape) not in (tuple(size), (count, *size)):
        return None
    return region.expand(count, *size)


def hide(x: Tensor, region: Tensor) -> Tensor:
    """Return images `(B, C, *size)` with the mean of what lies around a region `(*size)` or `(B, *size)` in its place.

    Images that the region does not fit stay as they are.
    """
    inside = fitting(region, x.shape[2:], len(x))
    if inside is None:
        return x
    around = ~inside[:, None]
    over = tuple(range(2, x.ndim))
    mean = (x * around).sum(over, keepdim=True) / around.sum(over, keepdim=True).clamp_min(1)
    return x.where(around, mean)


def cells_in(vae: VAE, region: Tensor, name: str, z: Tensor) -> Tensor | None:
    """Return which cells of a component's map `z` `(B, C, *grid)` a region touches, bool `(B, *grid)`.

    Of the shared part it is what the region touches in any modality. None where the region fits no image.
    """
    count, grid = len(z), tuple(z.shape[2:])
    found = []
    for modality, network in vae.networks.items():
        size = network.modality.size
        if name not in (SHARED, modality) or len(size) != len(grid):
            continue
        if (inside := fitting(region, size, count)) is not None:
            found.append(touched(network.fill_up(inside.float()), grid) > 0)
    return torch.stack(found).any(0) if found else None
