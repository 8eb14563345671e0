"""What every data source gives: named modalities, and batches in which some may be missing.

A dataset is addressed by index and answers in batches, so that a source that composes its samples does so for
many at once. The same index gives the same sample, always.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from mandorla.data.intensity import Fitted

CHUNK = 2**24  # values that are worked on at once


def evenly(length: int, most: int) -> np.ndarray:
    """Return indices below `length`, evenly spaced: `most` of them, or all if there are no more."""
    return np.linspace(0, length - 1, min(most, length)).astype(int)


@dataclass(frozen=True)
class Modality:
    """Describe one modality: `name`, number of `channels`, spatial `size` (empty for plain vectors)."""

    name: str
    channels: int
    size: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one sample, `(channels, *size)`."""
        return (self.channels, *self.size)


@dataclass
class Batch:
    """Hold B samples of M modalities.

    - `x[name]`: float32 `(B, C, *size)` in [0, 1]; zeros where the modality is missing
    - `present[name]`: bool `(B,)`
    - `factors[key]`: ground truth and labels `(B, ...)`, for evaluation and as a condition of stage 2 where asked for
    - `ids`: one name per sample
    """

    x: dict[str, Tensor]
    present: dict[str, Tensor]
    factors: dict[str, np.ndarray] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)

    @property
    def whose(self) -> np.ndarray:
        """Return whose (which patient's) each sample is, `(B,)`; each its own where that is not known."""
        return self.factors.get("group", np.arange(len(next(iter(self.present.values())))))

    def to(self, device: torch.device) -> Batch:
        """Return the batch with `x` on `device`; `present`, which decides what is computed, stays on the host."""
        return replace(self, x={name: z.to(device) for name, z in self.x.items()})


class Dataset(Protocol):
    """Answer batches of samples by index."""

    modalities: tuple[Modality, ...]
    ids: Sequence[str]

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Return the samples at `indices`, in that order."""
        ...


@dataclass
class Splits:
    """Hold the three disjoint parts of a data source.

    - `intensity[name]`: how stored values become [0, 1]
    - `classes[label]`: the names of the classes of a label, in the order of their numbers
    - `contents`: hash of what the parts hold as it is stored
    """

    train: Dataset
    val: Dataset
    test: Dataset
    intensity: Mapping[str, Fitted] = field(default_factory=dict)
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    contents: str = ""

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Return the modalities, equal in all parts."""
        return self.train.modalities

    @property
    def parts(self) -> dict[str, Dataset]:
        """Return the parts by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def fingerprint(self) -> str:
        """Return a hash of all that batches depend on: samples, their order and division, and intensity."""
        scales = {name: fitted.to_json() | {"seen": None} for name, fitted in self.intensity.items()}
        for scale in scales.values():
            del scale["dtype"], scale["columns"]  # the one is in `contents`, the others are names alone
        return sha256(f"{self.contents} {json.dumps(scales, sort_keys=True)}".encode()).hexdigest()


def on_device(dataset: Dataset, device: torch.device) -> Dataset:
    """Return `dataset` with its batches composed on `device` where it can do so, else as it is."""
    return dataset.on(device) if hasattr(dataset, "on") else dataset


def row_chunks(values: np.ndarray) -> Iterator[slice]:
    """Yield slices that cover the rows of `values` `(N, ...)`, each of a size that is cheaply turned to floats."""
    step = max(1, CHUNK // max(1, math.prod(values.shape[1:])))
    return (slice(start, min(start + step, len(values))) for start in range(0, len(values), step))


def pieces(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Return `rows` `(N, ...)` in pieces of at most `size`."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def all_present(x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the `present` masks of a batch in which nothing is missing, each bool `(B,)`."""
    return {name: torch.ones(len(value), dtype=torch.bool) for name, value in x.items()}


def rows_of(z: Tensor, rows: Tensor) -> Tensor:
    """Return the rows of `z` `(B, ...)` that the mask `rows`, bool `(B,)`, chooses.

    Of all on a GPU that is `z` itself: a mask on the host then asks nothing of it. On a CPU it is always a copy, whose
    layout decides in which order gradients are summed: trainings stay what they were, bit by bit.
    """
    return z if z.is_cuda and rows.all() else z[rows]


def at_rows(z: Tensor, rows: Tensor) -> Tensor:
    """Undo `rows_of`: return `z` at the chosen rows, zeros at the others, `(B, ...)`."""
    if z.is_cuda and rows.all():
        return z
    whole = z.new_zeros(len(rows), *z.shape[1:])
    whole[rows] = z
    return whole
