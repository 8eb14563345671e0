"""From files to arrays: what all sources share that read files one by one.

Each file is decoded once, by worker processes where there is much to decode, and what was read goes straight to
memory-mapped arrays (`mandorla.data.cache`): at no time does a set need to fit into memory. A cached set is found again
by a hash of the files' names, sizes and times of change and of all settings that say how they are read.
"""

import json
import os
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, closing
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mandorla.data.cache import Column, Kept, keep
from mandorla.data.columns import check_columns, columns_of
from mandorla.data.dataset import Splits
from mandorla.data.duplicates import Marks
from mandorla.data.pairing import Pairs
from mandorla.data.places import check_file, split_place
from mandorla.data.samples import FilesConfig, read_slices, to_id
from mandorla.data.stored import Rows, divide
from mandorla.data.workers import work_in_order
from mandorla.errors import MandorlaError, MandorlaWarning

VERSION = 2  # of what is kept: another one is not looked at
MUCH = 2**28  # bytes of files from which on it pays to start processes
MOST_WORKERS = 16
PATIENCE = 60  # seconds of reading after which the cache is pointed to
Stamp = tuple[str, list[tuple[str, int, int]]]
_SETTINGS = ("read", "read_of", "slices", "geometry", "size", "sizes")


class _Places(NamedTuple):
    """Say where the files of one sample are."""

    files: dict[str, str | None]
    masks: dict[str, str | None]


def load_pairs(pairs: Pairs, config: FilesConfig, seed: int, source: str) -> Splits:
    """Return the files of `pairs` as train, val and test, divided by subject under `seed`.

    A slice is a sample of its own, named `SAMPLE/s012` by its number along the axis of the file. `source` names the
    data in errors. Raises `MandorlaError` as `read_slices` and `divide` do, and for images of different shape or type
    in one modality.
    """
    if both := sorted(set(pairs.files) & set(pairs.masks)):
        raise MandorlaError(f"{source}: {both[0]!r} is both a modality and a mask; name one otherwise")
    for name in config.read_of:
        if name not in pairs.files and name not in pairs.masks:
            raise MandorlaError(
                f"data.read_of: no modality or mask {name!r} in the data, only {', '.join(pairs.files)}"
            )
    kept = _read_all(pairs, config, source)
    return divide(_to_rows(pairs, kept, source), config, seed, source)


def _to_rows(pairs: Pairs, kept: Kept, source: str) -> Rows:
    """Return what was read of `pairs`, a row for each slice of a volume that was cut."""
    numbers = [[None] if here is None else here for here in kept.notes["numbers"]]
    _warn_of_empty(pairs.ids, numbers, source)
    of = np.repeat(np.arange(len(numbers)), [len(here) for here in numbers])  # the pair of each row

    def spread(values: Sequence) -> list:
        return [values[index] for index in of]

    labels = {name: spread(values) for name, values in pairs.labels.items()}
    for name, places in pairs.masks.items():
        labels |= _mask_labels(name, kept.arrays[name], _there(places)[of])
    return Rows(
        x={name: kept.arrays[name] for name in pairs.files},
        present={name: _there(places)[of] for name, places in pairs.files.items()},
        ids=[to_id(name, number) for name, here in zip(pairs.ids, numbers, strict=True) for number in here],
        groups=spread(pairs.groups),
        labels=labels,
        parts=spread(pairs.parts) if pairs.parts else None,
        columns={name: columns_of(places) for name, places in pairs.files.items()},
        marks={
            name: Marks(*(kept.arrays[f"{name}/{part}"] for part in ("hashes", "blank", "cells")))
            for name in pairs.files
        },
    )


def _warn_of_empty(ids: Sequence[str], numbers: Sequence[Sequence[int | None]], source: str) -> None:
    """Warn of volumes that gave no slice. Raises `MandorlaError` if none gave any."""
    if empty := [name for name, here in zip(ids, numbers, strict=True) if not here]:
        if len(empty) == len(ids):
            raise MandorlaError(f"{source}: no slice holds enough foreground; lower data.slices.keep")
        text = (
            f"{source}: {len(empty)} volume(s) left out that hold no slice with enough foreground, such as {empty[0]}"
        )
        warnings.warn(text, MandorlaWarning, stacklevel=4)


def _mask_labels(name: str, masks: np.ndarray, known: np.ndarray) -> dict[str, np.ndarray | list[bool | None]]:
    """Return masks `(N, ...)` as a label and, where not all are `known`, whether they mark anything: else None."""
    if not name.endswith("_mask") or known.all():
        return {name: masks}
    marked = masks.reshape(len(masks), -1).any(axis=1).tolist()
    shown = [any_ if there else None for any_, there in zip(marked, known, strict=True)]
    return {name: masks, f"{name.removesuffix('_mask')}_present": shown}


def _there(places: Sequence[str | None]) -> np.ndarray:
    return np.array([place is not None for place in places])


# ---------------------------------------------------------------------------------------------------------- reading all


def _read_all(pairs: Pairs, config: FilesConfig, source: str) -> Kept:
    """Return all that `pairs` names, by modality and mask, and the marks of each modality."""
    places = [
        _Places(
            {name: pairs.files[name][row] for name in pairs.files},
            {name: pairs.masks[name][row] for name in pairs.masks},
        )
        for row in range(len(pairs.ids))
    ]
    stamps = [stamp(place, config) for p in places for place in (*p.files.values(), *p.masks.values())]
    settings = config.model_dump(mode="json", include=set(_SETTINGS))
    key = json.dumps([VERSION, list(pairs.files), list(pairs.masks), stamps, settings], sort_keys=True)
    started = time.monotonic()
    kept = keep(
        config.locate(config.cache) if config.cache else None,
        sha256(key.encode()).hexdigest()[:32],
        lambda folder: _write_all(folder, places, config, num_workers(stamps, config)),
    )
    if config.cache is None and time.monotonic() - started > PATIENCE:
        text = (
            f"{source}: reading took {time.monotonic() - started:.0f} seconds; data.cache=.mandorla keeps what was read"
        )
        warnings.warn(text, MandorlaWarning, stacklevel=4)
    return kept


def stamp(place: str | None, config: FilesConfig) -> Stamp:
    """Return what tells whether the file at a place is still the same: name, size, time of change."""
    if place is None:
        return "", []
    path, key = split_place(place)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    name = os.path.relpath(place, config.locate(""))  # what is moved with its cache stays valid
    try:
        states = [(file.name, file.stat()) for file in files]
    except OSError as error:
        check_file(Path(error.filename))
        raise MandorlaError(f"{error.filename}: {error.strerror}") from error
    return name, [(name, state.st_size, state.st_mtime_ns) for name, state in states]


def num_workers(stamps: Sequence[Stamp], config: FilesConfig) -> int:
    """Return how many processes are to read the files of those stamps; 0 for none but this one."""
    if config.workers is not None:
        return config.workers
    num_bytes = sum(size for _, files in stamps for _, size, _ in files)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS) if num_bytes >= MUCH and cores > 1 else 0


def _write_all(folder: Path, places: list[_Places], config: FilesConfig, workers: int) -> dict:
    """Read all samples, write the arrays into `folder` and return the notes on them."""
    names = [*places[0].files, *places[0].masks]
    numbers: list[list[int] | None] = []
    axes: dict[str, str] = {}
    with ExitStack() as opened:  # and closed, also where a file is refused
        paths = {name: folder / f"{number}.npy" for number, name in enumerate(names)}
        columns = {name: _Alike(opened.enter_context(closing(Column(path)))) for name, path in paths.items()}
        read = work_in_order(read_slices, [(*here, config) for here in places], workers)
        for here, slices in zip(places, read, strict=True):
            numbers.append(slices.numbers)
            every = {**here.files, **here.masks}
            if slices.axes:
                axes.setdefault(slices.axes, next(place for place in every.values() if place))
            if len(axes) > 1:
                (one, first), (other, second) = axes.items()
                raise MandorlaError(
                    f"{second}: its axes are {other}, those of {first} are {one}; set data.geometry.axes"
                )
            for name, column in columns.items():
                if every[name]:
                    values = slices.values[name] if name in slices.values else slices.masks[name]
                    size = slices.sizes.get(name) if config.sizes == "equal" else None
                    column.add(values, every[name], name in slices.volumes, size)
                else:
                    column.column.add_missing(1 if slices.numbers is None else len(slices.numbers))
    for name in places[0].files:
        check_columns(here.files[name] for here in places)
    present = np.repeat(
        [[place is not None for place in p.files.values()] for p in places],
        [1 if here is None else len(here) for here in numbers],
        axis=0,
    )
    if len(present):
        for index, name in enumerate(places[0].files):
            marks = Marks.of(np.load(folder / f"{index}.npy", mmap_mode="r"), present[:, index])
            for part, array in (("hashes", marks.hashes), ("blank", marks.blank), ("cells", marks.cells)):
                np.save(folder / f"{len(names)}.npy", array)
                names.append(f"{name}/{part}")
    return {"names": names, "numbers": numbers}


class _Alike:
    """Append the samples of one modality, which must be alike."""

    def __init__(self, column: Column):
        self.column, self.first = column, ""
        self.size: tuple[int, ...] | None = None

    def add(self, values: np.ndarray, place: str, any_type: bool, size: tuple[int, ...] | None) -> None:
        """Append samples read at `place`; `size` is their own, None where it does not matter."""
        column = self.column
        if column.shape is not None:
            size_differs = size != self.size or values.shape[1:] != column.shape
            if size_differs or values.dtype != column.dtype and not any_type:
                one = _describe(values.shape[1], size or values.shape[2:], values.dtype)
                other = _describe(column.shape[0], self.size or column.shape[1:], column.dtype)
                only_size = size_differs and values.ndim > 2 and values.shape[1] == column.shape[0]
                remedy = ", or set data.size and data.sizes=any" if only_size else ""
                raise MandorlaError(
                    f"{place}: {one}, unlike {self.first} with {other}; make all of a modality alike{remedy}"
                )
            if values.dtype != column.dtype and (wide := _wider(values.dtype, column.dtype)) != column.dtype:
                column.widen(wide)
        column.add(values)
        self.first, self.size = self.first or place, size


def _wider(one: np.dtype, other: np.dtype) -> np.dtype:
    """Return a type that holds volumes of both: float64 has no place here, a scanner does not see so many digits."""
    wide = np.result_type(one, other)
    return np.dtype(np.float32) if wide == np.float64 else wide


def _describe(channels: int, size: tuple[int, ...], dtype: np.dtype) -> str:
    """Return size, channels and type of one sample in words."""
    pixels = "x".join(map(str, size))
    return f"{pixels + ' pixels of ' if pixels else ''}{channels} channel(s) in {dtype}"
