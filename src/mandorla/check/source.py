"""The samples of a source for the data check: listed without being read, then seen one by one.

What can be read of a sample is looked at even where the rest of it cannot: then the error of each file is kept in its
place. Of each image only a `Look` remains, so that memory does not grow with the size of the images.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import interpolate

from mandorla.data import DataConfig, load_data, pair_files
from mandorla.data.arrays import ArraysConfig, gather_arrays
from mandorla.data.columns import check_columns
from mandorla.data.dataset import evenly
from mandorla.data.duplicates import Marks
from mandorla.data.geometry import Turn, across
from mandorla.data.loading import num_workers, stamp
from mandorla.data.pairing import PairingReport
from mandorla.data.places import Reading
from mandorla.data.python import PythonConfig, gather_samples
from mandorla.data.readers import forget, read
from mandorla.data.samples import FilesConfig, find_cut, read_sample
from mandorla.errors import MandorlaError

NUM_COMPOSED = 512  # samples per part that are composed to be looked at
NUM_TOP = 4096  # values of an image that say how bright it is
PICTURE = 160  # most pixels per side of a picture


class Look(NamedTuple):
    """Hold what is kept of one image.

    - `digest`: a hash, empty for a blank one; `blank`: of a single value; `num_bad`: NaN and infinite values
    - `low`, `high`: smallest and largest value; `top`: 99.5 percentile; `values`: some
    - `cells`: means of a few areas `(C, ...)`; `blank_slices`: of a volume, and all of them
    """

    shape: tuple[int, ...]
    dtype: str
    digest: bytes
    blank: bool
    num_bad: int
    low: float
    high: float
    top: float
    values: np.ndarray
    cells: np.ndarray
    blank_slices: tuple[int, int]
    picture: np.ndarray | None


class Seen(NamedTuple):
    """Hold what is kept of one row of a source, which gives S samples: its slices, or itself.

    - `numbers`: of the slices that are kept, None where the row is whole; `num_slices`: of all its slices
    - `looks[modality]`: S looks; `marked[mask]`: whether a mask marks anything, S times
    - `errors[name]`: place of a modality or mask, and why it cannot be read; `grid`: how volumes of the row do not lie
      on one grid
    - `spacing` in mm and `axes` of the volumes, as the first file has them
    """

    numbers: list[int] | None
    looks: dict[str, list[Look]]
    marked: dict[str, list[bool]] = {}
    errors: dict[str, tuple[str, str]] = {}
    grid: str = ""
    spacing: tuple[float, ...] = ()
    axes: str = ""
    num_slices: int = 0


@dataclass(frozen=True)
class Stock:
    """List the rows of a source, unread.

    - `there[modality]`: bool `(N,)`, whether a row has it
    - `see(*tasks[row], num_values, draw)` looks at a row; `workers` processes may do so
    - `labels[name]`: values of all rows; `masks`: names of masks that are read with the rows
    - `total`: samples by part, where only some of a composed source are listed
    """

    ids: list[str]
    groups: list[str]
    there: Mapping[str, np.ndarray]
    see: Callable[..., Seen]
    tasks: list[tuple[Any, ...]]
    parts: list[str | None] | None = None
    labels: Mapping[str, np.ndarray | Sequence[str | float | None]] = field(default_factory=dict)
    masks: tuple[str, ...] = ()
    report: PairingReport = PairingReport()
    total: Mapping[str, int] = field(default_factory=dict)
    workers: int = 0


def take_stock(config: DataConfig, seed: int) -> Stock:
    """Return the rows of the source that `config` describes; unpaired and unpairable files do not stop it.

    Raises `MandorlaError` where they cannot be told apart, and as the source does.
    """
    if isinstance(config, FilesConfig):
        pairs = pair_files(config.model_copy(update={"unpaired": "keep", "unpairable": "skip"}))
        for of in pairs.files.values():
            check_columns(of)
        tasks = [
            ({n: of[row] for n, of in pairs.files.items()}, {n: of[row] for n, of in pairs.masks.items()}, config)
            for row in range(len(pairs.ids))
        ]
        places = [place for of in (*pairs.files.values(), *pairs.masks.values()) for place in of]
        return Stock(
            pairs.ids,
            pairs.groups,
            {name: np.array([place is not None for place in places]) for name, places in pairs.files.items()},
            see_files,
            tasks,
            pairs.parts,
            pairs.labels,
            tuple(pairs.masks),
            pairs.report,
            workers=num_workers([stamp(p, config) for p in places], config),
        )
    if isinstance(config, ArraysConfig | PythonConfig):
        rows = gather_arrays(config) if isinstance(config, ArraysConfig) else gather_samples(config)
        see = _Rows(rows.x, rows.present)
        return Stock(
            rows.ids,
            [str(group) for group in rows.groups],
            rows.present,
            see,
            [(row,) for row in range(len(rows.ids))],
            rows.parts,
            rows.labels,
        )
    return _compose(config, seed)


def _compose(config: DataConfig, seed: int) -> Stock:
    """Return some samples of each part of a composed source."""
    splits = load_data(config, seed)
    parts, batches = [], []
    for part, dataset in splits.parts.items():
        chosen = evenly(len(dataset), NUM_COMPOSED)
        batches.append(dataset.batch(chosen))
        parts += [part] * len(chosen)
    names = [m.name for m in splits.modalities]
    x = {name: np.concatenate([b.x[name].numpy() for b in batches]) for name in names}
    present = {name: np.concatenate([b.present[name].numpy() for b in batches]) for name in names}
    ids = [text for b in batches for text in b.ids]
    factors = {key: np.concatenate([b.factors[key] for b in batches]) for key in batches[0].factors}
    return Stock(
        ids,
        ids,
        present,
        _Rows(x, present),
        [(row,) for row in range(len(ids))],
        parts,
        {key: values for key, values in factors.items() if values.dtype.kind in "biufU"},
        total={part: len(dataset) for part, dataset in splits.parts.items()},
    )


# ------------------------------------------------------------------------------------------------------------- seeing


@dataclass(frozen=True)
class _Rows:
    """Look at rows of arrays."""

    x: Mapping[str, np.ndarray]
    present: Mapping[str, np.ndarray]

    def __call__(self, row: int, num_values: int, draw: bool) -> Seen:
        here = [name for name in self.x if self.present[name][row]]
        return Seen(None, {name: [look(self.x[name][row], num_values, draw, "")] for name in here})


def see_files(
    files: Mapping[str, str | None],
    masks: Mapping[str, str | None],
    config: FilesConfig,
    num_values: int,
    draw: bool,
) -> Seen:
    """Return what is kept of the row at those places, read as training reads it but for its size."""
    try:
        sample = read_sample(files, masks, config)
        cut = find_cut(sample, {**files, **masks}, config) if config.slices else None
    except MandorlaError as error:
        return _see_apart(files, masks, config, num_values, draw, str(error))
    axes = sample.turn.of_grid(sample.grid).axes if sample.turn else ""
    grid = {
        "spacing": tuple(sample.grid.spacing) if sample.grid else (),
        "axes": sample.grid.axes if sample.grid else "",
    }
    if cut is None:
        looks = {name: [look(array, num_values, draw, axes)] for name, array in sample.values.items()}
        return Seen(None, looks, {name: [bool(mask.any())] for name, mask in sample.masks.items()}, **grid)
    axis, kept = cut.axis, cut.kept
    some = -(-num_values // max(1, len(kept)))
    return Seen(
        cut.numbers,
        {
            name: [look(array.take(i, axis + 1), some, draw and i == kept[len(kept) // 2], "") for i in kept]
            for name, array in sample.values.items()
        },
        {name: [bool(mask.take(index, axis).any()) for index in kept] for name, mask in sample.masks.items()},
        num_slices=cut.length,
        **grid,
    )


def _see_apart(
    files: Mapping[str, str | None],
    masks: Mapping[str, str | None],
    config: FilesConfig,
    num_values: int,
    draw: bool,
    why: str,
) -> Seen:
    """Look at each file of a row by itself, where they cannot be read together: `why`."""
    readings: dict[str, Reading] = {}
    errors: dict[str, tuple[str, str]] = {}
    places = {name: place for name, place in (*files.items(), *masks.items()) if place}
    for name, place in places.items():
        try:
            readings[name] = read(place, config.options(name))
        except MandorlaError as error:
            errors[name] = (place, str(error))
    forget()
    grids = [(name, reading.geometry) for name, reading in readings.items() if reading.geometry]
    differences = []
    for name, geometry in grids[1:]:
        first, grid = grids[0]
        own = Turn.of(geometry, grid.axes).of_grid(geometry)
        if difference := grid.difference(own, config.geometry.tolerance):
            differences.append(f"{name} against {first}: {difference}")
    if not errors and (config.geometry.resample or not differences):
        named = next((name for name, place in places.items() if why.startswith(place)), next(iter(places)))
        errors[named] = (places[named], why)
    axes = config.geometry.axes or (grids[0][1].axes if grids else "")
    whole = {name: r for name, r in readings.items() if name in files and config.slices is None and name not in errors}
    turned = {n: Turn.of(r.geometry, axes).apply(r.values) if r.geometry else r.values for n, r in whole.items()}
    return Seen(
        None,
        {name: [look(values, num_values, draw, axes if grids else "")] for name, values in turned.items()},
        {name: [bool(reading.values.any())] for name, reading in readings.items() if name in masks},
        errors,
        "; ".join(differences),
        tuple(grids[0][1].spacing) if grids else (),
        grids[0][1].axes if grids else "",
    )


def look(values: np.ndarray, num_values: int, draw: bool, axes: str) -> Look:
    """Return what is kept of the image `values` `(C, *size)`, which has a picture if `draw`; `axes` are of a volume."""
    flat = values.ravel()
    finite = flat if flat.dtype.kind != "f" else flat[np.isfinite(flat)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (np.nan, np.nan)
    top = finite[:: -(-len(finite) // NUM_TOP) or 1]
    marks = Marks.of(values[None], np.ones(1, bool))
    if values.ndim == 4:
        upright = np.moveaxis(values, 1 + (across("axial", axes) if axes else 0), 1)
        slices = upright.transpose(1, 0, 2, 3).reshape(upright.shape[1], -1)
        blank_slices = (int((slices.min(1) == slices.max(1)).sum()), len(slices))
    else:
        upright, blank_slices = values, (0, 0)
    return Look(
        shape=values.shape,
        dtype=values.dtype.name,
        digest=marks.digests()[0],
        blank=low == high,
        num_bad=len(flat) - len(finite),
        low=low,
        high=high,
        top=float(np.percentile(top, 99.5)) if len(top) else np.nan,
        values=finite[:: max(1, -(-len(finite) // num_values))].astype(np.float32) if num_values else np.zeros(0, "f4"),
        cells=np.nan_to_num(marks.cells[0]),
        blank_slices=blank_slices,
        picture=_picture(upright) if draw else None,
    )


def _picture(values: np.ndarray) -> np.ndarray:
    """Return `(C, *size)` in few pixels, float32; of a volume the middle slice."""
    if values.ndim == 4:
        values = values[:, values.shape[1] // 2]
    values = np.nan_to_num(values.astype(np.float32))
    if values.ndim == 3 and max(values.shape[1:]) > PICTURE:
        scale = PICTURE / max(values.shape[1:])
        size = [max(1, round(n * scale)) for n in values.shape[1:]]
        values = interpolate(torch.from_numpy(values)[None], size=size, mode="area")[0].numpy()
    return values
