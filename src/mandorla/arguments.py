"""What users hand to a model: checked, and as tensors on its device, or an error that says what to give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mandorla.data.dataset import Modality
from mandorla.errors import MandorlaError, did_you_mean
from mandorla.latents import Components, Latents, Layout

Data = Mapping[str, Tensor | np.ndarray]


@dataclass(frozen=True)
class Arguments:
    """Check what is given to a model of these `modalities`, whose latents have this `layout`, on this `device`."""

    modalities: tuple[Modality, ...]
    layout: Layout
    device: torch.device

    def names(self, names: Sequence[str]) -> list[str]:
        """Return the names of modalities as a list. Raises MandorlaError for one that the model does not have."""
        names, known = self.listed(names), self.layout.modalities
        for name in names:
            if name not in known:
                hint = did_you_mean(str(name), known)
                raise MandorlaError(f"unknown modality {name!r}{hint}; this model has {', '.join(known)}")
        return names

    def listed(self, names: Sequence[str]) -> list[str]:
        """Return names as a list, a single one too. Raises MandorlaError if they are no names."""
        if not isinstance(names, Sequence):
            such = list(self.layout.modalities[:1])
            raise MandorlaError(f"expected names of modalities, such as {such}, not a {type_name(names)}")
        return [names] if isinstance(names, str) else list(names)

    def data(self, x: Data, present: Mapping[str, Tensor] | None) -> tuple[Components, Components]:
        """Return `x[name]` `(B, C, *size)` in [0, 1] as float32 and `present[name]` `(B,)` as bool, on the device.

        Where `present` is left out, all samples have all that is given. Raises MandorlaError for shapes or values that
        do not fit, and for a sample that has nothing.
        """
        if not isinstance(x, Mapping) or not x:
            raise MandorlaError("no modality is given: data are a mapping from names of modalities to arrays")
        if present is not None and not isinstance(present, Mapping):
            raise MandorlaError(f"present is a mapping from names of modalities to masks, not a {type_name(present)}")
        shapes = {m.name: m.shape for m in self.modalities}
        self.names([*x, *(present or ())])
        tensors = {name: _to_floats(repr(name), value, self.device) for name, value in x.items()}
        for name, value in tensors.items():
            if value.shape[1:] != shapes[name]:
                raise MandorlaError(
                    f"{name!r} has shape {tuple(value.shape)}, not (B, {', '.join(map(str, shapes[name]))})"
                )
        counts = {len(value) for value in tensors.values()}
        if len(counts) > 1:
            raise MandorlaError("modalities of different length: sample i must be at index i in each")
        if 0 in counts:
            raise MandorlaError("no sample is given: give at least one")
        (count,) = counts
        present = present or {name: np.ones(count, bool) for name in tensors}
        masks = {name: torch.as_tensor(present.get(name, ()), dtype=torch.bool, device=self.device) for name in tensors}
        for name, value in tensors.items():
            if masks[name].shape != (count,):
                raise MandorlaError(f"present must say for each of the {count} samples whether it has {name!r}")
            here = value[masks[name]]
            if not torch.isfinite(here).all():
                raise MandorlaError(f"{name!r} has NaN or infinite values: remove or fill them")
            if here.numel() and not (here.min() >= 0 and here.max() <= 1):
                raise MandorlaError(
                    f"{name!r} has values from {here.min():g} to {here.max():g}, not in [0, 1]: rescale"
                )
        if not torch.stack(list(masks.values())).any(0).all():
            raise MandorlaError("a sample without any modality cannot be encoded: leave it out")
        return tensors, masks

    def region(self, region: Tensor | np.ndarray) -> Tensor:
        """Return a region as a bool tensor on the device. Raises MandorlaError for what is none."""
        if isinstance(region, Mapping):
            raise MandorlaError("a region is one array, the same for all modalities, not a mapping: give the array")
        if not isinstance(region, Tensor | np.ndarray) or not (region == region).all():  # noqa: PLR0124, of NaN
            raise MandorlaError("a region is an array that is true, or not 0, inside: it has no NaN")
        return torch.as_tensor(region, device=self.device).bool()

    def translation(
        self,
        given: Sequence[str],
        wanted: Sequence[str],
        num_samples: int,
        labels: Mapping[str, object] | None,
        steps: int | None,
    ) -> list[str]:
        """Return what is `wanted` of a translation as a list.

        Raises MandorlaError for modalities that the model does not have or that are given too, and if labels or steps
        say how to draw where nothing is drawn.
        """
        check_whole("num_samples", num_samples, 0)
        given, wanted = self.names(given), self.names(wanted)
        if not wanted:
            raise MandorlaError("nothing to draw: ask for at least one modality")
        if both := sorted(set(wanted) & set(given)):
            raise MandorlaError(f"modality {both[0]!r} is both given and wanted: leave it out of one")
        asked = [name for name, value in (("labels", labels or None), ("steps", steps)) if value is not None]
        if num_samples == 0 and asked:
            raise MandorlaError(f"{asked[0]} say what is drawn, with num_samples 0 nothing is: leave one of them out")
        return wanted

    def latents(self, source: Latents) -> Latents:
        """Return latents, each part `(B, *shape)` as in the layout, as float32 on the device.

        Raises MandorlaError for shapes or values that do not fit.
        """
        self.names(list(source.private))
        components = {name: _to_floats(f"latent {name!r}", z, self.device) for name, z in source.components.items()}
        count = max(map(len, components.values()), default=0)
        if not count:
            raise MandorlaError("no sample is given: give at least one")
        for name, z in components.items():
            if z.shape != (shape := (count, *self.layout.shapes[name])):
                raise MandorlaError(f"latent {name!r} has shape {tuple(z.shape)}, not {shape}")
            if not torch.isfinite(z).all():
                raise MandorlaError(f"latent {name!r} has NaN or infinite values: remove them")
        sizes = {m.name: m.shape for m in self.modalities}
        for name, z in source.detail.items():
            if z.shape != (count, *sizes[self.names(name)[0]]):
                raise MandorlaError(f"detail of {name!r} has shape {tuple(z.shape)}, not {(count, *sizes[name])}")
        return source.having(components).to(self.device)


def check_whole(name: str, value: int, least: int) -> None:
    """Raise MandorlaError unless `value` is a whole number of at least `least`."""
    if not isinstance(value, int | np.integer) or value < least:
        raise MandorlaError(f"{name} must be a whole number of at least {least}, not {value!r}")


def check_part(part: str) -> None:
    """Raise MandorlaError unless `part` is one of the parts of latents."""
    if part not in ("both", "shared", "private"):
        raise MandorlaError(f"part is both, shared or private, not {part!r}")


def names_in(data: Mapping) -> list[str]:
    """Return the names in a mapping of data. Raises MandorlaError if it is none."""
    if not isinstance(data, Mapping):
        raise MandorlaError(f"data are a mapping from names of modalities to arrays, not a {type_name(data)}")
    return list(data)


def type_name(value: object) -> str:
    """Return what kind of thing `value` is, for an error."""
    return type(value).__name__


def _to_floats(what: str, value: Tensor | np.ndarray, device: torch.device) -> Tensor:
    try:
        value = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value, np.float32))
        return value.to(device, torch.float32)
    except (TypeError, ValueError) as error:
        raise MandorlaError(f"{what} is no array of numbers ({error})") from error
