"""What the sources that read files share: where they look, how they hold images, how they divide them.

Images are decoded once and stay in memory as they were stored (a byte per pixel for most); a batch is cut out and
brought to float32 in [0, 1] when asked for.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch.nn.functional import interpolate

from mandorla.config import Settings
from mandorla.data.dataset import Batch, Modality, Splits
from mandorla.data.images import to_unit
from mandorla.data.splits import split_by_group
from mandorla.errors import MandorlaError

CHUNK = 256  # images that are resized at once


class StoredConfig(Settings):
    """Say where files lie, to what size images are brought, and how groups are divided."""

    root: str | None = None
    """Folder that paths are relative to; without one, the environment variable MANDORLA_DATA, else `data`."""
    size: tuple[PositiveInt, ...] | None = None
    """Pixels per axis that images are averaged down to; null keeps their own."""
    val_share: float = Field(0.15, gt=0, lt=0.5)
    """Share of the groups (patients) for validation."""
    test_share: float = Field(0.15, gt=0, lt=0.5)
    """Share of the groups (patients) for testing."""

    def locate(self, path: str) -> Path:
        """Return where the relative `path` lies."""
        return Path(self.root or os.environ.get("MANDORLA_DATA") or "data").expanduser() / path


@dataclass
class StoredDataset:
    """Answer batches from images in memory; one of three parts that share the images.

    - `x[name]`: `(N, C, *size)`, uint8, uint16 or float32 in [0, 1]; zeros where missing
    - `present[name]`: bool `(N,)`
    - `ids`, `groups`: a name and a group for each sample of this part
    - `rows`: where in the images the samples of this part lie

    Factors: `group` (B,), such as the patient.
    """

    x: dict[str, np.ndarray]
    present: dict[str, np.ndarray]
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
        indices = np.asarray(indices)
        rows = self.rows[indices]
        x = {name: torch.from_numpy(to_unit(images[rows])) for name, images in self.x.items()}
        present = {name: torch.from_numpy(mask[rows]) for name, mask in self.present.items()}
        return Batch(x, present, {"group": self.groups[indices]}, [self.ids[index] for index in indices])


def divide(
    x: dict[str, np.ndarray],
    present: dict[str, np.ndarray],
    ids: Sequence[str],
    groups: Sequence[str],
    config: StoredConfig,
    seed: int,
    source: str,
) -> Splits:
    """Return the images `x[name]` `(N, C, *size)` as train, val and test, divided by group.

    Images are averaged down to `config.size`; what is missing is set to zero. `source` names them in errors.
    """
    x = {name: shrink(images, config.size, f"{source}, modality {name}") for name, images in x.items()}
    for name, images in x.items():
        images[~present[name]] = 0
    ids, groups = np.asarray(ids), np.asarray(groups)
    rows = split_by_group(groups, config.val_share, config.test_share, seed, source)
    return Splits(**{part: StoredDataset(x, present, ids[r].tolist(), groups[r], r) for part, r in rows.items()})


def shrink(images: np.ndarray, size: tuple[int, ...] | None, source: str) -> np.ndarray:
    """Return a copy of `images` `(N, C, *size)` averaged over areas down to `size`, in the same type.

    Raises `MandorlaError`, which names `source`, if an image would have to grow or has another number of axes.
    """
    if size is None or size == images.shape[2:]:
        return images.copy()
    if len(size) != images.ndim - 2 or any(wanted > own for wanted, own in zip(size, images.shape[2:], strict=True)):
        raise MandorlaError(
            f"{source}: images of {list(images.shape[2:])} pixels cannot be averaged down to {list(size)}"
        )
    small = np.empty((*images.shape[:2], *size), dtype=images.dtype)
    for start in range(0, len(images), CHUNK):
        chunk = torch.from_numpy(images[start : start + CHUNK].astype(np.float32))
        mean = interpolate(chunk, size=size, mode="area").numpy()
        small[start : start + CHUNK] = mean if images.dtype.kind == "f" else np.rint(mean)
    return small
