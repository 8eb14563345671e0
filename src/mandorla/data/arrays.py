"""Paired images from NumPy files.

An array is named by its file and place: `scans.npz:x` is the array `x` in `scans.npz`, `scans.npz:x:2` the channel 2 on
its last axis, `scans.npz:m:bits` a mask whose bits were packed along the last axis (`numpy.packbits`), `t1.npy` the
array in `t1.npy`. Row i of every array is the same sample. So three contrasts that were stacked along the last axis,
and a mask, read

    images: {t1: lgg/lgg_128.npz:x:0, flair: lgg/lgg_128.npz:x:1, t1gd: lgg/lgg_128.npz:x:2}
    groups: lgg/lgg_128.npz:patient
    labels: {lesion_mask: lgg/lgg_128.npz:mask:bits}
"""

import re
import zipfile
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from mandorla.data.dataset import Splits
from mandorla.data.stored import StoredConfig, divide
from mandorla.errors import MandorlaError

NAME = re.compile(r"((?P<npz>.+\.npz):(?P<key>[^:]+)|(?P<npy>.+\.npy))(:(?P<part>\d+|bits))?")


class ArraysConfig(StoredConfig):
    """Name the arrays of `arrays`: images, groups, what is missing, and what else is known."""

    kind: Literal["arrays"] = "arrays"
    images: dict[str, str]
    """Array of each modality, as `FILE.npz:KEY`, `FILE.npz:KEY:CHANNEL`, `FILE.npz:KEY:bits` or `FILE.npy`."""
    groups: str | None = None
    """Array that names the group (patient) of each sample; without one, each sample is a group of its own."""
    present: dict[str, str] = {}
    """Bool array of each modality that is missing for some samples: true where it is there."""
    dimensions: Literal[1, 2, 3] = 2
    """Spatial axes of an image; an array with one axis more than samples and space has its channels last."""
    labels: dict[str, str] = {}
    """Array of each label, for evaluation: integers or names are classes, floats numbers, arrays of images masks."""
    split: str | None = None
    """Array that says train, val or test for each sample; without one, groups are divided by the shares and seed."""
    source: str = ""
    """Where the files can be had, quoted when one is missing."""


class Rows(NamedTuple):
    """Hold what arrays give, row by row: images `x` `(N, C, *size)` and, bool `(N,)`, whether they are `present`."""

    x: dict[str, np.ndarray]
    present: dict[str, np.ndarray]
    ids: list[str]
    groups: np.ndarray
    labels: dict[str, np.ndarray]
    parts: list[str] | None


def load_arrays(config: ArraysConfig, seed: int) -> Splits:
    """Return train, val and test, divided by group under `seed`.

    Raises `MandorlaError` as `gather_arrays` and `divide` do.
    """
    rows = gather_arrays(config)
    return divide(rows.x, rows.present, rows.ids, rows.groups, config, seed, "data.images", rows.labels, rows.parts)


def gather_arrays(config: ArraysConfig) -> Rows:
    """Return the samples in the arrays, undivided.

    Raises `MandorlaError` for a missing file or array, fewer than two modalities, unequal numbers of samples, and a
    type or number of axes that is no image.
    """
    if len(config.images) < 2:
        raise MandorlaError(
            f"data.images: {len(config.images)} modality given, paired data need two or more: name them"
        )
    if unknown := set(config.present) - set(config.images):
        raise MandorlaError(f"data.present: no modality {sorted(unknown)[0]!r} in data.images: mend its name")
    load = lru_cache(load_array)
    arrays = {name: _read(config, f"data.images.{name}", array, load) for name, array in config.images.items()}
    first, num = next((name, len(array)) for name, array in arrays.items())
    masks = {name: _read(config, f"data.present.{name}", array, load) for name, array in config.present.items()}
    labels = {name: _read(config, f"data.labels.{name}", array, load) for name, array in config.labels.items()}
    groups = _read(config, "data.groups", config.groups, load) if config.groups else np.arange(num)
    parts = _read(config, "data.split", config.split, load) if config.split else None

    rows = {f"data.images.{name}": array for name, array in arrays.items()} | {"data.groups": groups}
    rows |= {f"data.present.{name}": mask for name, mask in masks.items()}
    rows |= {f"data.labels.{name}": values for name, values in labels.items()}
    rows |= {"data.split": parts} if config.split else {}
    for key, array in rows.items():
        if len(array) != num:
            raise MandorlaError(f"{key}: {len(array)} samples where data.images.{first} has {num}; mend the files")
    for key in ("data.groups", "data.split"):
        if key in rows and (rows[key].ndim != 1 or rows[key].dtype.kind not in "biufSU"):
            raise MandorlaError(f"{key}: expected one name or number per sample; name another array")
    for name, mask in masks.items():
        if mask.dtype != bool or mask.ndim != 1 or not mask.any():
            raise MandorlaError(
                f"data.present.{name}: expected one true or false per sample and some that are true; mend it"
            )

    present = {name: masks.get(name, np.ones(num, dtype=bool)) for name in arrays}
    if len(alone := np.flatnonzero(~np.any(list(present.values()), axis=0))):
        raise MandorlaError(
            f"data.present: sample {alone[0]} and {len(alone) - 1} other(s) have no modality: remove them"
        )
    x = {name: _to_images(config, f"data.images.{name}", array) for name, array in arrays.items()}
    ids = [f"{group}-{row}" if config.groups else str(row) for row, group in enumerate(groups)]
    given = None if parts is None else _names(parts).tolist()
    return Rows(x, present, ids, _names(groups), labels, given)


def _names(array: np.ndarray) -> np.ndarray:
    return np.char.decode(array, "latin1") if array.dtype.kind == "S" else array.astype(str)


def _to_images(config: ArraysConfig, key: str, array: np.ndarray) -> np.ndarray:
    """Return `array` as images `(N, C, *size)` of the stored type; a mask as 0 and 1."""
    if array.ndim - config.dimensions not in (1, 2) or not array.size:
        raise MandorlaError(f"{key}: an array of shape {array.shape} holds no images of {config.dimensions} dimensions")
    if array.dtype.kind not in "biuf":
        raise MandorlaError(f"{key}: {array.dtype} values are no pixels: store integers or floats")
    array = array[:, None] if array.ndim == config.dimensions + 1 else np.moveaxis(array, -1, 1)
    if array.dtype == bool:
        return array.astype(np.float32)
    return array if isinstance(array, np.memmap) else np.ascontiguousarray(array)  # an .npy may not fit into memory


def _read(config: ArraysConfig, key: str, name: str, load: Callable[[Path, str | None], np.ndarray]) -> np.ndarray:
    """Return the array called `name`, the value of the setting `key`."""
    match = NAME.fullmatch(name)
    if match is None:
        raise MandorlaError(f"{key}: {name!r} names no array; write FILE.npz:KEY, FILE.npz:KEY:CHANNEL or FILE.npy")
    array = load(config.find(match["npz"] or match["npy"], config.source), match["key"])
    part = match["part"]
    if array.ndim == 0:
        raise MandorlaError(f"{key}: a single value, not one per sample; name another array")
    if part is None:
        return array
    if part == "bits":
        if array.dtype != np.uint8 or array.ndim < 2:
            raise MandorlaError(f"{key}: packed bits are uint8 with two axes or more, not {array.dtype} {array.shape}")
        return np.unpackbits(array, axis=-1).astype(bool)
    if array.ndim < 2 or int(part) >= array.shape[-1]:
        raise MandorlaError(f"{key}: no channel {part} on the last axis of shape {array.shape}; it counts from 0")
    return array[..., int(part)]


def load_array(path: Path, key: str | None) -> np.ndarray:
    """Return the array `key` of an .npz file, or that of an .npy file. Raises `MandorlaError` where there is none."""
    try:
        content = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
        if isinstance(content, np.ndarray) != (key is None):
            raise ValueError("an .npy file holds one array, an .npz file several by name; this is the other kind")
        array = content if key is None else content.get(key)
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise MandorlaError(f"{path}: cannot be read as a NumPy file ({error}); replace it") from error
    if array is None:
        raise MandorlaError(f"{path}: no array {key!r} in it, only {', '.join(content)}; mend the name")
    if not isinstance(array, np.ndarray) or not array.ndim:
        raise MandorlaError(f"{path}: {key or 'it'} is no array with a row per sample; name another")
    return array
