"""Paired data: sources, splits and batches in which a modality may be missing."""

from dataclasses import replace
from hashlib import sha256
from typing import Annotated

from pydantic import Field

from mandorla.data.arrays import ArraysConfig, load_arrays
from mandorla.data.dataset import Batch, Dataset, Modality, Splits
from mandorla.data.folders import FoldersConfig, load_folders
from mandorla.data.intensity import UNIT
from mandorla.data.phantom import PhantomConfig, load_phantom
from mandorla.data.polydigits import PolydigitsConfig, load_polydigits
from mandorla.data.polymnist import PolymnistConfig, load_polymnist
from mandorla.data.record import follow_record, keep_record

DataConfig = Annotated[
    PolydigitsConfig | PolymnistConfig | PhantomConfig | ArraysConfig | FoldersConfig, Field(discriminator="kind")
]

_LOADERS = {
    PolydigitsConfig: load_polydigits,
    PolymnistConfig: load_polymnist,
    PhantomConfig: load_phantom,
    ArraysConfig: load_arrays,
    FoldersConfig: load_folders,
}


def load_data(config: DataConfig, seed: int) -> Splits:
    """Return the train, val and test parts of the source that `config` describes.

    `seed` chooses what is random about the parts: the training samples of a composed source, the split of files.
    """
    splits = _LOADERS[type(config)](config, seed)
    if splits.contents:
        return splits
    recipe = config.model_dump_json(exclude={"root"})  # what is composed follows from it, wherever its files lie
    contents = sha256(f"{recipe} {seed}".encode()).hexdigest()
    return replace(splits, intensity={m.name: UNIT for m in splits.modalities}, contents=contents)


__all__ = ["Batch", "DataConfig", "Dataset", "Modality", "Splits", "follow_record", "keep_record", "load_data"]
