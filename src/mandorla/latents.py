"""The latents: one shared part c, one private part u_m per modality. The two stages meet here.

A *component* is the shared part (named `shared`) or the private part of one modality (named like it). A component
is a vector `(C,)` or a map `(C, *grid)`; a `Layout` holds the components' shapes in order, the shared one first.

`Whitening` standardises every channel of every component over the whole training set,
z = (component - mean) / std, so that stage 2 starts its flow from N(0, I) on an equal footing everywhere.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

SHARED = "shared"
Shape = tuple[int, ...]
Components = dict[str, Tensor]


@dataclass(frozen=True)
class Latents:
    """Hold the `shared` part `(B, *shape)` and the `private` part of each modality `(B, *shape_m)` of B samples.

    `shared` is None where only private parts are modelled. Private parts that are `residual` are the noise from which
    stage 2 makes them, given the shared part: what of them the shared part does not explain.

    `detail[name]` `(B, C, *size)` is the noise of which a refiner draws what a modality's image shows beyond its codes:
    private as well, and no component, since stage 2 does not model it. Where it is left out, `decode` draws it.

    `present[name]` bool `(B,)` says which samples have a modality; left out, all do. What stands in the private part of
    one that is missing means nothing.
    """

    shared: Tensor | None
    private: dict[str, Tensor]
    residual: bool = False
    detail: dict[str, Tensor] = field(default_factory=dict)
    present: dict[str, Tensor] = field(default_factory=dict)

    @property
    def components(self) -> Components:
        """Return all components by name, the shared one first."""
        return ({} if self.shared is None else {SHARED: self.shared}) | self.private

    @classmethod
    def of(cls, components: Mapping[str, Tensor]) -> "Latents":
        """Build latents from components by name; the inverse of `components`."""
        return cls(components.get(SHARED), {name: z for name, z in components.items() if name != SHARED})

    def __len__(self) -> int:
        return len(next(iter(self.components.values())))

    def __getitem__(self, index) -> "Latents":
        """Select samples by slice, mask or list of indices."""
        return self.map(lambda z: z[index])

    def to(self, device: torch.device | str) -> "Latents":
        """Move every component to `device`."""
        return self.map(lambda z: z.to(device))

    def map(self, change: Callable[[Tensor], Tensor]) -> "Latents":
        """Apply `change` to every component, to the detail, and to what says which samples have a modality."""
        changed = self.having({name: change(z) for name, z in self.components.items()})
        detail, present = ({name: change(z) for name, z in part.items()} for part in (self.detail, self.present))
        return replace(changed, detail=detail, present=present)

    def having(self, components: Mapping[str, Tensor]) -> "Latents":
        """Return latents with these components, all else as it is here."""
        return replace(self, shared=components.get(SHARED), private=Latents.of(components).private)

    def repeat(self, num: int) -> "Latents":
        """Return each sample `num` times, one after another."""
        return self.map(lambda z: z.repeat_interleave(num, 0))

    @classmethod
    def cat(cls, parts: Sequence["Latents"]) -> "Latents":
        """Return the samples of all `parts`, which have the same components and detail, one after another."""
        components, detail, present = (
            {name: torch.cat([one[name] for one in each]) for name in each[0]}
            for each in zip(*((part.components, part.detail, part.present) for part in parts), strict=True)
        )
        return replace(parts[0].having(components), detail=detail, present=present)

    def towards(self, other: "Latents", shared: float, private: float) -> "Latents":
        """Return latents between these and `other`, of the same modalities; the weights are those of `other`."""
        c = self.shared if not shared else to_sphere(torch.lerp(self.shared, other.shared, shared))
        between = noise_between if self.residual else torch.lerp
        mixed = {name: between(z, other.private[name], private) for name, z in self.private.items()}
        detail = {name: noise_between(z, other.detail[name], private) for name, z in self.detail.items()}
        return replace(self, shared=c, private=mixed, detail=detail)


@dataclass(frozen=True)
class Encoded:
    """Hold B encoded samples: posterior means in `latents`, by modality standard deviations and presence `(B,)`.

    Where a modality is missing its mean and standard deviation are zero.
    """

    latents: Latents
    std: dict[str, Tensor]
    present: dict[str, Tensor]

    def draw(self, noise: Components | None = None) -> Components:
        """Draw all components: c as it is, u from its posterior, by standard normal `noise`, if it is given."""
        means = self.latents.private
        noise = noise or {name: torch.randn_like(mean) for name, mean in means.items()}
        return {SHARED: self.latents.shared} | {name: z + self.std[name] * noise[name] for name, z in means.items()}

    @property
    def given(self) -> dict[str, Tensor]:
        """Return which components exist, bool `(B,)`: the shared one where any modality is present."""
        return {SHARED: torch.stack(list(self.present.values())).any(0)} | self.present


@dataclass(frozen=True)
class Layout:
    """Hold the shape of each component by name, without the batch dimension."""

    shapes: dict[str, Shape]

    @property
    def modalities(self) -> tuple[str, ...]:
        """Return the names of the private components."""
        return tuple(name for name in self.shapes if name != SHARED)

    def join(self, components: Mapping[str, Tensor]) -> Tensor:
        """Concatenate all components of the layout to one vector per sample, `(B, sum of sizes)`."""
        return torch.cat([components[name].flatten(1) for name in self.shapes], dim=1)

    def split(self, joined: Tensor) -> Components:
        """Undo `join`."""
        sizes = [torch.Size(shape).numel() for shape in self.shapes.values()]
        parts = joined.split(sizes, dim=1)
        return {name: part.unflatten(1, shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}


@dataclass(frozen=True)
class Whitening:
    """Hold mean and standard deviation of each channel of each component, shape `(C, 1, ...)`."""

    mean: Components
    std: Components

    @classmethod
    def fit(cls, layout: Layout, batches: Iterable[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]) -> "Whitening":
        """Fit the statistics over all batches of `(components, present)`; rows that are not present do not count.

        `present[name]` is bool `(B,)`. A channel that never varies gets a standard deviation of one, a component
        that no sample has a mean of zero as well.
        """
        total: dict[str, list[Tensor]] = {}
        for components, present in batches:
            for name in layout.shapes:
                rows = (
                    components[name][present[name]].double().flatten(2)
                    if len(layout.shapes[name]) > 1
                    else (components[name][present[name]].double()[..., None])
                )
                count = torch.tensor(float(rows.shape[0] * rows.shape[2]), dtype=torch.float64)
                new = [count, rows.sum((0, 2)), rows.square().sum((0, 2))]
                total[name] = [a + b for a, b in zip(total.get(name, [torch.zeros(())] * 3), new, strict=True)]
        mean, std = {}, {}
        for name, shape in layout.shapes.items():
            count, first, second = total[name]
            count = count.clamp_min(1)
            mu = first / count
            sigma = (second / count - mu.square()).clamp_min(0).sqrt()
            sigma = torch.where(sigma > 1e-6, sigma, 1.0)
            per_channel = (shape[0], *[1] * (len(shape) - 1))
            mean[name], std[name] = mu.float().view(per_channel), sigma.float().view(per_channel)
        return cls(mean, std)

    def whiten(self, components: Mapping[str, Tensor]) -> Components:
        """Standardise every component given; the order of names is kept."""
        return {
            name: (z - self.mean[name].to(z.device)) / self.std[name].to(z.device) for name, z in components.items()
        }

    def colour(self, components: Mapping[str, Tensor]) -> Components:
        """Undo `whiten`."""
        return {name: z * self.std[name].to(z.device) + self.mean[name].to(z.device) for name, z in components.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return the statistics as named tensors, to be saved with the weights."""
        return {f"{kind}.{name}": z for kind in ("mean", "std") for name, z in getattr(self, kind).items()}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> "Whitening":
        """Undo `tensors`."""
        parts: dict[str, Components] = {"mean": {}, "std": {}}
        for key, z in tensors.items():
            kind, name = key.split(".", 1)
            parts[kind][name] = z
        return cls(**parts)


def to_sphere(c: Tensor, held: Tensor | None = None) -> Tensor:
    """Scale each code `(B, ...)` to unit mean square over all its values; cells of a map may be faint or strong.

    Cells that are `held`, bool `(B, *grid)`, stay as they are, and only the others are scaled.
    """
    size = math.prod(c.shape[1:])
    if held is None:
        return F.normalize(c, dim=tuple(range(1, c.ndim))) * math.sqrt(size)
    kept = c * held[:, None]
    left = (size - kept.flatten(1).square().sum(1)).clamp_min(0).sqrt()
    return kept + F.normalize(c - kept, dim=tuple(range(1, c.ndim))) * column(left, c)


def noise_between(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Return noise between `a` and `b` `(B, ...)`, as large as noise is: a mean of independent noise is smaller."""
    mixed = torch.lerp(a, b, weight)
    sizes = [column(z.flatten(1).norm(dim=1), z) for z in (a, b, mixed)]
    return mixed * torch.lerp(sizes[0], sizes[1], weight) / sizes[2].clamp_min(1e-12)


def column(rows: Tensor, like: Tensor) -> Tensor:
    """Return one number for each sample, `(B,)`, as `(B, 1, ...)`: it goes with all values of `like` `(B, ...)`."""
    return rows.view(-1, *[1] * (like.ndim - 1))
