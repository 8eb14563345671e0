"""Paired data: sources, splits and batches in which a modality may be missing."""

from typing import Annotated

from pydantic import Field

from mandorla.data.dataset import Batch, Dataset, Modality, Splits
from mandorla.data.polydigits import PolydigitsConfig, load_polydigits

DataConfig = Annotated[PolydigitsConfig, Field()]


def load_data(config: DataConfig, seed: int) -> Splits:
    """Return the train, val and test parts of the source that `config` describes."""
    return load_polydigits(config, seed)


__all__ = ["Batch", "DataConfig", "Dataset", "Modality", "Splits", "load_data"]
