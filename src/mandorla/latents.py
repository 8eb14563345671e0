"""The latents: one shared part c, one private part u_m per modality. The two stages meet here and nowhere else.

A *component* is the shared part (named `shared`) or the private part of one modality (named like it). A component
is a vector `(C,)` or a map `(C, *grid)`; a `Layout` holds the components' shapes in order, the shared one first.

`Whitening` standardises every channel of every component over the whole training set,
z = (component - mean) / std, so that stage 2 starts its flow from N(0, I) on an equal footing everywhere.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

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
            column = (shape[0], *([1] * (len(shape) - 1)))
            mean[name], std[name] = mu.float().view(column), sigma.float().view(column)
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
