"""A U-Net over images, each at a time of its own and given a vector: for what many pixels show together, as texture.

Strided convolutions down and transposed ones up, joined at each level by a sum; residual blocks at each level, whose
normalised values the time and the vector scale and shift. One, two or three spatial dimensions; sizes that the strides
do not divide are padded at their far ends and cropped again.

References: U-Net, Ronneberger et al., 2015, https://arxiv.org/abs/1505.04597 (Fig. 1); Diffusion Models Beat GANs,
Dhariwal and Nichol, 2021, https://arxiv.org/abs/2105.05233 (Sec. 3: adaptive group normalisation).
"""

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from mandorla.config import Settings
from mandorla.nets.blocks import conv, num_groups, transposed_conv
from mandorla.nets.transformer import time_features


class UNetConfig(Settings):
    """Size of a U-Net."""

    patch: int = Field(1, ge=1)
    """pixels, per side, that the first layer joins and the last one divides: of large images more than one"""
    channels: tuple[PositiveInt, ...] = Field((32, 64, 96), min_length=1)
    """width of each level; each level after the first halves the grid"""
    num_blocks: int = Field(1, ge=1)
    """residual blocks per level, on the way down and on the way up"""
    embedding: int = Field(128, ge=8)
    """numbers that a time and a vector become"""


class UNet(nn.Module):
    """Map `(B, channels_in, *size)`, times and vectors to `(B, channels_out, *size)`, zero before any training."""

    def __init__(self, config: UNetConfig, dims: int, channels_in: int, channels_out: int, vector: int):
        super().__init__()
        widths, self.embedding = config.channels, config.embedding
        self.stride = config.patch * 2 ** (len(widths) - 1)
        self.embed = nn.Sequential(
            nn.Linear(self.embedding + vector, self.embedding),
            nn.SiLU(),
            nn.Linear(self.embedding, self.embedding),
            nn.SiLU(),
        )

        def blocks() -> nn.ModuleList:
            return nn.ModuleList(
                nn.ModuleList(ModulatedResidual(dims, width, self.embedding) for _ in range(config.num_blocks))
                for width in widths
            )

        steps = list(zip(widths, widths[1:], strict=False))
        own, around = config.patch, config.patch + 2  # a patch, and one with its surroundings
        self.read = conv(dims, channels_in, widths[0], around, stride=own, padding=1)
        self.down, self.up = blocks(), blocks()
        self.shrink = nn.ModuleList(conv(dims, fine, coarse, 4, stride=2, padding=1) for fine, coarse in steps)
        self.grow = nn.ModuleList(transposed_conv(dims, coarse, fine, 4, stride=2, padding=1) for fine, coarse in steps)
        self.write = transposed_conv(dims, widths[0], channels_out, around, stride=own, padding=1)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    def forward(self, x: Tensor, times: Tensor, vector: Tensor) -> Tensor:
        """Return the output for `x` at `times` `(B,)` in [0, 1], given `vector` `(B, vector)`."""
        given = self.embed(torch.cat([time_features(times, self.embedding), vector], 1))
        size = x.shape[2:]
        pad = [n for cells in size[::-1] for n in (0, -cells % self.stride)]
        h, levels = self.read(F.pad(x, pad)), []
        for level, blocks in enumerate(self.down):
            for block in blocks:
                h = block(h, given)
            if level < len(self.shrink):
                levels.append(h)
                h = self.shrink[level](h)
        for level in reversed(range(len(self.up))):
            if level < len(self.grow):
                h = self.grow[level](h) + levels[level]
            for block in self.up[level]:
                h = block(h, given)
        return self.write(h)[(..., *(slice(cells) for cells in size))].float()


class ModulatedResidual(nn.Module):
    """Add a two-layer convolution of constant width, x + conv(silu(conv(silu(scale norm(x) + shift))))."""

    def __init__(self, dims: int, channels: int, embedding: int):
        super().__init__()
        self.norm = nn.GroupNorm(num_groups(channels), channels, affine=False)
        self.modulate = nn.Linear(embedding, 2 * channels)
        self.first, self.second = (conv(dims, channels, channels, 3, padding=1) for _ in range(2))
        for layer in (self.modulate, self.second):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        """Map `x` `(B, C, *grid)` to the same shape; scale and shift follow from `given` `(B, E)`."""
        scale, shift = self.modulate(given).unflatten(1, (2, -1, *[1] * (x.ndim - 2))).unbind(1)
        h = F.silu(self.norm(x) * (1 + scale) + shift)
        return x + self.second(F.silu(self.first(h)))
