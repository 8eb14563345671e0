"""Packed data: any source as a few large files in the WebDataset format, for many nodes and shared or remote disks.

    <folder>/index.json         modalities, parts, shards, intensity, classes, where the data come from
    <folder>/index.npz          of each sample: name, group, presence, labels, and where its arrays lie
    <folder>/train-000000.tar   samples: `00000000.t1.npy`, ..., `00000000.json` with name, group and labels
    <folder>/SHA256SUMS         of all these; `sha256sum -c SHA256SUMS` tells whether a copy is whole

Values are packed as they are stored and parts as they were divided, with the intensity that was read off the training
part, so that training on shards is training on their source, bit by bit. The tars are plain WebDataset, which other
programs can stream. Here they are memory-mapped, and a sample is read where the index says that it lies: which samples
are in a batch follows from seed and step alone, wherever and by however many it is read. Many small files become few
large ones; a batch touches only the pages of its own samples.

Reference: the WebDataset format, https://github.com/webdataset/webdataset.
"""

import io
import json
import math
import mmap
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mandorla.data.augment import AugmentConfig
from mandorla.data.dataset import Batch, Dataset, Modality, Splits, pieces
from mandorla.data.intensity import Fitted
from mandorla.data.root import RootedConfig
from mandorla.data.splits import PARTS
from mandorla.data.stored import StoredDataset
from mandorla.errors import MandorlaError
from mandorla.optional import library
from mandorla.progress import progress_bar
from mandorla.storage import read_json, whole_folder

INDEX, ARRAYS, SUMS = "index.json", "index.npz", "SHA256SUMS"
VERSION = 1
_ROWS = 64  # samples that are fetched at once while packing
_OPEN = 256  # shards that are mapped at once
_PARTS_OF_INDEX = (
    *("version", "source", "stored", "num", "modalities", "labels", "arrays", "shards"),
    *("intensity", "classes", "contents", "fingerprint", "index"),
)


class ShardsConfig(RootedConfig):
    """Name the folder of `shards`, as written by `mandorla data pack`."""

    kind: Literal["shards"] = "shards"
    folder: str
    """Folder with `index.json` and the shards."""
    augment: AugmentConfig = AugmentConfig()
    """How training images are changed at random: those of stage 1, and copies of them (`vae.copies`)."""


# ---------------------------------------------------------------------------------------------------------------- pack


def pack(splits: Splits, out: Path, source: Mapping[str, Any], shard_mib: int) -> None:
    """Write `splits` into the new folder `out`, in shards of about `shard_mib` MiB; `source` says what was packed.

    The folder appears under its name when all of it is written. Raises `MandorlaError` if it exists, another command
    is writing it, or `webdataset` is not installed.
    """
    writer = library("webdataset", "stream").TarWriter
    if out.exists():
        raise MandorlaError(f"{out} exists already: choose another folder, or delete it")
    with whole_folder(out) as folder:
        _write(splits, folder, dict(source), shard_mib * 2**20, writer)


@dataclass(frozen=True)
class _Row:
    """Hold one sample: `arrays` with axes of their own, which become members of a tar, and `values` without."""

    name: str
    group: str
    arrays: dict[str, np.ndarray]
    values: dict[str, Any]
    present: dict[str, bool]


def _write(splits: Splits, folder: Path, source: dict, shard_bytes: int, writer: type) -> None:
    members: dict[str, str] = {}  # how a modality or label is called in the tars
    kinds: dict[str, tuple[str, list[int]]] = {}
    labels = splits.train.labels if isinstance(splits.train, StoredDataset) else splits.train.batch([0]).factors
    rows: list[_Row] = []  # without their arrays
    offsets: list[dict[str, int]] = []
    numbers: list[int] = []
    shards: list[dict[str, Any]] = []
    for part, dataset in splits.parts.items():
        waiting = _shown(_rows(dataset), len(dataset), part)
        row = next(waiting, None)
        while row is not None:
            path = folder / f"{part}-{sum(shard['name'].startswith(part) for shard in shards):06d}.tar"
            with open(path, "wb") as file, writer(file, encoder=False, mtime=0) as tar:
                size = 0
                while row is not None and (size == 0 or size < shard_bytes):
                    sample: dict[str, Any] = {"__key__": f"{len(rows):08d}", "json": _meta(row, splits.classes)}
                    for name, array in row.arrays.items():
                        kinds.setdefault(name, (array.dtype.str, list(array.shape)))
                        sample[f"{_member(name, members)}.npy"] = _npy(array)
                    size += tar.write(sample)
                    rows.append(_Row(row.name, row.group, {}, row.values, row.present))
                    numbers.append(len(shards))
                    row = next(waiting, None)
            offsets += _offsets(path, {f"{member}.npy": name for name, member in members.items()})
            shards.append({"name": path.name, "bytes": path.stat().st_size})
    arrays = {
        "ids": np.array([row.name for row in rows]),
        "groups": np.array([row.group for row in rows]),
        "shard": np.array(numbers, np.int32),
    }
    arrays |= {f"present/{m.name}": np.array([row.present[m.name] for row in rows]) for m in splits.modalities}
    arrays |= {f"value/{name}": np.array([row.values[name] for row in rows]) for name in rows[0].values}
    arrays |= {f"offset/{name}": np.array([at.get(name, -1) for at in offsets], np.int64) for name in kinds}
    np.savez_compressed(folder / ARRAYS, **arrays)
    index = {
        "version": VERSION,
        "source": source,
        "stored": isinstance(splits.train, StoredDataset),
        "num": {part: len(dataset) for part, dataset in splits.parts.items()},
        "modalities": [m.name for m in splits.modalities],
        "labels": list(labels),
        "arrays": {name: {"type": dtype, "shape": shape} for name, (dtype, shape) in kinds.items()},
        "shards": shards,
        "intensity": {name: fitted.to_json() for name, fitted in splits.intensity.items()},
        "classes": {name: list(names) for name, names in splits.classes.items()},
        "contents": splits.contents,
        "fingerprint": splits.fingerprint,
        "index": _sum(folder / ARRAYS),
    }
    (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    sums = [f"{_sum(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / SUMS).write_text("".join(sums), encoding="utf-8")


def _rows(dataset: Dataset) -> Iterator[_Row]:
    """Yield the samples of a part in order, images as they are stored."""
    for here in pieces(np.arange(len(dataset)), _ROWS):
        if isinstance(dataset, StoredDataset):
            rows = dataset.rows[here]
            images = {name: stored[rows] for name, stored in dataset.x.items()}
            known = {name: values[rows] for name, values in dataset.labels.items()}
            present = {name: mask[rows] for name, mask in dataset.present.items()}
            ids, groups = [dataset.ids[index] for index in here], dataset.groups[here]
        else:
            batch = dataset.batch(here)
            images = {name: x.numpy() for name, x in batch.x.items()}
            known = {name: np.asarray(values) for name, values in batch.factors.items()}
            present = {name: mask.numpy() for name, mask in batch.present.items()}
            ids, groups = batch.ids, batch.ids
        for k in range(len(here)):
            arrays = {name: values[k] for name, values in images.items() if present[name][k]}
            arrays |= {f"label/{name}": values[k] for name, values in known.items() if values.ndim > 1}
            values = {name: values[k] for name, values in known.items() if values.ndim == 1}
            yield _Row(str(ids[k]), str(groups[k]), arrays, values, {n: bool(mask[k]) for n, mask in present.items()})


def _shown(rows: Iterator[_Row], total: int, part: str) -> Iterator[_Row]:
    with progress_bar() as bar:
        yield from bar.track(rows, total, description=f"packing {part}")


def _meta(row: _Row, classes: Mapping[str, Sequence[str]]) -> bytes:
    """Return what other programs may want to know of a sample; a class by its name."""
    labels = {}
    for name, value in row.values.items():
        value = value.item() if isinstance(value, np.generic) else value
        known = value >= 0 if name in classes else math.isfinite(value)
        labels[name] = None if not known else classes[name][value] if name in classes else value
    return json.dumps({"id": row.name, "group": row.group, "labels": labels}).encode()


def _member(name: str, members: dict[str, str]) -> str:
    """Return a name that WebDataset keeps as it is, and note it in `members`."""
    if name not in members:
        plain = re.sub(r"[^a-z0-9_-]+", "_", name.lower())[:40] or "_"
        members[name] = plain if plain not in members.values() else f"{plain}_{len(members)}"
    return members[name]


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    buffer.write(_head(array.dtype.str, array.shape))
    buffer.write(np.ascontiguousarray(array).tobytes())
    return buffer.getvalue()


def _head(dtype: str, shape: Sequence[int]) -> bytes:
    """Return the beginning of an `.npy` file, before its values."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": tuple(shape)})
    return buffer.getvalue()


def _offsets(path: Path, names: Mapping[str, str]) -> list[dict[str, int]]:
    """Return for each sample of a tar where its members, called `names[member]` here, begin."""
    found: dict[str, dict[str, int]] = {}
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            key, _, kind = member.name.partition(".")
            here = found.setdefault(key, {})
            if kind in names:
                here[names[kind]] = member.offset_data
    return list(found.values())


def _sum(path: Path) -> str:
    digest = sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------- read


class Shards:
    """Give the bytes of the shards in `folder`, memory-mapped."""

    def __init__(self, folder: Path, names: Sequence[str]):
        self.paths = [folder / name for name in names]
        self.mapped = lru_cache(maxsize=_OPEN)(self._map)

    def _map(self, number: int) -> mmap.mmap:
        with open(self.paths[number], "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class ShardArray:
    """Read one modality or label by row: an array `(N, *shape)` in `shards`, zeros where a sample has none.

    `numbers` and `offsets` (N,) say in which shard and where in it an `.npy` lies, -1 for none.
    """

    def __init__(self, shards: Shards, numbers: np.ndarray, offsets: np.ndarray, dtype: str, shape: Sequence[int]):
        self.shards, self.numbers, self.offsets = shards, numbers, offsets
        self.dtype, self.shape = np.dtype(dtype), (len(offsets), *shape)
        self.ndim = len(self.shape)
        self._head = _head(dtype, shape)

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        values = np.zeros((len(rows), *self.shape[1:]), self.dtype)
        size, head = int(np.prod(self.shape[1:], dtype=int)), self._head
        places = zip(self.numbers[rows].tolist(), self.offsets[rows].tolist(), strict=True)
        for place, (number, at) in enumerate(places):
            if at < 0:
                continue
            shard = self.shards.mapped(number)
            if shard[at : at + len(head)] != head:
                raise MandorlaError(f"{self.shards.paths[number]}: damaged at byte {at}; copy or pack it again")
            values[place] = np.frombuffer(shard, self.dtype, size, at + len(head)).reshape(self.shape[1:])
        return values


@dataclass
class PackedDataset:
    """Answer batches of a source that composes its samples: each as it was composed once.

    `x[name]`, `present[name]` and `factors[key]` are by row, of which this part has `rows`; `ids` are its own.
    """

    modalities: tuple[Modality, ...]
    x: dict[str, ShardArray]
    present: dict[str, np.ndarray]
    factors: dict[str, np.ndarray | ShardArray]
    ids: list[str]
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Return the samples at `indices`: each modality float32 `(B, C, *size)` in [0, 1]."""
        indices = np.asarray(indices, dtype=int)
        rows = self.rows[indices]
        return Batch(
            {name: torch.from_numpy(images[rows]) for name, images in self.x.items()},
            {name: torch.from_numpy(mask[rows]) for name, mask in self.present.items()},
            {name: values[rows] for name, values in self.factors.items()},
            [self.ids[index] for index in indices],
        )


def load_shards(config: ShardsConfig, seed: int) -> Splits:
    """Return the parts that were packed; the division and `seed` of that time stay.

    Raises `MandorlaError` if the index or a shard is missing, damaged, or not of the size that it had.
    """
    folder = config.locate(config.folder)
    index, arrays = read_index(folder), _read_arrays(folder)
    sizes = {folder / shard["name"]: shard["bytes"] for shard in index["shards"]}
    for path, size in sizes.items():
        if not path.is_file() or path.stat().st_size != size:
            raise MandorlaError(f"{path}: missing, or not of its {size} bytes; copy or pack it again")
    shards = Shards(folder, [shard["name"] for shard in index["shards"]])
    columns = {
        name: ShardArray(shards, arrays["shard"], arrays[f"offset/{name}"], kind["type"], kind["shape"])
        for name, kind in index["arrays"].items()
    }
    x = {name: columns[name] for name in index["modalities"]}
    present = {name: arrays[f"present/{name}"] for name in x}
    known = {
        name: columns[f"label/{name}"] if f"label/{name}" in columns else arrays[f"value/{name}"]
        for name in index["labels"]
    }
    intensity = {name: Fitted.of_json(tree) for name, tree in index["intensity"].items()}
    modalities = tuple(Modality(name, column.shape[1], column.shape[2:]) for name, column in x.items())
    parts, end = {}, 0
    for part in PARTS:
        rows = np.arange(end, end := end + index["num"][part])
        ids = arrays["ids"][rows].tolist()
        if index["stored"]:
            parts[part] = StoredDataset(x, present, intensity, known, ids, arrays["groups"][rows], rows)
        else:
            parts[part] = PackedDataset(modalities, x, present, known, ids, rows)
    classes = {name: tuple(names) for name, names in index["classes"].items()}
    splits = Splits(**parts, intensity=intensity, classes=classes, contents=index["contents"])
    if splits.fingerprint != index["fingerprint"]:
        raise MandorlaError(f"{folder / INDEX}: was changed since it was written; restore it, or pack again")
    return splits


def read_index(folder: Path) -> dict[str, Any]:
    """Return what `index.json` in a folder of shards says. Raises `MandorlaError` if it is none, or damaged."""
    if not (folder / INDEX).is_file():
        raise MandorlaError(f"{folder / INDEX}: no such file; give the folder that `mandorla data pack` wrote")
    index = read_json(folder / INDEX, *_PARTS_OF_INDEX)
    if index["version"] != VERSION:
        raise MandorlaError(f"{folder / INDEX}: of version {index['version']}, not {VERSION}; pack again")
    if not (folder / ARRAYS).is_file() or _sum(folder / ARRAYS) != index["index"]:
        raise MandorlaError(f"{folder / ARRAYS}: missing or damaged; copy or pack it again")
    return index


def _read_arrays(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
        return dict(arrays)
