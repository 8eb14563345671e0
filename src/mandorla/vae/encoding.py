"""Write the latents of a run, computed once: see `mandorla.latent_cache`.

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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mandorla.data import follow_record, load_data
from mandorla.data.augment import Augment, AugmentConfig, augment_of
from mandorla.data.dataset import CHUNK, Batch, Dataset, Splits
from mandorla.data.random import Draws
from mandorla.data.record import accept_data
from mandorla.device import choose_device
from mandorla.errors import MandorlaError
from mandorla.latent_cache import (
    FOLDER,
    MANIFEST,
    LatentPart,
    Shard,
    copies_of,
    read_manifest,
    read_statistics,
    record,
    shards_of,
    write_statistics,
)
from mandorla.latents import Whitening, column
from mandorla.progress import progress_bar
from mandorla.recipe import read_run
from mandorla.storage import locked, write_text
from mandorla.vae.model import VAE, encode_batch, random_subsets
from mandorla.vae.store import load_vae

LOCK = ".latents.lock"  # in the run folder; held while a cache is begun or completed
_MOST = 512  # samples that are encoded at once
_PER_SHARD = 8  # times as many as are encoded at once


def write_latents(run: Path, splits: Splits | None = None) -> None:
    """Encode the run's whole training and validation set with its stage 1, as far as that is not done, with others.

    `splits` are the run's data where they are at hand. Returns when the cache is complete, whoever wrote it; one of
    other weights or other data is replaced. Raises MandorlaError if `run` is not a run folder, its stage 1 is not
    trained, or the disk is full.
    """
    recipe = read_run(run)
    vae, weights = load_vae(run, recipe.vae.model)
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
        **copies_of(recipe),
    }
    strengths = {"train": augment_of(recipe.data), "val": AugmentConfig()}
    augments = {name: Augment(config, splits.modalities, recipe.seed) for name, config in strengths.items()}
    sources = {name: _WithCopies(part, augments[name]) for name, part in parts.items()}
    with locked(run / LOCK, wait=True):
        if read_manifest(folder) != manifest:
            _begin(folder, manifest)
    shards = [shard for name in parts for shard in shards_of(folder, name, manifest)]
    vae = vae.to(choose_device(recipe.device))
    for wait, title in ((False, "latents"), (True, "latents that others write")):
        missing = [shard for shard in shards if not shard.is_whole(vae.layout, checked=not wait)]
        with progress_bar() as bar:
            for shard in bar.track(missing, description=title):
                _write_shard(shard, vae, sources[shard.part], at_once, wait, manifest)
    with _own(folder, manifest):
        try:
            read_statistics(folder)
        except MandorlaError:  # none are there, or damaged ones
            train = LatentPart(folder, "train", vae.layout, manifest)
            write_statistics(folder, Whitening.fit(vae.layout, train.drawn()))
        for lock in folder.glob("*.lock"):
            lock.unlink()


@contextmanager
def _own(folder: Path, manifest: dict) -> Iterator[None]:
    """Keep other commands from beginning another cache; raise MandorlaError if one has."""
    with locked(folder.parent / LOCK, wait=True):
        if read_manifest(folder) != manifest:
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
        rows = {name: column(copied, z) for name, z in batch.x.items()}
        return replace(batch, x={name: torch.where(rows[name], changed[name], z) for name, z in batch.x.items()})


def _write_shard(shard: Shard, vae: VAE, dataset: _WithCopies, at_once: int, wait: bool, manifest: dict) -> None:
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
        with _own(shard.path.parent, manifest):
            shard.write(records)


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
