"""What the sources that read files share: where they look, how they hold images, how they divide them.

Images are decoded once and stay as they were stored (a byte per pixel for most), in memory or memory-mapped from a
cache; a batch is cut out and brought to float32 in [0, 1] when asked for, as `mandorla.data.intensity` says. Nothing
here makes floats of a whole array, so that a set may be larger than memory.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import combinations
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch.nn.functional import interpolate

from mandorla.data.augment import AugmentConfig
from mandorla.data.dataset import Batch, Modality, Splits, row_chunks
from mandorla.data.duplicates import Marks, check_duplicates, sketch
from mandorla.data.intensity import AsStored, Fitted, IntensityConfig, fit
from mandorla.data.labels import Label, shrink_mask, to_label
from mandorla.data.root import RootedConfig
from mandorla.data.splits import PARTS, split
from mandorla.errors import MandorlaError, MandorlaWarning


class StoredConfig(RootedConfig):
    """Say to what size images are brought, and how groups are divided."""

    size: tuple[PositiveInt, ...] | None = None
    """Pixels per axis that images are averaged down to; null keeps their own."""
    val_share: float = Field(0.15, gt=0, lt=0.5)
    """Share of the groups (patients) for validation."""
    test_share: float = Field(0.15, gt=0, lt=0.5)
    """Share of the groups (patients) for testing."""
    exclude: list[Annotated[str, Field(strict=False, coerce_numbers_to_str=True)]] = []
    """Groups (patients) that are left out of all three parts; where the others are does not change."""
    stratify: str | None = None
    """Label whose classes get their share in every part; a group's class is its commonest."""
    numbers: list[str] = []
    """Labels that are numbers though all that is known of them is whole, such as an age; else they are classes."""
    duplicates: Literal["error", "keep"] = "error"
    """What to do where two parts hold the same image: stop, or keep both."""
    intensity: IntensityConfig = AsStored()
    """How values become [0, 1]."""
    intensity_of: dict[str, IntensityConfig] = {}
    """The same for single modalities."""
    augment: AugmentConfig = AugmentConfig()
    """How training images are changed at random: those of stage 1, and copies of them (`vae.copies`)."""
    source: str = ""
    """Where the files can be had, quoted when one is missing."""


@dataclass
class StoredDataset:
    """Answer batches from images in memory; one of three parts that share the images.

    - `x[name]`: `(N, C, *size)` as stored; `present[name]`: bool `(N,)`
    - `intensity[name]`: how they become [0, 1]
    - `labels[name]`: `(N, ...)` for all rows of the images
    - `ids`, `groups`: a name and a group for each sample of this part
    - `rows`: where in the images the samples of this part lie

    Factors: `group` (B,), such as the patient, and the labels.
    """

    x: dict[str, np.ndarray]
    present: dict[str, np.ndarray]
    intensity: Mapping[str, Fitted]
    labels: dict[str, np.ndarray]
    ids: list[str]
    groups: np.ndarray
    rows: np.ndarray

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Return the modalities, read off the images."""
        return tuple(Modality(name, images.shape[1], images.shape[2:]) for name, images in self.x.items())

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Return the samples at `indices`: each modality float32 `(B, C, *size)` in [0, 1]."""
        indices = np.asarray(indices, dtype=int)
        rows, groups = self.rows[indices], self.groups[indices]
        x = {}
        for name, images in self.x.items():
            unit = self.intensity[name].apply(images[rows], groups)
            unit[~self.present[name][rows]] = 0
            x[name] = torch.from_numpy(unit)
        present = {name: torch.from_numpy(mask[rows]) for name, mask in self.present.items()}
        factors = {"group": groups} | {name: values[rows] for name, values in self.labels.items()}
        return Batch(x, present, factors, [self.ids[index] for index in indices])


@dataclass(frozen=True)
class Rows:
    """Hold N samples, row by row, before they are divided.

    - `x[name]`: `(N, C, *size)`, of any number type; `present[name]`: bool `(N,)`
    - `ids`, `groups`: a name and a group, such as the patient, for each
    - `labels[name]`: N values, as `mandorla.data.labels` says
    - `parts`: train, val or test for each, where the data bring their own division
    - `columns[name]`: the names of a modality's channels, none but in tables
    - `marks[name]`: of images that were looked at before: of their size, and without NaN
    """

    x: dict[str, np.ndarray]
    present: dict[str, np.ndarray]
    ids: Sequence[str]
    groups: Sequence[str] | np.ndarray
    labels: Mapping[str, np.ndarray | Sequence[str | float | None]] = field(default_factory=dict)
    parts: Sequence[str | None] | None = None
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    marks: Mapping[str, Marks] | None = None


def divide(samples: Rows, config: StoredConfig, seed: int, source: str) -> Splits:
    """Return `samples` as train, val and test, divided by group.

    Images and masks are averaged down to `config.size`; what stands where a modality is missing is never looked at.
    Labels go to the factors; a mask called `..._mask` also gives `..._present`, whether it marks anything. `source`
    names the data in errors.

    Raises `MandorlaError` for values that are NaN or infinite or do not fit `config.intensity`, a division that leaks,
    the same image in two parts, names in the settings that the data do not have, and where no training sample has two
    modalities. Warns of two that none has both of, and of one that is the same in all.
    """
    ids, groups = np.asarray(samples.ids).astype(str), np.asarray(samples.groups).astype(str)
    for name in config.intensity_of:
        if name not in samples.x:
            raise MandorlaError(f"data.intensity_of: no modality {name!r} in the data, only {', '.join(samples.x)}")
    known = _labels(samples.labels, {images.shape[2:] for images in samples.x.values()}, config)
    strata = known[config.stratify].values if config.stratify else None
    shares = (config.val_share, config.test_share)
    rows = split(groups, *shares, seed, source, strata, config.exclude, samples.parts, ids.tolist())
    _check_together({name: there[rows["train"]] for name, there in samples.present.items()}, source)
    used = np.isin(np.arange(len(ids)), np.concatenate([*rows.values()]))
    present = {name: there & used for name, there in samples.present.items()}
    stored, marks, intensity = {}, {}, {}
    for name, images in samples.x.items():
        place = f"{source}, modality {name}"
        if samples.marks is None:
            _check_numbers(images, present[name], ids, place)
        stored[name] = images = shrink(images, config.size, place)
        marks[name] = samples.marks[name] if samples.marks else Marks.of(images, present[name])
        settings = config.intensity_of.get(name, config.intensity)
        fitted = fit(settings, images, present[name], rows["train"], groups, place)
        intensity[name] = replace(fitted, columns=samples.columns.get(name, ()))
        own = marks[name].hashes[rows["train"][present[name][rows["train"]]]]
        if len(own) > 1 and (own == own[0]).all():
            text = f"{place}: all training samples are the same; nothing can be learnt of it"
            warnings.warn(text, MandorlaWarning, stacklevel=2)
    if config.duplicates == "error":
        sketches = {name: sketch(m.cells) for name, m in marks.items()}
        check_duplicates({name: m.digests() for name, m in marks.items()}, sketches, rows, ids, source)
    values = {name: label.values for name, label in known.items()}
    datasets = {
        part: StoredDataset(stored, present, intensity, values, ids[r].tolist(), groups[r], r)
        for part, r in rows.items()
    }
    classes = {name: label.classes for name, label in known.items() if label.classes}
    return Splits(**datasets, intensity=intensity, classes=classes, contents=_contents(stored, marks, ids, rows))


def with_intensity(splits: Splits, intensity: Mapping[str, Fitted]) -> Splits:
    """Return `splits` whose values become [0, 1] as `intensity` says, which was read off them at another time."""
    parts = {
        name: replace(part, intensity=intensity) if isinstance(part, StoredDataset) else part
        for name, part in splits.parts.items()
    }
    return replace(splits, **parts, intensity=intensity)


def _labels(given: Mapping, spaces: set[tuple[int, ...]], config: StoredConfig) -> dict[str, Label]:
    """Return the labels, masks of the size of the images; `spaces` are the sizes that images have."""
    labels = {}
    for name in config.numbers:
        if name not in given:
            raise MandorlaError(f"data.numbers: no label {name!r} in the data, only {', '.join(given) or 'none'}")
    for name, values in given.items():
        if name == "group":
            raise MandorlaError("data.labels: the name 'group' is taken by the subject of a sample; choose another")
        label = to_label(values, f"data.labels.{name}", name in config.numbers)
        if config.size and label.values.shape[1:] in spaces - {()}:
            label = replace(label, values=shrink_mask(label.values, config.size))
        labels[name] = label
        if name.endswith("_mask"):
            marked = label.values.reshape(len(label.values), -1).any(axis=1)
            labels.setdefault(f"{name.removesuffix('_mask')}_present", to_label(marked, name))
    if config.stratify and not (config.stratify in labels and labels[config.stratify].classes):
        raise MandorlaError(
            f"data.stratify: {config.stratify!r} is no label with classes; the data have "
            f"{', '.join(name for name, label in labels.items() if label.classes) or 'none'}"
        )
    return labels


def sort_pairs(present: Mapping[str, np.ndarray]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the pairs of modalities that some sample has both of, and those that none has.

    `present[modality]`, bool `(N,)`, says which samples have it.
    """
    pairs = list(combinations(present, 2))
    together = [(one, other) for one, other in pairs if (present[one] & present[other]).any()]
    return together, [pair for pair in pairs if pair not in together]


def check_present(present: Mapping[str, np.ndarray], source: str) -> None:
    """Raise `MandorlaError`, which begins with `source`, for a sample without any modality."""
    if len(alone := np.flatnonzero(~np.any(list(present.values()), axis=0))):
        raise MandorlaError(f"{source}: sample {alone[0]} has no modality: leave it out ({len(alone)} such sample(s))")


def _check_together(present: Mapping[str, np.ndarray], source: str) -> None:
    """Raise `MandorlaError` if no training sample has two modalities; warn of two that none has both of."""
    together, apart = sort_pairs(present)
    if not together:
        raise MandorlaError(
            f"{source}: no training sample has two modalities, so nothing says what they share; mend what pairs them, "
            "such as data.key"
        )
    if apart:
        text = ", ".join(map(" and ".join, apart))
        warnings.warn(f"{source}: no training sample has both {text}", MandorlaWarning, stacklevel=3)


def _check_numbers(images: np.ndarray, present: np.ndarray, ids: np.ndarray, place: str) -> None:
    if images.dtype.kind not in "iuf":
        raise MandorlaError(f"{place}: values of type {images.dtype} are no image; convert them to integers or floats")
    for row in np.flatnonzero(present) if images.dtype.kind == "f" else ():
        if not np.isfinite(images[row]).all():
            raise MandorlaError(f"{place}: NaN or infinite values in sample {str(ids[row])!r}; remove or fill them")


def _contents(
    stored: Mapping[str, np.ndarray], marks: Mapping[str, Marks], ids: np.ndarray, rows: Mapping[str, np.ndarray]
) -> str:
    """Return a hash of names, division, order and images."""
    digest = sha256(repr([(name, images.dtype.str, images.shape[1:]) for name, images in stored.items()]).encode())
    for part in PARTS:
        digest.update(repr((part, ids[rows[part]].tolist())).encode())
        for name in stored:
            digest.update(marks[name].hashes[rows[part]].tobytes())
    return digest.hexdigest()


def shrink(images: np.ndarray, size: tuple[int, ...] | None, source: str) -> np.ndarray:
    """Return `images` `(N, C, *size)` averaged over areas down to `size`, in the same type; themselves if they are so.

    Raises `MandorlaError`, which names `source`, if an image would have to grow or has another number of axes.
    """
    if size is None or size == images.shape[2:]:
        return images
    axes = images.ndim - 2
    if len(size) != axes or any(wanted > own for wanted, own in zip(size, images.shape[2:], strict=True)):
        remedy = f"data.size needs {axes} numbers here" if axes else "vectors have none, leave data.size out"
        remedy = "lower data.size" if len(size) == axes else remedy
        raise MandorlaError(
            f"{source}: images of {list(images.shape[2:])} pixels cannot be averaged down to {list(size)}; {remedy}"
        )
    small = np.empty((*images.shape[:2], *size), dtype=images.dtype)
    for rows in row_chunks(images):
        chunk = torch.from_numpy(images[rows].astype(np.result_type(images.dtype, np.float32)))
        mean = interpolate(chunk, size=size, mode="area").numpy()
        small[rows] = mean if images.dtype.kind == "f" else np.rint(mean)
    return small
