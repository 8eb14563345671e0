"""One sample of several files: read, laid on one grid, cut into slices.

The volumes of a sample must lie on one grid, that of the first modality that the sample has: their values are compared
voxel by voxel. All are turned to the same axes first (`mandorla.data.geometry`); what then still differs is an error
that says by how much, or is resampled. A volume is one sample of three dimensions, or gives one sample per slice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import AfterValidator, Field, PositiveInt
from torch.nn.functional import interpolate

from mandorla.config import Settings
from mandorla.data.geometry import Geometry, Turn, across, check_axes, resample
from mandorla.data.intensity import background, empty
from mandorla.data.labels import shrink_mask
from mandorla.data.pairing import PairingConfig
from mandorla.data.places import Reading, ReadOptions
from mandorla.data.readers import forget, read
from mandorla.data.stored import shrink
from mandorla.errors import MandorlaError

_LOOK = 2**20  # values of a volume that are looked at for its background


def _named(axes: str) -> str:
    try:
        return check_axes(axes)
    except MandorlaError as error:
        raise ValueError(str(error)) from error


class SliceConfig(Settings):
    """Say how volumes are cut into slices."""

    axis: Literal["axial", "coronal", "sagittal", 0, 1, 2] = "axial"
    """Plane of the slices; or the axis across them, of arrays that do not know the patient's."""
    keep: float = Field(0.02, ge=0, le=1)
    """Share of foreground below which a slice is left out, in the modality that has most of it."""
    step: PositiveInt = 1
    """Take every so manieth slice."""


class GeometryConfig(Settings):
    """Say how volumes of one sample are laid on one grid."""

    axes: Annotated[str, AfterValidator(_named)] | None = "IPL"
    """Directions that the axes (D, H, W) of a volume are turned to, such as RAS; null keeps those of the first file."""
    tolerance: float = Field(0.05, ge=0)
    """How far voxels of two modalities may lie apart, in edges of a voxel."""
    resample: Literal["to_first"] | None = None
    """What to do where they lie further apart: resample to the grid of the first modality; null stops."""


class FilesConfig(PairingConfig):
    """Say how files are paired and read."""

    read: ReadOptions = ReadOptions()
    """What the axes of files mean that do not say it themselves."""
    read_of: dict[str, ReadOptions] = {}
    """The same for single modalities and masks."""
    slices: SliceConfig | None = None
    """How volumes are cut into slices; null keeps them whole."""
    sizes: Literal["equal", "any"] = "equal"
    """Whether all files of a modality must have one size; any: each is averaged down to `size` from its own."""
    geometry: GeometryConfig = GeometryConfig()
    """How volumes of one sample are laid on one grid."""
    workers: int | None = Field(None, ge=0)
    """Processes that read files; null for one per core where there is much to read, 0 for none but this one."""
    cache: str | None = None
    """Folder, below the root, for what was read, such as .mandorla: no file is read twice; null keeps nothing."""

    def options(self, name: str) -> ReadOptions:
        """Return how the files of a modality or mask are read."""
        return self.read_of.get(name, self.read)


@dataclass(frozen=True)
class Sample:
    """Hold what was read of one sample.

    - `values[name]`: `(C, *size)`, as stored; `masks[name]`: `(*size)`, whole numbers unless the file holds others
    - `grid`: of the volumes, as the first of their files has it; None without volumes
    - `turn`: from that grid's axes to those of the arrays
    """

    values: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    grid: Geometry | None = None
    turn: Turn | None = None


class Cut(NamedTuple):
    """Say how the volumes of a sample are cut into slices.

    - `axis`: across the slices; `length`: how many there are; `kept`: the indices of those that are kept
    - `numbers`: of these, counted along the first file's own axis
    """

    axis: int
    kept: list[int]
    numbers: list[int]
    length: int


@dataclass(frozen=True)
class Way:
    """Say how a sample of volumes was cut and turned, to go back.

    - `grid`, `turn`: as in `Sample`
    - `axis`: of the turned volume across the slices, and `kept`, the indices of the slices; None where it is whole
    """

    grid: Geometry
    turn: Turn
    axis: int | None = None
    kept: list[int] | None = None

    def back(self, values: np.ndarray) -> np.ndarray:
        """Return float `(S, C, *size)` as volumes `(C, D, H, W)` on the grid of the file.

        What was averaged down is interpolated linearly; slices that were left out are 0.
        """
        space = self.turn.of_grid(self.grid).shape
        if self.axis is None:
            return self.turn.undo(_stretch(values, space)[0])
        plane = tuple(length for axis, length in enumerate(space) if axis != self.axis)
        volume = np.zeros((space[self.axis], values.shape[1], *plane), np.float32)
        volume[self.kept] = _stretch(values, plane)
        return self.turn.undo(np.moveaxis(volume, 0, self.axis + 1))


@dataclass(frozen=True)
class Slices:
    """Hold a sample as S samples of the size that is wanted: its slices, or itself.

    - `values[name]`: `(S, C, *size)`; `masks[name]`: `(S, *size)`
    - `sizes[name]`: of a modality before it was brought to that size
    - `numbers`: of the slices, counted along the first file's own axis; None where the sample is whole
    - `volumes`: the modalities that are volumes, and all masks: whose numbers may be of any type
    - `way`: back to the grid of the files; None without volumes that have one
    """

    values: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    sizes: dict[str, tuple[int, ...]]
    numbers: list[int] | None
    volumes: frozenset[str]
    way: Way | None

    @property
    def axes(self) -> str | None:
        """Return the directions of the axes of the volumes."""
        return self.way and self.way.turn.of_grid(self.way.grid).axes


def read_sample(files: Mapping[str, str | None], masks: Mapping[str, str | None], config: FilesConfig) -> Sample:
    """Return the sample that lies at the places `files[modality]` and `masks[name]`; None stands for no file.

    Raises `MandorlaError` for files that cannot be read, volumes that do not lie on one grid, and masks of several
    channels or of no image's size.
    """
    places = {name: place for name, place in (*files.items(), *masks.items()) if place}
    readings = {name: read(place, config.options(name)) for name, place in places.items()}
    forget()
    first = next((name for name in files if name in readings and readings[name].geometry), None)
    grid = turn = None
    if first:
        grid = readings[first].geometry
        turn = Turn.of(grid, config.geometry.axes or grid.axes)
    values, marked = {}, {}
    for name, reading in readings.items():
        array = reading.values
        if turn and turn.moves and array.ndim == 4 and not reading.geometry:
            raise MandorlaError(
                f"{places[name]}: does not say where its voxels lie, as {places[first]} does, whose axes are turned; "
                "give both as NIfTI, or set data.geometry.axes to null where they are stored alike"
            )
        if turn and reading.geometry:
            array = _laid(reading, turn.of_grid(grid), config.geometry, name in masks, places[name], places[first])
        if name in files:
            values[name] = array
        elif len(array) == 1:
            marked[name] = _whole(array[0])
        else:
            raise MandorlaError(f"{places[name]}: a mask has one channel, not {len(array)}")
    sizes = {array.shape[1:] for array in values.values()}
    for name, mask in marked.items():
        alike = any(_alike(mask.shape, size) for size in sizes)
        if all(files.values()) and mask.shape not in sizes and not (alike and config.size):
            own, others = list(mask.shape), " or ".join(str(list(size)) for size in sorted(sizes))
            raise MandorlaError(
                f"{places[name]}: a mask of {own} pixels, its images have {others}; make them alike"
                f"{', or set data.size' if alike else ''}"
            )
    return Sample(values, marked, grid, turn)


def read_slices(files: Mapping[str, str | None], masks: Mapping[str, str | None], config: FilesConfig) -> Slices:
    """Return the sample at those places (see `read_sample`), cut as `config.slices` says, at the size `config.size`.

    Raises `MandorlaError` as `read_sample` does, and for what cannot be cut or brought to the size.
    """
    sample = read_sample(files, masks, config)
    values, marked = sample.values, sample.masks
    volumes = frozenset(name for name, array in values.items() if sample.grid and array.ndim == 4) | set(masks)
    places = {name: place for name, place in (*files.items(), *masks.items()) if place}
    cut = find_cut(sample, places, config) if config.slices else None
    if cut:
        values, marked = (
            {name: np.moveaxis(array, cut.axis - 3, 0)[cut.kept] for name, array in arrays.items()}
            for arrays in (values, marked)
        )
    else:
        values, marked = ({name: array[None] for name, array in arrays.items()} for arrays in (values, marked))
    sizes = {name: array.shape[2:] for name, array in values.items()}
    values = {name: shrink(array, config.size, places[name]) for name, array in values.items()}
    if config.size:
        marked = {name: _smaller(mask, config.size, places[name]) for name, mask in marked.items()}
    way = Way(sample.grid, sample.turn, cut and cut.axis, cut and cut.kept) if sample.grid else None
    return Slices(values, marked, sizes, cut and cut.numbers, volumes, way)


def find_cut(sample: Sample, places: Mapping[str, str | None], config: FilesConfig) -> Cut:
    """Return how `config.slices` cuts a sample, whose modalities and masks lie at `places`.

    Raises `MandorlaError` for what is no volume, slices that no file says the axis of, and unequal numbers of slices.
    """
    arrays = {**sample.values, **{name: mask[None] for name, mask in sample.masks.items()}}
    for name, array in arrays.items():
        if array.ndim != 4:
            raise MandorlaError(
                f"{places[name]}: no volume, it cannot be cut into slices; give volumes, or set data.slices to null"
            )
    settings, turn = config.slices, sample.turn
    if turn is None and isinstance(settings.axis, str):
        raise MandorlaError(
            f"data.slices.axis: {settings.axis} needs volumes that know the patient's axes (NIfTI, DICOM); give "
            "the axis as 0, 1 or 2"
        )
    axis = across(settings.axis, turn.of_grid(sample.grid).axes if turn else "")
    lengths = {name: array.shape[axis + 1] for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{length} in {places[name]}" for name, length in lengths.items())
        raise MandorlaError(f"slices cannot be paired, their numbers differ: {counts}")
    length = next(iter(lengths.values()))
    enough = np.ones(length, bool)
    if settings.keep:
        enough = np.max([_foreground(array, axis) for array in sample.values.values()], axis=0) >= settings.keep
    kept = np.flatnonzero(enough)[:: settings.step].tolist()
    flipped = turn is not None and turn.flips[axis]
    return Cut(axis, kept, [length - 1 - index if flipped else index for index in kept], length)


def to_id(name: str, number: int | None) -> str:
    """Return the id of the sample `name`, or that of its slice of that number."""
    return name if number is None else f"{name}/s{number:03d}"


def _stretch(values: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return `(S, C, *own)` at a larger `size`, pixels taken as areas; as they are if that is theirs."""
    if values.shape[2:] == size:
        return values
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    return interpolate(torch.from_numpy(np.ascontiguousarray(values, np.float32)), size=size, mode=mode).numpy()


def _foreground(volume: np.ndarray, axis: int) -> np.ndarray:
    """Return the share of foreground in each slice of a volume `(C, D, H, W)`; none in a volume of one value."""
    if volume.min() == volume.max():
        return np.zeros(volume.shape[axis + 1])
    level = background(_some(volume))
    return (volume > level).mean(axis=tuple(i for i in range(4) if i != axis + 1))


def _some(volume: np.ndarray) -> np.ndarray:
    """Return values of a volume, evenly spread ones if there are too many."""
    return volume.ravel()[:: -(-volume.size // _LOOK)]


def _laid(
    reading: Reading, grid: Geometry, config: GeometryConfig, is_mask: bool, place: str, first: str
) -> np.ndarray:
    """Return a volume turned to the axes of `grid` and, if it does not lie there, resampled."""
    turn = Turn.of(reading.geometry, grid.axes)
    values, own = turn.apply(reading.values), turn.of_grid(reading.geometry)
    difference = grid.difference(own, config.tolerance)
    if not difference:
        return values
    if config.resample is None:
        raise MandorlaError(
            f"{place}: does not lie on the grid of {first}: {difference}; set data.geometry.resample to to_first, or "
            "data.geometry.tolerance"
        )
    background = [0.0 if is_mask else empty(_some(channel)) for channel in values]
    try:
        return resample(values, own, grid, is_mask, background)
    except MandorlaError as error:
        raise MandorlaError(
            f"{place}: cannot be resampled to the grid of {first}: {error}; are both of one subject, in one space?"
        ) from error


def _smaller(masks: np.ndarray, size: tuple[int, ...], place: str) -> np.ndarray:
    """Return the masks `(S, *space)` brought down to `size`."""
    if any(wanted > own for wanted, own in zip(size, masks.shape[1:], strict=True)):
        own = list(masks.shape[1:])
        raise MandorlaError(f"{place}: a mask of {own} pixels cannot be brought down to {list(size)}; lower data.size")
    return shrink_mask(masks, size)


def _alike(mask: tuple[int, ...], size: tuple[int, ...]) -> bool:
    """Return whether a mask has the proportions of an image of a `size`, up to a pixel of the coarser one."""
    if len(mask) != len(size):
        return False
    scale = max(mask) / max(size)
    return all(abs(own - scale * edge) <= max(1.0, scale) for own, edge in zip(mask, size, strict=True))


def _whole(mask: np.ndarray) -> np.ndarray:
    """Return a mask as the smallest integers that hold it, or as floats where they are no whole numbers."""
    if mask.dtype.kind == "f" and (mask % 1).any():
        return mask.astype(np.float32)
    return mask.astype(np.uint8 if mask.min() >= 0 and mask.max() <= 255 else np.int32)
