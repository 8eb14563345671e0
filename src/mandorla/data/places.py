"""Where the values of one modality of one sample lie, and what lies there.

A *place* is `PATH`, or `PATH:KEY` for a part of a file.

| kind | place | values |
|---|---|---|
| PNG, JPEG, TIFF | `a.png`, a half of an A\\|B image `a.png:left` | (C, H, W) |
| NumPy | `a.npy`, `a.npz:KEY` | by `ReadOptions` |
| HDF5 | `a.h5:PATH/IN/IT` | by `ReadOptions` |
| NIfTI | `a.nii.gz`, a channel of four dimensions `a.nii.gz:2` | (1, D, H, W) and geometry |
| DICOM | a folder with one series; one image `a.dcm` | (1, D, H, W) and geometry; (1, H, W) |
| WAV | `a.wav` | log-mel spectrogram (1, bands, frames) |
| table | `a.csv`, columns of it `a.csv:x,"y,z"` | (C, T), or (C,) by `ReadOptions` |
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mandorla.config import Settings
from mandorla.data.geometry import Geometry
from mandorla.data.images import SUFFIXES as IMAGES
from mandorla.data.spectrogram import SpectrogramConfig
from mandorla.errors import MandorlaError

NIFTI = (".nii.gz", ".nii")
HDF5 = (".h5", ".hdf5")
DICOM = (".dcm", ".dicom", ".ima")
SOUNDS = (".wav",)
TABLES = (".csv",)
SUFFIXES = (*NIFTI, *sorted(IMAGES), ".npy", ".npz", *HDF5, *DICOM, *SOUNDS, *TABLES)
MOST_TEXT = 2**31  # bytes of one table
_PLACE = re.compile(rf"(?P<path>.+?({'|'.join(map(re.escape, SUFFIXES))})):(?P<key>.+)", re.IGNORECASE | re.DOTALL)


class ReadOptions(Settings):
    """Say what the axes of files mean that do not say it themselves."""

    dimensions: Literal[0, 1, 2, 3] | None = None
    """Spatial axes of an array (null: 2) or a table (null: 1, its rows; 0: a table of one row is a vector)."""
    channels: Literal["first", "last"] = "last"
    """Where the channels of an array lie that has one axis more than space."""
    nan: float | None = None
    """Value that stands in for NaN, as some programs write it outside of a head; null refuses it."""
    spectrogram: SpectrogramConfig = SpectrogramConfig()
    """How sounds become images."""


@dataclass(frozen=True)
class Reading:
    """Hold the `values` `(C, *size)` of one place, of the stored type, and the `geometry` of a volume."""

    values: np.ndarray
    geometry: Geometry | None = None


def split_place(place: str) -> tuple[Path, str | None]:
    """Return the path and, if there is one, the key of a place."""
    match = None if ":" not in place or os.path.exists(place) else _PLACE.fullmatch(place)
    return (Path(match["path"]), match["key"]) if match else (Path(place), None)


def suffix(path: Path) -> str:
    """Return the suffix in lower case, `.nii.gz` whole; empty for one that `read` does not know."""
    name = path.name.lower()
    return next((s for s in SUFFIXES if name.endswith(s) and len(name) > len(s)), "")


def stem(path: Path) -> str:
    """Return the name without its suffix, `.nii.gz` being one; of what has no known suffix the name."""
    return path.name[: len(path.name) - len(suffix(path))]


def check_file(path: Path) -> None:
    """Raise `MandorlaError` if there is no file at `path`, or what is there has no end, such as a pipe."""
    if path.is_file():
        return
    if path.exists():
        what = "a folder" if path.is_dir() else "a pipe or device; remove it"
        raise MandorlaError(f"{path}: no file, but {what}")
    if path.is_symlink():  # as a file of git-annex or DataLad that was not fetched
        raise MandorlaError(f"{path}: a link that leads nowhere; fetch the file, or remove the link")
    raise MandorlaError(f"{path}: no such file")


def check_text(path: Path) -> None:
    """Raise `MandorlaError` as `check_file` does, or if a text has more bytes than can be meant to be read at once."""
    check_file(path)
    if (size := path.stat().st_size) > MOST_TEXT:
        raise MandorlaError(f"{path}: {size / 2**30:.1f} GiB of text, more than {MOST_TEXT / 2**30:g} GiB; divide it")


def refuse_key(key: str | None) -> None:
    """Raise `MandorlaError` if a part is asked of a file that has none."""
    if key is not None:
        raise MandorlaError(f"this kind of file has no part {key!r}; give its path alone")
