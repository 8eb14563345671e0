"""Rows of past steps beside those of a batch, so that a dependence is measured on more samples than are encoded."""

import torch
from torch import Tensor, nn


class Memory(nn.Module):
    """The last `size` rows of u and c, `(size, width_u)` and `(size, width_c)`, part of a training's state.

    References: Momentum Contrast for Unsupervised Visual Representation Learning, He et al., 2020,
    https://arxiv.org/abs/1911.05722 (Sec. 3.2, the queue).
    """

    def __init__(self, size: int, width_u: int, width_c: int):
        super().__init__()
        self.register_buffer("u", torch.zeros(size, width_u))
        self.register_buffer("c", torch.zeros(size, width_c))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def forward(self, u: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows `u` and `c` `(N, width)` with those of the past below; while training, remember them."""
        if not len(self.u):
            return u, c
        past = int(self.filled)
        all_u, all_c = torch.cat([u, self.u[:past]]), torch.cat([c, self.c[:past]])
        if self.training:
            kept = min(len(all_u), len(self.u))
            self.u[:kept], self.c[:kept] = all_u[:kept].detach(), all_c[:kept].detach()
            self.filled.fill_(kept)
        return all_u, all_c
