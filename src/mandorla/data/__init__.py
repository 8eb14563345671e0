"""Paired data: sources, splits and batches in which a modality may be missing."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from mandorla.data.arrays import ArraysConfig, load_arrays
from mandorla.data.bids import BidsConfig, pair_bids
from mandorla.data.dataset import Batch, Dataset, Modality, Splits
from mandorla.data.folders import FoldersConfig, pair_folders
from mandorla.data.loading import load_pairs
from mandorla.data.mhd import MhdConfig, load_mhd
from mandorla.data.msd import MsdConfig, pair_msd
from mandorla.data.pairing import Pairs
from mandorla.data.phantom import PhantomConfig, load_phantom
from mandorla.data.polydigits import PolydigitsConfig, load_polydigits
from mandorla.data.polymnist import PolymnistConfig, load_polymnist
from mandorla.data.python import PythonConfig, load_python
from mandorla.data.record import follow_record, keep_record
from mandorla.data.samples import FilesConfig
from mandorla.data.scans import ScansConfig, pair_scans
from mandorla.data.shards import ShardsConfig, load_shards, pack, read_index
from mandorla.data.side_by_side import SideBySideConfig, pair_side_by_side
from mandorla.data.table import TableConfig, pair_table
from mandorla.errors import MandorlaWarning

_Composed = PolydigitsConfig | PolymnistConfig | MhdConfig | PhantomConfig
_Files = FoldersConfig | TableConfig | MsdConfig | BidsConfig | ScansConfig | SideBySideConfig
DataConfig = Annotated[_Composed | ArraysConfig | PythonConfig | _Files | ShardsConfig, Field(discriminator="kind")]

_READ_CONFIG = TypeAdapter(DataConfig)

_LOADERS = {
    PolydigitsConfig: load_polydigits,
    PolymnistConfig: load_polymnist,
    MhdConfig: load_mhd,
    PhantomConfig: load_phantom,
    ArraysConfig: load_arrays,
    PythonConfig: load_python,
    ShardsConfig: load_shards,
}
_PAIRERS = {
    FoldersConfig: pair_folders,
    TableConfig: pair_table,
    MsdConfig: pair_msd,
    BidsConfig: pair_bids,
    ScansConfig: pair_scans,
    SideBySideConfig: pair_side_by_side,
}


def load_data(config: DataConfig, seed: int) -> Splits:
    """Return the train, val and test parts of the source that `config` describes.

    `seed` chooses what is random about the parts: the training samples of a composed source, the split of files.
    """
    if isinstance(config, FilesConfig):
        pairs = pair_files(config)
        if skipped := pairs.report.skipped:
            text = f"data: {len(skipped)} file(s) left out, such as {skipped[0].place}: {skipped[0].why}"
            warnings.warn(text, MandorlaWarning, stacklevel=2)
        return load_pairs(pairs, config, seed, f"data.{config.kind}")
    return _LOADERS[type(config)](config, seed)


def pair_files(config: FilesConfig) -> Pairs:
    """Return which files are of one sample, and a report, without reading them."""
    return _PAIRERS[type(config)](config)


def pack_data(config: DataConfig, seed: int, out: Path, shard_mib: int) -> None:
    """Write the source that `config` describes, divided under `seed`, to a new folder, for `kind: shards`.

    Raises `MandorlaError` as `load_data` and `pack` do.
    """
    source = source_of(config).model_dump(mode="json", exclude={"root"})
    pack(load_data(config, seed), out, source, shard_mib)


def source_of(config: DataConfig) -> DataConfig:
    """Return `config`, or, for shards, that of the source that was packed; its files may be elsewhere by now."""
    if not isinstance(config, ShardsConfig):
        return config
    return read_config(read_index(config.locate(config.folder))["source"])


def read_config(tree: Mapping[str, Any]) -> DataConfig:
    """Return the settings that a `data` block of plain values stands for. Raises `ValidationError` if it is none."""
    return _READ_CONFIG.validate_json(json.dumps(tree))


__all__ = [
    "Batch",
    "DataConfig",
    "Dataset",
    "Modality",
    "Pairs",
    "Splits",
    "follow_record",
    "keep_record",
    "load_data",
    "pack_data",
    "pair_files",
    "read_config",
    "source_of",
]
