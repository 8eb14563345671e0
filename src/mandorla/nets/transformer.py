"""A transformer over the tokens of several latent components, each at a time of its own.

A vector component is one token; a map is cut into patches of `patch` cells a side, one token each. Every token carries
a learned position. The time of a component modulates its own tokens (adaLN-zero); tokens of all components attend to
each other, so what is known (t = 1) informs what is wanted (0 < t < 1), and what is unknown (t = 0) tells nothing. A
region of a map may be known while the rest travels: its tokens are at t = 1. Labels modulate all tokens.

Maps of registered images may be stacked: one token holds what all of them, or all private ones, have at a place,
modulated by all their times, so that more modalities cost next to nothing.

References: Scalable Diffusion Models with Transformers, Peebles and Xie, 2023, https://arxiv.org/abs/2212.09748
(adaLN-zero); One Transformer Fits All Distributions in Multi-Modal Diffusion, Bao et al., 2023,
https://arxiv.org/abs/2303.06555 (one time per modality).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Literal

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from mandorla.config import Settings
from mandorla.errors import MandorlaError
from mandorla.latents import SHARED, Components, Layout, Shape
from mandorla.nets.diffusion_network import DiffusionNetwork


class TransformerConfig(Settings):
    """A transformer over the tokens of all components."""

    kind: Literal["transformer"] = "transformer"
    width: int = Field(128, ge=8)
    """numbers per token"""
    depth: int = Field(4, ge=1)
    """blocks"""
    heads: int = Field(4, ge=1)
    """attention heads; they divide the width"""
    patch: int = Field(2, ge=1)
    """cells of a map, per side, that form one token; where maps are stacked, of the coarsest one"""
    stack: bool | Literal["private"] = False
    """maps of all components that cover the same place form one token: for registered images, where it is faster;
    private: those of private parts do, beside tokens of the shared part"""

    @model_validator(mode="after")
    def _heads_divide(self):
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} must divide width {self.width}")
        return self


class ComponentTransformer(DiffusionNetwork):
    """Map components and their times to one output per component, of the same shape."""

    common_times = True

    def __init__(self, config: TransformerConfig, layout: Layout, labels: Mapping[str, int] | None = None):
        super().__init__(layout, labels or {})
        self.width = width = config.width
        shapes = list(layout.shapes.values())
        self.groups = _groups(layout, config.stack)
        patches: dict[int, Shape] = {}
        for group in self.groups:
            patches |= zip(group, _patches([shapes[k][1:] for k in group], config.patch), strict=True)
        self.tokenizers = nn.ModuleList(Tokenizer(shape, width, patches[k]) for k, shape in enumerate(shapes))
        self.num_tokens = [self.tokenizers[group[0]].num_tokens for group in self.groups]
        self.embed_time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.component = nn.Parameter(0.02 * torch.randn(len(shapes), width))
        stacked = {k for group in self.groups if len(group) > 1 for k in group}
        self.mix = nn.ModuleList(nn.Linear(width, width) if k in stacked else nn.Identity() for k in range(len(shapes)))
        self.read_labels = nn.ModuleList(nn.Linear(size, width) for size in self.labels.values())
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
        cut = [t.cut(components[name]) for name, t in zip(self.layout.shapes, self.tokenizers, strict=True)]
        tokens = torch.cat([_total(cut[k] for k in group) for group in self.groups], 1)
        condition, shared_by = self._condition(times, held), [1] * tokens.shape[1] if held else self.num_tokens
        for name, read in zip(self.labels, self.read_labels, strict=True):
            if labels and name in labels:
                condition = condition + read_known(read, labels[name])[:, None]
        condition = F.silu(condition)
        for block in self.blocks:
            tokens = block(tokens, condition, shared_by)
        shift, scale = self.modulate(condition).float().chunk(2, -1)
        tokens = add_product(shift, F.layer_norm(tokens, tokens.shape[-1:]), 1 + scale, shared_by)
        parts = tokens.split(self.num_tokens, dim=1)
        of = {k: part for group, part in zip(self.groups, parts, strict=True) for k in group}
        return {name: self.tokenizers[k].join(of[k]).float() for k, name in enumerate(self.layout.shapes)}

    def _condition(self, times: Tensor, held: Components | None) -> Tensor:
        """Return what modulates the tokens: of each group of them, `(B, G, E)`, or of each one, `(B, L, E)`."""
        embedded = self.embed_time(time_features(times, self.width))
        told = [mix(embedded[:, k]) + self.component[k] for k, mix in enumerate(self.mix)]
        if not held:
            return torch.stack([_total(told[k] for k in group) for group in self.groups], 1)
        last = self.embed_time(time_features(torch.ones_like(times[:1, :1]), self.width))[0]
        of_tokens = []
        for k, (name, tokenizer) in enumerate(zip(self.layout.shapes, self.tokenizers, strict=True)):
            each = told[k][:, None].expand(-1, tokenizer.num_tokens, -1)
            if name in held:
                known = self.mix[k](last) + self.component[k]
                each = torch.where(tokenizer.tokens_of(held[name])[..., None], known, each)
            of_tokens.append(each)
        return torch.cat([_total(of_tokens[k] for k in group) for group in self.groups], 1)

    def whole_tokens(self, name: str, cells: Tensor) -> Tensor:
        """Return the cells of the map `name` that lie in tokens all of which is in `cells`, bool `(B, *grid)`."""
        tokenizer = self.tokenizers[list(self.layout.shapes).index(name)]
        return tokenizer.cells_of(tokenizer.tokens_of(cells))


def read_known(read: nn.Module, label: Tensor) -> Tensor:
    """Return what `read` makes of the rows of `label` `(B, size)`, zero for those that have a NaN; `(B, E)`."""
    known = ~label.isnan().any(1, keepdim=True)
    return read(label.nan_to_num()) * known


def _groups(layout: Layout, stack: bool | Literal["private"]) -> list[list[int]]:
    """Return which components share their tokens: maps of as many axes if they are stacked, otherwise none do."""
    groups: dict[tuple, list[int]] = {}
    for k, (name, shape) in enumerate(layout.shapes.items()):
        stacked = stack and len(shape) > 1 and not (stack == "private" and name == SHARED)
        groups.setdefault((len(shape),) if stacked else (0, k), []).append(k)
    return list(groups.values())


def _patches(grids: Sequence[Shape], patch: int) -> list[Shape]:
    """Return the cells per token of maps whose tokens cover the same places; raises MandorlaError if none do."""
    coarsest = [min(sizes) for sizes in zip(*grids, strict=True)]
    patches = [tuple(min(patch, m) * math.ceil(n / m) for n, m in zip(grid, coarsest, strict=True)) for grid in grids]
    if len({_count(grid, own) for grid, own in zip(grids, patches, strict=True)}) > 1:
        raise MandorlaError(
            f"diffusion.network.stack: maps of {', '.join('x'.join(map(str, grid)) for grid in grids)} cells cannot be"
            " cut alike: choose strides that divide each other, or leave stack out"
        )
    return patches


def _count(grid: Shape, patch: Shape) -> Shape:
    """Return how many tokens there are along each side."""
    return tuple(math.ceil(n / p) for n, p in zip(grid, patch, strict=True))


def _total(parts: Iterable[Tensor]) -> Tensor:
    return reduce(add, parts)


class Tokenizer(nn.Module):
    """Cut one component `(B, C, *grid)` into tokens `(B, L, E)`, and join outputs of the network to its shape.

    A token holds `patch` cells, along each side of the grid.
    """

    def __init__(self, shape: Shape, width: int, patch: Shape):
        super().__init__()
        self.shape, self.patch, self.cells = shape, patch, _count(shape[1:], patch)
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

    compiled = ("forward",)  # methods, where asked for

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.modulate = nn.Linear(width, 6 * width)
        self.attend = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.transform = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, tokens: Tensor, condition: Tensor, shared_by: Sequence[int]) -> Tensor:
        """Map `tokens` (B, L, E); `condition` is (B, G, E), each shared by so many tokens, one after another."""
        shift_a, scale_a, gate_a, shift_b, scale_b, gate_b = self.modulate(condition).float().chunk(6, -1)
        size = tokens.shape[-1:]
        h = add_product(shift_a, F.layer_norm(tokens, size), 1 + scale_a, shared_by)
        q, k, v = self.attend(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = attend(q, k, v).transpose(1, 2).flatten(2)
        tokens = add_product(tokens, self.merge(attended).float(), gate_a, shared_by)
        h = add_product(shift_b, F.layer_norm(tokens, size), 1 + scale_b, shared_by)
        return add_product(tokens, self.transform(h).float(), gate_b, shared_by)


def add_product(base: Tensor, x: Tensor, factor: Tensor, shared_by: Sequence[int]) -> Tensor:
    """Return base + x * factor `(B, L, E)`; a row of `base` or `factor` `(B, G, E)` is shared by so many tokens of `x`.

    Group by group: rows written out for every token take longer than the product itself. Groups of one length are an
    axis.
    """
    if len(shared_by) == x.shape[1]:
        return torch.addcmul(base, x, factor)
    if len(set(shared_by)) == 1:
        return torch.addcmul(*(z.unflatten(1, (len(shared_by), -1)) for z in (base, x, factor))).flatten(1, 2)
    rows = (z.split(shared_by if z.shape[1] == x.shape[1] else 1, 1) for z in (base, x, factor))
    return torch.cat([torch.addcmul(*parts) for parts in zip(*rows, strict=True)], 1)


_FUSED_FROM = 1024  # tokens from which on, on a CPU, the table of their products takes too much memory
_AT_ONCE = 2**19  # such products that stay in a core's cache from one step of attention to the next


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(E)) v `(B, heads, L, E)`, of three tensors of that shape.

    On a CPU torch's fused kernel (seen with 2.13) takes two to five times as long for gradients in bfloat16 as the
    products one by one, which take two to three times as long for all tables at once as for a few at a time.

    References: Attention Is All You Need, Vaswani et al., 2017, https://arxiv.org/abs/1706.03762 (Eq. 1).
    """
    length = q.shape[-2]
    if q.device.type != "cpu" or length >= _FUSED_FROM:
        return F.scaled_dot_product_attention(q, k, v)
    few = max(1, _AT_ONCE // length**2)
    if few >= q.shape[0] * q.shape[1]:
        return _attend(q, k, v)
    parts = (z.flatten(0, 1).split(few) for z in (q, k, v))
    return torch.cat([_attend(*part) for part in zip(*parts, strict=True)]).view(q.shape)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)  # torch's softmax in bfloat16 takes five times as long
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v) @ v


def time_features(times: Tensor, width: int) -> Tensor:
    """Return sines and cosines of `times` in [0, 1] at `width / 2` geometric frequencies, `(*times.shape, width)`."""
    frequencies = torch.exp(torch.linspace(0, math.log(1000), width // 2, device=times.device))
    angles = times[..., None] * frequencies
    features = torch.cat([angles.sin(), angles.cos()], -1)
    return F.pad(features, (0, width % 2))
