"""Samples that are read whole: arrays in an `.npz`, and tables with a row per sample.

A sample need not have all modalities: `present[name]`, bool `(N,)`, says which of N samples have one.
"""

import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from mandorla.data import source_of
from mandorla.data.dataset import Modality
from mandorla.data.pairing import NOTHING, to_values
from mandorla.data.places import TABLES, split_place
from mandorla.data.samples import FilesConfig
from mandorla.data.table import read_table
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.model import Mandorla

Arrays = dict[str, np.ndarray]
# what reading an .npz raises that is none, cut short, encrypted, or packed in an unknown way
_BROKEN = (AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)
_BROKEN += (BadZipFile, zlib.error)


@dataclass(frozen=True)
class SampleRows:
    """Hold N samples that were read whole: `x[name]` `(N, C, *size)` in [0, 1], `present[name]` `(N,)` which have it.

    `numbers` are those of the samples in their file, from 0; `ids[column]` what it says of each beside its values.
    """

    x: Arrays
    present: Arrays
    numbers: list[int]
    ids: dict[str, list[str]]

    def take(self, source: Path, complete: bool) -> "SampleRows":
        """Return these samples of `source`, or the complete ones, as `rows_to_take` says."""
        names = [f"row {number}" for number in self.numbers]
        rows = rows_to_take(self.present, names, source, complete)
        if len(rows) == len(names):
            return self
        x, present = ({name: values[rows] for name, values in part.items()} for part in (self.x, self.present))
        ids = {name: [cells[row] for row in rows] for name, cells in self.ids.items()}
        return SampleRows(x, present, [self.numbers[row] for row in rows], ids)


def read_rows(model: Mandorla, source: Path, given: Sequence[str]) -> SampleRows | None:
    """Return the samples in an `.npz`, or in a table with a row for each; None of a source of files, a sample each.

    They have those of the modalities `given`, in a table also some of them; without any that are given, those that are
    there. A table is read so if the training read no files, a sample each, and vectors are given; its other columns are
    the ids, or else the numbers of its rows. Rows without any value are passed over with a warning.

    Raises `MandorlaError` for what is missing, or does not fit the model.
    """
    path, part = split_place(str(source))
    asked = [modality for modality in model.modalities if modality.name in given or not given]
    if part is None and (path.suffix.lower() == ".npz" or not path.exists()):
        x = read_arrays(source, asked, all_of_them=bool(given))
        numbers = list(range(len(next(iter(x.values())))))
        return SampleRows(x, {name: np.ones(len(numbers), bool) for name in x}, numbers, numbered(numbers))
    by_file = isinstance(source_of(model.recipe.data), FilesConfig)
    vectors = [modality for modality in asked if not modality.size]
    if part or path.is_dir() or path.suffix.lower() not in (*TABLES, ".tsv") or by_file or not vectors:
        return None
    return _read_table(model, path, asked if given else vectors, bool(given))


def read_arrays(path: Path, modalities: Sequence[Modality], all_of_them: bool = False) -> Arrays:
    """Return the arrays `(N, C, *size)` in [0, 1] in the `.npz` at `path` that are named like one of `modalities`.

    Raises `MandorlaError` if it is none, for what does not fit a modality, and for a missing one if all are needed.
    """
    if not path.exists():
        raise MandorlaError(f"{path}: no such file or folder; mend the path")
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: np.asarray(archive[name]) for name in archive.files}
    except _BROKEN as error:
        raise MandorlaError(f"{path}: not a whole .npz file of plain arrays; write it anew with numpy.savez") from error
    x = {
        modality.name: _checked(found[modality.name], modality, f"{path}: array {modality.name!r}")
        for modality in modalities
        if modality.name in found
    }
    names = [modality.name for modality in modalities]
    if not x:
        raise MandorlaError(f"{path}: expected arrays named {listed(names)}, got {listed(found) or 'none'}")
    if len({len(array) for array in x.values()}) > 1:
        counts = ", ".join(f"{name} {len(array)}" for name, array in x.items())
        raise MandorlaError(f"{path}: arrays of different length ({counts}): a sample has the same index in each")
    if all_of_them and (missing := [name for name in names if name not in x]):
        raise MandorlaError(f"{path}: no array for {listed(missing)}; add it, or leave it out of what is given")
    return x


def rows_to_take(present: Arrays, names: Sequence[str], source: Path, complete: bool) -> list[int]:
    """Return the numbers of all samples in `source`, or of those that are `complete`: that have every modality.

    `present[modality]`, bool `(N,)`, says which have it; `names` `(N,)` is what they are called. Warns, if some lack
    any, of how many have which. Raises `MandorlaError` if none is complete and only such are wanted.
    """
    subsets = by_subset(present)
    rows = subsets.get(tuple(present), [])
    if len(rows) == len(names):
        return rows
    lacking, (row, *_) = next((those, rows) for those, rows in subsets.items() if len(those) < len(present))
    absent = ", ".join(name for name in present if name not in lacking)
    counts = "; ".join(f"{len(rows)} from {', '.join(those)}" for those, rows in subsets.items())
    text = (
        f"{source}: {len(names) - len(rows)} of {len(names)} samples lack a modality, such as {names[row]} ({absent})"
    )
    if complete and not rows:
        raise MandorlaError(f"{text}, and none has all: add what is missing, or give fewer modalities")
    warnings.warn(f"{text}: {'passed over' if complete else counts}", MandorlaWarning, stacklevel=4)
    return rows if complete else list(range(len(names)))


def by_subset(present: Mapping[str, np.ndarray]) -> dict[tuple[str, ...], list[int]]:
    """Return the modalities that samples have, and which samples; `present[name]` is bool `(N,)`."""
    subsets: dict[tuple[str, ...], list[int]] = {}
    for index, has in enumerate(zip(*present.values(), strict=True)):
        subsets.setdefault(tuple(compress(present, has)), []).append(index)
    return subsets


def numbered(numbers: Iterable[int]) -> dict[str, list[str]]:
    """Return the ids of samples that have none but their number."""
    return {"sample": [str(number) for number in numbers]}


def listed(names: Sequence[str] | Mapping) -> str:
    """Return the first of `names` in words."""
    shown = list(names)[:5]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def check_shape(array: np.ndarray, modality: Modality, place: str) -> None:
    """Raise MandorlaError if `array`, which comes from `place`, is not `(N, C, *size)` of `modality`."""
    (_, *shape), wanted = array.shape or (0,), modality.shape
    expected = f"modality {modality.name!r} of this model has"
    if len(shape) != len(wanted):
        raise MandorlaError(f"{place}: shape {array.shape}, expected (N, {', '.join(map(str, wanted))})")
    if shape[0] != wanted[0]:
        raise MandorlaError(f"{place}: channels: {shape[0]}, but {expected} {wanted[0]}: convert the input")
    if tuple(shape) != wanted:
        raise MandorlaError(f"{place}: size {_size(shape[1:])}, but {expected} {_size(wanted[1:])}: resize the input")


def _read_table(model: Mandorla, path: Path, asked: Sequence[Modality], all_of_them: bool) -> SampleRows:
    """Return the samples that the rows of a table are, with the modalities `asked`, or those of them that it has."""
    table, lines = read_table(path)
    if others := [modality.name for modality in asked if modality.size]:
        raise MandorlaError(f"{path}: a table holds vectors, and modality {others[0]!r} of this model is none")
    columns = {modality.name: model.intensity[modality.name].columns for modality in asked}
    if len(asked) == 1 and not columns[asked[0].name]:  # a run that kept no names
        columns[asked[0].name] = tuple(table)
    known = "; ".join(f"{name}: {', '.join(own) or 'not kept'}" for name, own in columns.items())
    if not all_of_them:
        for name, own in columns.items():
            if (lacking := sorted(set(own) - table.keys())) and len(lacking) < len(own):
                text = f"{path}: no column {lacking[0]!r}, but others of {name}: nothing is read of it"
                warnings.warn(text, MandorlaWarning, stacklevel=3)
        columns = {name: own for name, own in columns.items() if own and table.keys() >= set(own)}
    if not columns or not all(columns.values()):
        raise MandorlaError(f"{path}: its columns are not those of the training ({known}); rename them, or give one")
    x, present = {}, {}
    for modality in (modality for modality in asked if modality.name in columns):
        name, own = modality.name, columns[modality.name]
        values = np.array([_numbers(table, column, path, lines) for column in own]).T
        there = ~np.isnan(values).all(1)
        if (partly := there & np.isnan(values).any(1)).any():
            row = int(np.flatnonzero(partly)[0])
            lacking = own[int(np.flatnonzero(np.isnan(values[row]))[0])]
            raise MandorlaError(
                f"{path}:{lines[row]}: no {lacking!r}, but others of {name}; fill it, or leave all of them empty"
            )
        check_shape(values, modality, str(path))
        x[name], present[name] = np.zeros(values.shape, np.float32), there
        if there.any():
            x[name][there] = model.to_unit({name: values[there]})[name]
    some = np.any(list(present.values()), axis=0)
    if not some.any():
        raise MandorlaError(f"{path}: no row has a value of {' or '.join(columns)}")
    if not some.all():
        text = f"{path}: {(~some).sum()} of {len(some)} rows have no value of {' or '.join(columns)}: passed over"
        warnings.warn(text, MandorlaWarning, stacklevel=3)
    numbers = np.flatnonzero(some).tolist()
    taken = {column for fitted in model.intensity.values() for column in fitted.columns}.union(*columns.values())
    ids = {name: [cells[row] for row in numbers] for name, cells in table.items() if name not in taken}
    x, present = ({name: values[some] for name, values in part.items()} for part in (x, present))
    return SampleRows(x, present, numbers, ids or numbered(numbers))


def _numbers(table: Mapping[str, Sequence[str]], column: str, path: Path, lines: Sequence[int]) -> np.ndarray:
    """Return a column of a table as float64, NaN where it is empty. Raises `MandorlaError` where it holds a text."""
    if column not in table:
        raise MandorlaError(f"{path}: no column {column!r}; it has {', '.join([*table][:20])}")
    values = np.full(len(lines), np.nan)
    for row, (cell, line) in enumerate(zip(table[column], lines, strict=True)):
        if cell.lower() not in NOTHING:
            if not isinstance(value := to_values([cell])[0], float):
                raise MandorlaError(f"{path}:{line}: {cell!r} in the column {column!r} is no number")
            values[row] = value
    return values


def _checked(array: np.ndarray, modality: Modality, place: str) -> np.ndarray:
    """Return `array` as float32 if it is `(N, C, *size)` of `modality` in [0, 1]; `place` says where it comes from."""
    check_shape(array, modality, place)
    if not len(array):
        raise MandorlaError(f"{place}: no samples; give at least one")
    if not np.issubdtype(array.dtype, np.floating):
        raise MandorlaError(f"{place}: {array.dtype} values, expected floating-point numbers in [0, 1]: rescale them")
    if not np.isfinite(array).all():
        raise MandorlaError(f"{place}: NaN or infinite values; remove or fill them")
    if array.min() < 0 or array.max() > 1:
        raise MandorlaError(
            f"{place}: values from {array.min():.6g} to {array.max():.6g}, expected [0, 1]: rescale them"
        )
    return array.astype(np.float32)


def _size(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
