"""The latents of a run, computed once: what stage 2 trains on. No image is touched again.

    latents/manifest.json              hashes of the stage-1 weights and of the data, shapes, numbers of samples
    latents/train-00000.npy, ...       shards, memory-mapped: a record for each of `rows` samples, the last of the rest
    latents/val-00000.npy, ...
    latents/statistics.safetensors     whitening: mean and standard deviation per channel, over the training set

A record has the fields `shared`: c, pooled over the modalities present; NAME and NAME.std: mean and standard deviation
of q(u | x, c); `present`: bool (M,). Behind a shard's records stands their CRC-32, 4 bytes, the lowest first; the
statistics have one too.

After the records of all samples there may be `copies` of them (`vae.copies`), whose c is pooled over a random subset of
the modalities present: what a translation knows. Of c read from the wanted modality too, stage 2 learns to be surer of
that modality than whoever has not seen it can be. Copies of training samples are augmented as stage 1's batches are.

Any number of processes may write one cache, on one machine or on several that share a folder: each takes the next shard
that is not there and that no other holds. A shard appears whole, and a process that is killed lets go of the one that
it held, so that another process, or a later call, writes it. Whoever finds all shards there writes the statistics, from
the first sample to the last: they are the same whoever wrote the shards, and with them the cache is complete. Before
it writes, a process looks whether the manifest is still that of the weights and data that it encodes with.
"""

import json
import math
import shutil
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mandorla.checkpoint import checksum, load_tensors, save_tensors
from mandorla.data import follow_record, load_data
from mandorla.data.augment import Augment, AugmentConfig, augment_of
from mandorla.data.dataset import CHUNK, Batch, Dataset, Splits, at_rows, pieces, rows_of
from mandorla.data.random import Draws
from mandorla.data.record import accept_data, recorded_fingerprint
from mandorla.device import choose_device, own_random
from mandorla.errors import MandorlaError
from mandorla.latents import SHARED, Components, Latents, Layout, Whitening
from mandorla.parallel import rank, world
from mandorla.progress import progress_bar
from mandorla.recipe import Recipe, read_run
from mandorla.storage import locked, read_json, whole, write_text
from mandorla.vae.model import VAE, pool, random_subsets
from mandorla.vae.store import load_vae

FOLDER, MANIFEST, STATISTICS = "latents", "manifest.json", "statistics.safetensors"
LOCK = ".latents.lock"  # in the run folder; held while a cache is begun or completed
_MOST = 512  # samples that are encoded, or drawn, at once
_PER_SHARD = 8  # times as many as are encoded at once


@dataclass(frozen=True)
class Encoded:
    """Hold B encoded samples: posterior means in `latents`, by modality standard deviations and presence `(B,)`.

    Where a modality is missing its mean and standard deviation are zero.
    """

    latents: Latents
    std: dict[str, Tensor]
    present: dict[str, Tensor]

    def draw(self, noise: Components | None = None) -> Components:
        """Draw all components: c as it is, u from its posterior, by standard normal `noise`, if it is given."""
        means = self.latents.private
        noise = noise or {name: torch.randn_like(mean) for name, mean in means.items()}
        return {SHARED: self.latents.shared} | {name: z + self.std[name] * noise[name] for name, z in means.items()}

    @property
    def given(self) -> dict[str, Tensor]:
        """Return which components exist, bool `(B,)`: the shared one where any modality is present."""
        return {SHARED: torch.stack(list(self.present.values())).any(0)} | self.present


@torch.no_grad()
def encode_batch(
    vae: VAE, x: dict[str, Tensor], present: dict[str, Tensor], pooled: dict[str, Tensor] | None = None
) -> Encoded:
    """Encode `x[name]` `(B, C, *size)` in [0, 1]; `present[name]` is bool `(B,)`, each sample needs one modality.

    c is read from the `pooled` ones, by default from all that are present.
    """
    features, codes = vae.encode(x, present)
    shared = pool(codes, pooled or present)
    mean, std = {}, {}
    for name, rows in present.items():
        mu, log_std = vae.posterior(name, features[name], rows_of(shared, rows))
        mean[name], std[name] = at_rows(mu, rows), at_rows(log_std.exp(), rows)
    return Encoded(Latents(shared, mean), std, present)


def write_latents(run: Path, splits: Splits | None = None) -> None:
    """Encode the run's whole training and validation set with its stage 1, as far as that is not done, with others.

    `splits` are the run's data where they are at hand. Returns when the cache is complete, whoever wrote it; one of
    other weights or other data is replaced. Raises MandorlaError if `run` is not a run folder, its stage 1 is not
    trained, or the disk is full.
    """
    vae, weights = load_vae(run)
    recipe = read_run(run)
    splits = splits or follow_record(run, load_data(recipe.data, recipe.seed))
    with locked(run / LOCK, wait=True):
        accept_data(run, splits)  # first, so that a cache of other data is refused if this is interrupted
    parts, folder = {"train": splits.train, "val": splits.val}, run / FOLDER
    at_once = min(_MOST, max(1, CHUNK // sum(math.prod(m.shape) for m in splits.modalities)))
    manifest = {
        "weights": weights,
        "data": splits.fingerprint,
        "shapes": {name: list(shape) for name, shape in vae.layout.shapes.items()},
        "num": {name: len(part) for name, part in parts.items()},
        "rows": at_once * _PER_SHARD,
        **_copies_of(recipe),
    }
    strengths = {"train": augment_of(recipe.data), "val": AugmentConfig()}
    augments = {name: Augment(config, splits.modalities, recipe.seed) for name, config in strengths.items()}
    sources = {name: _WithCopies(part, augments[name]) for name, part in parts.items()}
    with locked(run / LOCK, wait=True):
        if _manifest(folder) != manifest:
            _begin(folder, manifest)
    shards = [shard for name in parts for shard in _shards(folder, name, manifest)]
    vae = vae.to(choose_device(recipe.device))
    for wait, title in ((False, "latents"), (True, "latents that others write")):
        missing = [shard for shard in shards if not shard.is_whole(vae.layout, checked=not wait)]
        with progress_bar() as bar:
            for shard in bar.track(missing, description=title):
                _write_shard(shard, vae, sources[shard.part], at_once, wait, manifest)
    with _own(folder, manifest):
        try:
            _read_statistics(folder)
        except MandorlaError:  # none are there, or damaged ones
            train = LatentPart(folder, "train", vae.layout, manifest)
            tensors = Whitening.fit(vae.layout, train.drawn()).tensors()
            save_tensors(folder / STATISTICS, tensors, {"checksum": str(checksum(tensors))})
        for lock in folder.glob("*.lock"):
            lock.unlink()


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
            for number, shard in enumerate(_shards(folder, part, manifest))
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


def open_latents(run: Path, checked: bool = False) -> tuple[dict[str, LatentPart], Whitening]:
    """Return the cached parts "train" and "val" of a run and their whitening; a training wants all bytes `checked`.

    Raises MandorlaError if they are not complete or damaged, or were made by other weights or of other data than the
    run's.
    """
    vae, weights = load_vae(run)
    folder = run / FOLDER
    manifest = _manifest(folder)
    if not (manifest and (folder / STATISTICS).is_file()):
        raise MandorlaError(f"{folder} has no latents, or not all of them: run `mandorla encode {run}`")
    if manifest["weights"] != weights:
        raise MandorlaError(f"{folder} was made by other weights than {run / 'vae'} holds: run `mandorla encode {run}`")
    if not manifest.items() >= _copies_of(read_run(run)).items():
        raise MandorlaError(
            f"{folder} was made with other vae.copies or data.augment than the run has: run `mandorla encode {run}`"
        )
    if manifest["data"] != recorded_fingerprint(run):
        raise MandorlaError(f"{folder} was made of other data than the run's: run `mandorla encode {run}`")
    whitening = _read_statistics(folder)
    return {name: LatentPart(folder, name, vae.layout, manifest, checked) for name in manifest["num"]}, whitening


def record(layout: Layout) -> np.dtype:
    """Return the type of a sample's record, as the module says."""
    fields = [(SHARED, np.float32, layout.shapes[SHARED])]
    for name in layout.modalities:
        fields += [(name, np.float32, layout.shapes[name]), (f"{name}.std", np.float32, layout.shapes[name])]
    return np.dtype([*fields, ("present", bool, (len(layout.modalities),))], align=True)


@dataclass(frozen=True)
class _Shard:
    """Name a shard: the file `path`, which holds the records from `start` to `stop` of a `part` of the data."""

    path: Path
    part: str
    start: int
    stop: int

    def open(self, layout: Layout, checked: bool = False) -> np.ndarray:
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
        try:
            self.open(layout, checked)
        except MandorlaError:
            return False
        return True

    def _sum_behind(self, records: np.memmap) -> bytes:
        with self.path.open("rb") as file:
            file.seek(records.offset + records.nbytes)
            return file.read()


def _sum(records: np.ndarray) -> bytes:
    return zlib.crc32(records.view(np.uint8)).to_bytes(4, "little")


def _shards(folder: Path, part: str, manifest: dict) -> list[_Shard]:
    num, rows = manifest["num"][part] * manifest["copies"], manifest["rows"]
    return [
        _Shard(folder / f"{part}-{number:05d}.npy", part, start, min(start + rows, num))
        for number, start in enumerate(range(0, num, rows))
    ]


def _manifest(folder: Path) -> dict:
    """Return what the manifest of a cache says; empty if there is none, or one of an earlier form."""
    manifest = {"copies": 1} | (read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {})
    return manifest if manifest.keys() >= {"weights", "data", "num", "rows"} else {}


def _read_statistics(folder: Path) -> Whitening:
    tensors, metadata = load_tensors(folder / STATISTICS)
    if metadata.get("checksum") not in (None, str(checksum(tensors))):  # earlier versions wrote none
        raise MandorlaError(f"{folder / STATISTICS} is damaged: run `mandorla encode {folder.parent}`")
    return Whitening.of_tensors(tensors)


@contextmanager
def _own(folder: Path, manifest: dict) -> Iterator[None]:
    """Keep other commands from beginning another cache; raise MandorlaError if one has."""
    with locked(folder.parent / LOCK, wait=True):
        if _manifest(folder) != manifest:
            raise MandorlaError(
                f"{folder}: stage 1 was trained anew, or its data changed, while this command encoded by what was"
                f" before: run `mandorla encode {folder.parent}`"
            )
        yield


def _begin(folder: Path, manifest: dict) -> None:
    (folder / MANIFEST).unlink(missing_ok=True)  # first: what is left if this is interrupted is no cache
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1))


@dataclass(frozen=True)
class _WithCopies:
    """Give the images of `dataset` as they are, and at indices beyond its length copies of them, each augmented.

    Where the dataset is, on the CPU as a rule, so that a cache does not depend on the machine.
    """

    dataset: Dataset
    augment: Augment

    def __len__(self) -> int:
        return len(self.dataset)

    def are_copies(self, indices: np.ndarray) -> Tensor:
        return torch.from_numpy(indices >= len(self))

    def batch(self, indices: np.ndarray) -> Batch:
        batch, copied = replace(self.dataset.batch(indices % len(self)), factors={}), self.are_copies(indices)
        if not copied.any():
            return batch
        changed = self.augment(batch, indices, 0).x
        rows = {name: copied.view(-1, *[1] * (z.ndim - 1)) for name, z in batch.x.items()}
        return replace(batch, x={name: torch.where(rows[name], changed[name], z) for name, z in batch.x.items()})


def _copies_of(recipe: Recipe) -> dict:
    """Return what the manifest says of copies."""
    copies = recipe.vae.copies
    return {"copies": copies} | ({"augment": augment_of(recipe.data).model_dump(mode="json")} if copies > 1 else {})


def _write_shard(shard: _Shard, vae: VAE, dataset: _WithCopies, at_once: int, wait: bool, manifest: dict) -> None:
    """Write a shard, unless it is there by now or, if it is not to `wait`, another process is at it."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(shard.path.with_suffix(".lock"), wait))
        except MandorlaError:  # of another process
            return
        if shard.is_whole(vae.layout):
            return
        records = np.zeros(shard.stop - shard.start, record(vae.layout))
        for start in range(shard.start, shard.stop, at_once):
            stop = min(start + at_once, shard.stop)
            _encode(vae, dataset, np.arange(start, stop), records[start - shard.start : stop - shard.start])
        with _own(shard.path.parent, manifest), whole(shard.path) as part, part.open("wb") as file:
            np.lib.format.write_array(file, records, version=(3, 0))  # names of fields in any script
            file.write(_sum(records))


def _encode(vae: VAE, dataset: _WithCopies, indices: np.ndarray, records: np.ndarray) -> None:
    """Encode the samples of which the records at `indices` are; copies from a subset that follows from the index."""
    batch = dataset.batch(indices).to(next(vae.parameters()).device)
    copied = dataset.are_copies(indices)
    subsets = random_subsets(batch.present, torch.from_numpy(Draws(0, indices, "subset").uniform()))
    pooled = {name: torch.where(copied, subsets[name], there) for name, there in batch.present.items()}
    encoded = encode_batch(vae, batch.x, batch.present, pooled)
    columns = encoded.latents.components | {f"{name}.std": std for name, std in encoded.std.items()}
    columns["present"] = torch.stack([batch.present[name] for name in vae.layout.modalities], 1)
    for name, z in columns.items():
        records[name] = z.cpu().numpy()
