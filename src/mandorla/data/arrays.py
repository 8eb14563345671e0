"""Paired images and vectors from NumPy files and tables.

An array is named by its file and place: `scans.npz:x` is the array `x` in `scans.npz`, `scans.npz:x:2` the channel 2 on
its last axis, `scans.npz:m:bits` a mask whose bits were packed along the last axis (`numpy.packbits`), `t1.npy` the
array in `t1.npy`; `scans.npz:sex[patient]` is the array `sex`, looked up by the row numbers that `patient` holds. Row i
of every array is the same sample. So three contrasts that were stacked along the last axis, and a mask, read

    images: {t1: lgg/lgg_128.npz:x:0, flair: lgg/lgg_128.npz:x:1, t1gd: lgg/lgg_128.npz:x:2}
    groups: lgg/lgg_128.npz:patients[patient]
    labels: {lesion_mask: lgg/lgg_128.npz:mask:bits}

A list of arrays is one after the other; every list then names one array for each file, in the same order.

A table has a row per sample: `all.csv:sodium,calcium` are two of its columns, `all.csv:gene_*` those whose names begin
so. As images they are vectors with a channel per column; a row without any value lacks the modality.
"""

import fnmatch
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain, repeat
from pathlib import Path
from typing import Literal

import numpy as np

from mandorla.data.columns import split_columns
from mandorla.data.dataset import Splits
from mandorla.data.pairing import to_values
from mandorla.data.stored import Rows, StoredConfig, check_present, divide
from mandorla.data.table import read_table
from mandorla.errors import MandorlaError

NAME = re.compile(r"((?P<npz>.+\.npz):(?P<key>[^:\[]+)(\[(?P<by>[^\]]+)\])?|(?P<npy>.+\.npy))(:(?P<part>\d+|bits))?")
TABLE = re.compile(r"(?P<file>.+?\.(csv|tsv))(:(?P<columns>.+))?", re.IGNORECASE)
Places = str | tuple[str, ...]
Find = Callable[[str], Path]
Load = Callable[[Path, str | None], np.ndarray | dict[str, list[str]]]


class ArraysConfig(StoredConfig):
    """Name the arrays of `arrays`: images, groups, what is missing, and what else is known."""

    kind: Literal["arrays"] = "arrays"
    images: dict[str, Places]
    """Array of each modality, as `FILE.npz:KEY`, `FILE.npz:KEY:CHANNEL`, `FILE.npz:KEY:bits`, `FILE.npz:KEY[ROWS]`,
    `FILE.npy` or `FILE.csv:COLUMN,...`, or a list of such that follow one another."""
    groups: Places | None = None
    """Array that names the group (patient) of each sample; without one, each sample is a group of its own."""
    present: dict[str, str | tuple[str | None, ...]] = {}
    """Bool array of each modality that is missing for some samples: true where it is there; in a list, null stands for
    a file whose samples all have it."""
    dimensions: Literal[0, 1, 2, 3] = 2
    """Spatial axes of an image, 0 for vectors, which columns of a table always are; an array with one axis more than
    samples and space has its channels last."""
    labels: dict[str, Places] = {}
    """Array of each label, for evaluation: names and whole numbers are classes, arrays of the images' shape masks,
    others numbers."""
    split: Places | None = None
    """Array that says train, val or test for each sample; without one, groups are divided by the shares and seed."""


def load_arrays(config: ArraysConfig, seed: int) -> Splits:
    """Return train, val and test, divided by group under `seed`.

    Raises `MandorlaError` as `gather_arrays` and `divide` do.
    """
    return divide(gather_arrays(config), config, seed, "data.images")


def gather_arrays(config: ArraysConfig) -> Rows:
    """Return the samples in the arrays, undivided.

    Raises `MandorlaError` for a missing file, array or column, fewer than two modalities, unequal numbers of samples,
    several tables, and a type or number of axes that is no image.
    """
    if len(config.images) < 2:
        raise MandorlaError(
            f"data.images: {len(config.images)} modality given, paired data need two or more: name them"
        )
    if unknown := set(config.present) - set(config.images):
        raise MandorlaError(f"data.present: no modality {sorted(unknown)[0]!r} in data.images: mend its name")
    places: dict[str, Places | tuple[str | None, ...] | None] = {
        "data.groups": config.groups,
        "data.split": config.split,
    }
    for block, named in (("images", config.images), ("present", config.present), ("labels", config.labels)):
        places |= {f"data.{block}.{name}": place for name, place in named.items()}
    tables = {key: files for key, place in places.items() if (files := _tables(place))}
    for key, files in tables.items():
        if files != (expected := next(iter(tables.values()))):
            raise MandorlaError(
                f"{key}: {files[0]} is another table than {expected[0]}, and rows are paired by their order; join both "
                "into one by the names of their samples"
            )
    find, load = partial(config.find, source=config.source), lru_cache(_load)
    parts = {key: _read_all(key, place, find, load) for key, place in places.items() if place is not None}
    first = f"data.images.{next(iter(config.images))}"
    lengths = [len(array) for array in parts[first]]
    arrays = {key: _join(key, of_files, first, lengths) for key, of_files in parts.items()}
    num = sum(lengths)
    for key in ("data.groups", "data.split"):
        if key in arrays and (arrays[key].ndim != 1 or arrays[key].dtype.kind not in "biufSU"):
            raise MandorlaError(f"{key}: expected one name or number per sample; name another array")
    for name in config.present:
        mask = arrays[f"data.present.{name}"]
        if mask.dtype != bool or mask.ndim != 1 or not mask.any():
            raise MandorlaError(
                f"data.present.{name}: expected one true or false per sample and some that are true; mend it"
            )

    x, present = {}, {}
    for name in config.images:
        key = f"data.images.{name}"
        x[name] = _to_images(0 if key in tables else config.dimensions, key, arrays[key])
        present[name] = arrays.get(f"data.present.{name}", np.ones(num, dtype=bool))
        if key in tables:
            present[name] = present[name] & ~np.isnan(x[name]).all(axis=1)
    check_present(present, "data.present")
    labels = {name: arrays[f"data.labels.{name}"] for name in config.labels}
    groups = _names(arrays.get("data.groups", np.arange(num)))
    ids = [f"{group}-{row}" if config.groups else str(row) for row, group in enumerate(groups)]
    given = _names(arrays["data.split"]).tolist() if config.split else None
    channels = {name: _channels(f"data.images.{name}", place, find, load) for name, place in config.images.items()}
    return Rows(x, present, ids, groups, labels, given, channels)


def _names(array: np.ndarray) -> np.ndarray:
    return np.char.decode(array, "latin1") if array.dtype.kind == "S" else array.astype(str)


def _to_images(dimensions: int, key: str, array: np.ndarray) -> np.ndarray:
    """Return `array` as images `(N, C, *size)` of the stored type; a mask as 0 and 1."""
    if array.ndim - dimensions not in (1, 2) or not array.size:
        size = ", ".join(["N", *"DHW"[3 - dimensions :]])
        raise MandorlaError(
            f"{key}: an array of shape {array.shape} holds no images of {dimensions} dimensions; it must be"
            f" ({size}) or ({size}, C), or data.dimensions another number"
        )
    if array.dtype.kind not in "biuf":
        raise MandorlaError(f"{key}: {array.dtype} values are no pixels: store integers or floats")
    array = array[:, None] if array.ndim == dimensions + 1 else np.moveaxis(array, -1, 1)
    if array.dtype == bool:
        return array.astype(np.float32)
    return array if isinstance(array, np.memmap) else np.ascontiguousarray(array)  # an .npy may not fit into memory


def _read_all(key: str, places: Places | tuple[str | None, ...], find: Find, load: Load) -> list[np.ndarray | None]:
    """Return the arrays called `places`, the value of the setting `key`, one for each file."""
    places = (places,) if isinstance(places, str) else places
    if not places:
        raise MandorlaError(f"{key}: an empty list; name an array for each file")
    as_text = key in ("data.groups", "data.split")
    return [None if place is None else read_array(place, find, key, as_text, load) for place in places]


def _join(key: str, arrays: list[np.ndarray | None], first: str, lengths: list[int]) -> np.ndarray:
    """Return the `arrays` of one setting one after the other; `lengths` are those of the setting `first`."""
    of_files = zip(arrays, chain(lengths, repeat(0)), strict=False)
    arrays = [np.ones(length, dtype=bool) if array is None else array for array, length in of_files]
    own = [len(array) for array in arrays]
    if own != lengths:
        text, expected = (" + ".join(map(str, numbers)) for numbers in (own, lengths))
        raise MandorlaError(f"{key}: {text} samples where {first} has {expected}; mend the files")
    kinds = {(array.shape[1:], array.dtype.kind if array.dtype.kind in "SU" else array.dtype) for array in arrays}
    if len(kinds) > 1:
        texts = " and ".join(f"{dtype} {list(shape)}" for shape, dtype in kinds)
        raise MandorlaError(f"{key}: samples of one file are unlike those of another ({texts}); make them alike")
    return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]


def read_array(name: str, find: Find, key: str, as_text: bool = False, load: Load | None = None) -> np.ndarray:
    """Return the array called `name`, such as `scans.npz:x:2`, or columns of a table, in the file that `find` finds.

    Cells of a table are names if they are taken `as_text`; `load` reads a file.

    Raises `MandorlaError`, which names `key` or the file, where there is none.
    """
    load = load or _load
    if match := TABLE.fullmatch(name):
        path = find(match["file"])
        columns = load(path, None)
        return _columns(columns, _wanted(columns, match["columns"], path), path, as_text)
    match = NAME.fullmatch(name)
    if match is None:
        raise MandorlaError(
            f"{key}: {name!r} names no array; write FILE.npz:KEY, FILE.npz:KEY:CHANNEL, FILE.npy or FILE.csv:COLUMN,..."
        )
    path = find(match["npz"] or match["npy"])
    array = load(path, match["key"])
    if match["by"]:
        rows = load(path, match["by"])
        if rows.ndim != 1 or rows.dtype.kind not in "iu" or not len(rows) or rows.min() < 0 or rows.max() >= len(array):
            raise MandorlaError(
                f"{key}: {match['by']} holds no row numbers of {match['key']}: give integers from 0 to {len(array) - 1}"
            )
        array = array[rows]
    part = match["part"]
    if part is None:
        return array
    if part == "bits":
        if array.dtype != np.uint8 or array.ndim < 2:
            raise MandorlaError(f"{key}: packed bits are uint8 with two axes or more, not {array.dtype} {array.shape}")
        return np.unpackbits(array, axis=-1).astype(bool)
    if array.ndim < 2 or int(part) >= array.shape[-1]:
        raise MandorlaError(f"{key}: no channel {part} on the last axis of shape {array.shape}; it counts from 0")
    return array[..., int(part)]


def _tables(places: Places | tuple[str | None, ...] | None) -> tuple[str, ...]:
    """Return the tables that `places` name columns of."""
    names = (places,) if isinstance(places, str) else places or ()
    return tuple(match["file"] for name in names if name and (match := TABLE.fullmatch(name)))


def _channels(key: str, places: Places, find: Find, load: Load) -> tuple[str, ...]:
    """Return the names of the channels of a modality, the value of the setting `key`; none but in tables."""
    names: tuple[str, ...] = ()
    for match in filter(None, map(TABLE.fullmatch, (places,) if isinstance(places, str) else places)):
        path = find(match["file"])
        own = _wanted(load(path, None), match["columns"], path)
        if names and own != names:
            raise MandorlaError(f"{key}: {path} has the columns {', '.join(own)}, not {', '.join(names)}; name them")
        names = own
    return names


def _wanted(columns: Mapping[str, Sequence[str]], wanted: str | None, path: Path) -> tuple[str, ...]:
    """Return the names of the columns of a table that are `wanted`, as in the key of a place; all where it is None."""
    names: list[str] = []
    for word in [*columns] if wanted is None else split_columns(wanted):
        found = [word] if word in columns else fnmatch.filter(columns, word)
        if not found:
            raise MandorlaError(f"{path}: no column {word!r}; it has {', '.join([*columns][:20])}")
        names += found
    return tuple(names)


def _columns(columns: Mapping[str, Sequence[str]], names: Sequence[str], path: Path, as_text: bool) -> np.ndarray:
    """Return the columns `names` of a table: of one `(N,)`, of several `(N, C)`.

    Cells are names if they are taken `as_text`, or if a single column is not of numbers.
    """
    read = [list(columns[name]) if as_text else to_values(columns[name]) for name in names]
    for name, values in zip(names, read, strict=True):
        text = next((value for value in values if isinstance(value, str)), None)
        if as_text and "" in values:
            raise MandorlaError(f"{path}: column {name!r} is empty in row {values.index('') + 1}; fill it")
        if len(names) > 1 and text is not None and not as_text:
            raise MandorlaError(
                f"{path}: column {name!r} holds {text!r}, no number; name those to take, as in FILE.csv:A,B"
            )
        values[:] = [(np.nan if text is None else "") if value is None else value for value in values]
    return np.array(read[0]) if len(read) == 1 else np.array(read).T


def _load(path: Path, key: str | None) -> np.ndarray | dict[str, list[str]]:
    """Return an array, or all columns of a table."""
    return read_table(path)[0] if TABLE.fullmatch(path.name) else load_array(path, key)


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
