"""A transformer over the tokens of several latent components, each at a time of its own.

A vector component is one token; a map is cut into patches of `patch` cells a side, one token each. Every token carries
a learned position. The time of a component modulates its own tokens (adaLN-zero); tokens of all components attend to
each other, so what is known (t = 1) informs what is wanted (0 < t < 1), and what is unknown (t = 0) tells nothing. A
region of a map may be known while the rest travels: its tokens are at t = 1. Labels modulate all tokens.

References: Scalable Diffusion Models with Transformers, Peebles and Xie, 2023, https://arxiv.org/abs/2212.09748
(adaLN-zero); One Transformer Fits All Distributions in Multi-Modal Diffusion, Bao et al., 2023,
https://arxiv.org/abs/2303.06555 (one time per modality).
"""

import math
from collections.abc import Mapping

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from mandorla.config import Settings
from mandorla.latents import Components, Layout, Shape


class TransformerConfig(Settings):
    """Size of the network of stage 2."""

    width: int = Field(128, ge=8)
    """numbers per token"""
    depth: int = Field(4, ge=1)
    """blocks"""
    heads: int = Field(4, ge=1)
    """attention heads; they divide the width"""
    patch: int = Field(2, ge=1)
    """cells of a map, per side, that form one token"""

    @model_validator(mode="after")
    def _heads_divide(self):
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} must divide width {self.width}")
        return self


class ComponentTransformer(nn.Module):
    """Map components and their times to one output per component, of the same shape."""

    def __init__(self, config: TransformerConfig, layout: Layout, labels: Mapping[str, int] | None = None):
        super().__init__()
        width = config.width
        self.layout, self.width = layout, width
        self.tokenizers = nn.ModuleList(Tokenizer(shape, width, config.patch) for shape in layout.shapes.values())
        self.register_buffer(
            "owner",
            torch.cat([torch.full((t.num_tokens,), k) for k, t in enumerate(self.tokenizers)]),
            persistent=False,
        )
        self.embed_time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.component = nn.Parameter(0.02 * torch.randn(len(self.tokenizers), width))
        self.label_names = list(labels or {})
        self.read_labels = nn.ModuleList(nn.Linear(size, width) for size in (labels or {}).values())
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.modulate = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(
        self,
        components: Components,
        times: Tensor,
        held: Components | None = None,
        labels: Components | None = None,
    ) -> Components:
        """Return one output per component of the layout; `times` is `(B, K)` in [0, 1], in the layout's order.

        Where nothing is `held`, times that all samples share may be `(1, K)`, which is faster.

        - `held[name]`, bool `(B, *grid)`, says which cells of a map are known; a token is, if all its cells are
        - `labels[name]`, `(B, size)`: what is known beside the components; NaN, or left out, where it is not
        """
        owner = self.owner
        if held:
            marks = [
                t.tokens_of(held[name]) if name in held else times.new_zeros(len(times), t.num_tokens, dtype=torch.bool)
                for name, t in zip(self.layout.shapes, self.tokenizers, strict=True)
            ]
            owner = owner + times.shape[1] * torch.cat(marks, 1)
            times = torch.cat([times, torch.ones_like(times)], 1)
        tokens = torch.cat(
            [t.cut(components[name]) for name, t in zip(self.layout.shapes, self.tokenizers, strict=True)], dim=1
        )
        component = self.component.repeat(times.shape[1] // len(self.component), 1)
        condition = self.embed_time(time_features(times, self.width)) + component
        for name, read in zip(self.label_names, self.read_labels, strict=True):
            if labels and name in labels:
                condition = condition + read_known(read, labels[name])[:, None]
        condition = F.silu(condition)
        for block in self.blocks:
            tokens = block(tokens, condition, owner)
        shift, scale = _of_tokens(self.modulate(condition), owner).chunk(2, -1)
        tokens = F.layer_norm(tokens, tokens.shape[-1:]) * (1 + scale) + shift
        parts = tokens.split([t.num_tokens for t in self.tokenizers], dim=1)
        named = zip(self.layout.shapes, self.tokenizers, parts, strict=True)
        return {name: tokenizer.join(part).float() for name, tokenizer, part in named}

    def whole_tokens(self, name: str, cells: Tensor) -> Tensor:
        """Return the cells of the map `name` that lie in tokens all of which is in `cells`, bool `(B, *grid)`."""
        tokenizer = self.tokenizers[list(self.layout.shapes).index(name)]
        return tokenizer.cells_of(tokenizer.tokens_of(cells))


def read_known(read: nn.Module, label: Tensor) -> Tensor:
    """Return what `read` makes of the rows of `label` `(B, size)`, zero for those that have a NaN; `(B, E)`."""
    known = ~label.isnan().any(1, keepdim=True)
    return read(label.nan_to_num()) * known


class Tokenizer(nn.Module):
    """Cut one component `(B, C, *grid)` into tokens `(B, L, E)`, and join outputs of the network to its shape."""

    def __init__(self, shape: Shape, width: int, patch: int):
        super().__init__()
        self.shape = shape
        self.patch = tuple(min(patch, n) for n in shape[1:])
        self.cells = tuple(math.ceil(n / p) for n, p in zip(shape[1:], self.patch, strict=True))
        self.num_tokens = math.prod(self.cells)
        axes = "dhw"[3 - len(self.cells) :]
        self.sides = {f"{axis}side": side for axis, side in zip(axes, self.patch, strict=True)}
        self.counts = dict(zip(axes, self.cells, strict=True))
        self.grid = f"b c {' '.join(f'({axis} {axis}side)' for axis in axes)}"
        self.tokens = f"b ({' '.join(axes)}) (c {' '.join(self.sides)})"
        values = shape[0] * math.prod(self.patch)
        self.read = nn.Linear(values, width)
        self.write = nn.Linear(width, values)
        self.position = nn.Parameter(0.02 * torch.randn(self.num_tokens, width))
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    def cut(self, z: Tensor) -> Tensor:
        """Return the tokens `(B, L, E)` of `z`; grids that the patch does not divide are padded with zeros."""
        far = zip(self.shape[:0:-1], self.cells[::-1], self.patch[::-1], strict=True)
        z = F.pad(z, [n for size, count, side in far for n in (0, count * side - size)])
        return self.read(rearrange(z, f"{self.grid} -> {self.tokens}", **self.sides)) + self.position

    def tokens_of(self, cells: Tensor) -> Tensor:
        """Return which tokens `(B, L)` have all their cells in `cells`, bool `(B, *grid)`."""
        far = zip(self.shape[:0:-1], self.cells[::-1], self.patch[::-1], strict=True)
        cells = F.pad(cells[:, None], [n for size, count, side in far for n in (0, count * side - size)], value=True)
        return rearrange(cells, f"{self.grid} -> {self.tokens}", **self.sides).all(-1)

    def cells_of(self, tokens: Tensor) -> Tensor:
        """Return the cells, bool `(B, *grid)`, of the tokens that are marked in `tokens`, bool `(B, L)`."""
        every = tokens[..., None].expand(-1, -1, math.prod(self.patch))
        cells = rearrange(every, f"{self.tokens} -> {self.grid}", **self.sides, **self.counts, c=1)
        return cells[(slice(None), 0, *(slice(size) for size in self.shape[1:]))]

    def join(self, tokens: Tensor) -> Tensor:
        """Return `(B, *shape)` from the network's tokens `(B, L, E)`."""
        z = rearrange(self.write(tokens), f"{self.tokens} -> {self.grid}", **self.sides, **self.counts)
        return z[(..., *(slice(size) for size in self.shape[1:]))]


class Block(nn.Module):
    """Attend and transform, each modulated by the time of the component that a token belongs to."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.modulate = nn.Linear(width, 6 * width)
        self.attend = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.transform = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, tokens: Tensor, condition: Tensor, owner: Tensor) -> Tensor:
        """Map `tokens` (B, L, E); `condition` is (B, K, E), `owner` (L,) or (B, L) which of it each token has."""
        shift_a, scale_a, gate_a, shift_b, scale_b, gate_b = _of_tokens(self.modulate(condition), owner).chunk(6, -1)
        size = tokens.shape[-1:]
        h = F.layer_norm(tokens, size) * (1 + scale_a) + shift_a
        q, k, v = self.attend(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = attend(q, k, v).transpose(1, 2).flatten(2)
        tokens = tokens + gate_a * self.merge(attended)
        h = F.layer_norm(tokens, size) * (1 + scale_b) + shift_b
        return tokens + gate_b * self.transform(h)


def _of_tokens(z: Tensor, owner: Tensor) -> Tensor:
    """Return for each token the row of `z` `(B, K, E)` that `owner` `(L,)` or `(B, L)` names, `(B, L, E)`."""
    return z[:, owner] if owner.ndim == 1 else z.take_along_dim(owner[..., None], 1)


_FUSED_FROM = 1024  # tokens from which on, on a CPU, the table of their products takes too much memory


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(E)) v `(B, heads, L, E)`, of three tensors of that shape.

    On a CPU torch's fused kernel (seen with 2.13) takes two to five times as long for gradients in bfloat16 as the
    products one by one.

    References: Attention Is All You Need, Vaswani et al., 2017, https://arxiv.org/abs/1706.03762 (Eq. 1).
    """
    if q.device.type != "cpu" or q.shape[-2] >= _FUSED_FROM:
        return F.scaled_dot_product_attention(q, k, v)
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v


def time_features(times: Tensor, width: int) -> Tensor:
    """Return sines and cosines of `times` in [0, 1] at `width / 2` geometric frequencies, `(*times.shape, width)`."""
    frequencies = torch.exp(torch.linspace(0, math.log(1000), width // 2, device=times.device))
    angles = times[..., None] * frequencies
    features = torch.cat([angles.sin(), angles.cos()], -1)
    return F.pad(features, (0, width % 2))
