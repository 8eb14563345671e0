"""The latents of a run, computed once: what stage 2 trains on. No image is touched again.

    latents/manifest.json              hashes of the stage-1 weights and of the data, shapes, numbers of samples
    latents/train-00000.npy, ...       shards, memory-mapped: a record for each of `rows` samples, the last of the rest
    latents/val-00000.npy, ...
    latents/statistics.safetensors     whitening: mean and standard deviation per channel, over the training set

A record has the fields `shared`: c, pooled over the modalities present; NAME and NAME.std: mean and standard deviation
of q(u | x, c); `present`: bool (M,). Behind a shard's records stands their CRC-32, 4 bytes, the lowest first; the
statistics have one too. After the records of all samples there may be those of copies of them, whose c is pooled over a
part of the modalities present; `mandorla.vae.encoding` writes all this and says what for.
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mandorla.checkpoint import checksum, load_tensors, save_tensors
from mandorla.data.augment import augment_of
from mandorla.data.dataset import pieces
from mandorla.data.record import recorded_fingerprint
from mandorla.device import own_random
from mandorla.errors import MandorlaError
from mandorla.latents import SHARED, Components, Encoded, Latents, Layout, Whitening
from mandorla.parallel import rank, world
from mandorla.recipe import Recipe
from mandorla.storage import read_json, whole

FOLDER, MANIFEST, STATISTICS = "latents", "manifest.json", "statistics.safetensors"
_MOST = 512  # samples that are drawn at once


class LatentPart:
    """Read the cached latents of one part of the data, "train" or "val", by index.

    Record i is of sample i, and so is every `num_samples`-th after it, if samples have copies; `copied` says how these
    were made, empty if there are none. Raises MandorlaError if a shard is missing or damaged; its bytes are `checked`
    on request, by processes that work together each a part of the shards.
    """

    def __init__(self, folder: Path, part: str, layout: Layout, manifest: dict, checked: bool = False):
        self.layout, self.rows, self.record = layout, manifest["rows"], record(layout)
        self.num_samples, self.copies = manifest["num"][part], manifest["copies"]
        self.copied = f", {self.copies} copies {json.dumps(manifest['augment'])}" if self.copies > 1 else ""
        shards = [
            shard.open(layout, checked and number % world() == rank())
            for number, shard in enumerate(shards_of(folder, part, manifest))
        ]
        size = self.record.itemsize  # records are copied as bytes, which is faster
        self.shards = [np.asarray(shard).view(np.uint8).reshape(-1, size) for shard in shards]

    def __len__(self) -> int:
        return self.num_samples * self.copies

    def batch(self, indices: np.ndarray) -> Encoded:
        """Return the records at `indices`, in that order."""
        numbers, rows = np.divmod(indices, self.rows)
        taken = np.empty((len(numbers), self.record.itemsize), np.uint8)
        for number in np.unique(numbers):
            here = np.flatnonzero(numbers == number)
            taken[here] = self.shards[number][rows[here]]
        records = taken.view(self.record)[:, 0]
        z = {name: torch.from_numpy(records[name]) for name in self.record.names}
        names = self.layout.modalities
        return Encoded(
            Latents(z[SHARED], {name: z[name] for name in names}),
            {name: z[f"{name}.std"] for name in names},
            dict(zip(names, z["present"].unbind(1), strict=True)),
        )

    def drawn(self) -> Iterator[tuple[Components, dict[str, Tensor]]]:
        """Yield every record once, in chunks: components drawn from their posteriors, and which of them exist."""
        with own_random(0):
            for rows in pieces(np.arange(len(self)), _MOST):
                encoded = self.batch(rows)
                yield encoded.draw(), encoded.given


def open_latents(
    run: Path, recipe: Recipe, layout: Layout, weights: str, checked: bool = False
) -> tuple[dict[str, LatentPart], Whitening]:
    """Return the cached parts "train" and "val" of a run and their whitening; a training wants all bytes `checked`.

    `recipe` is the run's own, `layout` that of its latents, `weights` the hash of its stage 1. Raises MandorlaError if
    the cache is not complete or damaged, or was made by other weights or of other data than the run's.
    """
    folder = run / FOLDER
    manifest = read_manifest(folder)
    if not (manifest and (folder / STATISTICS).is_file()):
        raise MandorlaError(f"{folder} has no latents, or not all of them: run `mandorla encode {run}`")
    if manifest["weights"] != weights:
        raise MandorlaError(f"{folder} was made by other weights than {run / 'vae'} holds: run `mandorla encode {run}`")
    if not manifest.items() >= copies_of(recipe).items():
        raise MandorlaError(
            f"{folder} was made with other vae.copies or data.augment than the run has: run `mandorla encode {run}`"
        )
    if manifest["data"] != recorded_fingerprint(run):
        raise MandorlaError(f"{folder} was made of other data than the run's: run `mandorla encode {run}`")
    whitening = read_statistics(folder)
    return {name: LatentPart(folder, name, layout, manifest, checked) for name in manifest["num"]}, whitening


def record(layout: Layout) -> np.dtype:
    """Return the type of a sample's record, as the module says."""
    fields = [(SHARED, np.float32, layout.shapes[SHARED])]
    for name in layout.modalities:
        fields += [(name, np.float32, layout.shapes[name]), (f"{name}.std", np.float32, layout.shapes[name])]
    return np.dtype([*fields, ("present", bool, (len(layout.modalities),))], align=True)


@dataclass(frozen=True)
class Shard:
    """Name a shard: the file `path`, which holds the records from `start` to `stop` of a `part` of the data."""

    path: Path
    part: str
    start: int
    stop: int

    def open(self, layout: Layout, checked: bool = False) -> np.ndarray:
        """Return the records. Raises MandorlaError if they are missing or damaged, `checked` in all bytes."""
        try:
            records = np.load(self.path, mmap_mode="r")
            if (records.dtype, records.shape) != (record(layout), (self.stop - self.start,)):
                raise ValueError(f"{records.shape} records of {records.dtype}")
            if checked and self._sum_behind(records) not in (b"", _sum(records)):  # earlier versions wrote none
                raise ValueError("bytes have changed")
        except (EOFError, OSError, ValueError) as error:
            again = f"run `mandorla encode {self.path.parents[1]}`"
            raise MandorlaError(f"{self.path} is missing or damaged ({error}): {again}") from error
        return records

    def is_whole(self, layout: Layout, checked: bool = True) -> bool:
        """Return whether the records are there, `checked` in all bytes."""
        try:
            self.open(layout, checked)
        except MandorlaError:
            return False
        return True

    def write(self, records: np.ndarray) -> None:
        """Write the records, all or none."""
        with whole(self.path) as part, part.open("wb") as file:
            np.lib.format.write_array(file, records, version=(3, 0))  # names of fields in any script
            file.write(_sum(records))

    def _sum_behind(self, records: np.memmap) -> bytes:
        with self.path.open("rb") as file:
            file.seek(records.offset + records.nbytes)
            return file.read()


def _sum(records: np.ndarray) -> bytes:
    return zlib.crc32(records.view(np.uint8)).to_bytes(4, "little")


def shards_of(folder: Path, part: str, manifest: dict) -> list[Shard]:
    """Return the shards of one part of the data, there or not."""
    num, rows = manifest["num"][part] * manifest["copies"], manifest["rows"]
    return [
        Shard(folder / f"{part}-{number:05d}.npy", part, start, min(start + rows, num))
        for number, start in enumerate(range(0, num, rows))
    ]


def read_manifest(folder: Path) -> dict:
    """Return what the manifest of a cache says; empty if there is none, or one of an earlier form."""
    manifest = {"copies": 1} | (read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {})
    return manifest if manifest.keys() >= {"weights", "data", "num", "rows"} else {}


def write_statistics(folder: Path, whitening: Whitening) -> None:
    """Write the whitening of a cache."""
    tensors = whitening.tensors()
    save_tensors(folder / STATISTICS, tensors, {"checksum": str(checksum(tensors))})


def read_statistics(folder: Path) -> Whitening:
    """Return the whitening of a cache. Raises MandorlaError if it is missing or damaged."""
    tensors, metadata = load_tensors(folder / STATISTICS)
    if metadata.get("checksum") not in (None, str(checksum(tensors))):  # earlier versions wrote none
        raise MandorlaError(f"{folder / STATISTICS} is damaged: run `mandorla encode {folder.parent}`")
    return Whitening.of_tensors(tensors)


def copies_of(recipe: Recipe) -> dict:
    """Return what the manifest of a run's cache says of copies."""
    copies = recipe.vae.copies
    return {"copies": copies} | ({"augment": augment_of(recipe.data).model_dump(mode="json")} if copies > 1 else {})
