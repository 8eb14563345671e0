"""One file, one array: decoding what users keep, each kind by the library that knows it.

`mandorla.data.places` says what a place is. What a file declares is checked before it is decoded, for a small file can
claim to hold terabytes.
"""

import warnings
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.io import wavfile

from mandorla.data.columns import read_columns
from mandorla.data.dicom import is_dicom, read_dicom, read_series
from mandorla.data.images import SUFFIXES as IMAGES
from mandorla.data.images import check_size, decode_image
from mandorla.data.nifti import read_nifti, voxels
from mandorla.data.places import (
    DICOM,
    HDF5,
    NIFTI,
    SOUNDS,
    SUFFIXES,
    TABLES,
    Reading,
    ReadOptions,
    check_file,
    refuse_key,
    split_place,
    suffix,
)
from mandorla.data.spectrogram import log_mel
from mandorla.errors import MandorlaError
from mandorla.optional import library

_FASTEST = 10**6  # samples per second of a sound
Reader = Callable[[Path, str | None, ReadOptions], Reading]


def read(place: str, options: ReadOptions) -> Reading:
    """Return what lies at `place`.

    Raises `MandorlaError`, which names the place, if it is missing, damaged, larger than can be meant, of another kind
    than its suffix says, or holds what cannot be taken without loss; and if the library for it is not installed.
    """
    path, key = split_place(place)
    if not path.is_dir():
        check_file(path)
    try:
        reading = _reader(path)(path, key, options)
        reading = Reading(_plain(reading.values, options), reading.geometry)
    except MandorlaError as error:
        text = str(error)
        raise MandorlaError(text if text.startswith(str(path)) else f"{place}: {text}") from error
    except Exception as error:  # a broken file makes a decoder raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MandorlaError(f"{place}: cannot be read ({reason}); replace or remove it") from error
    return reading


def _reader(path: Path) -> Reader:
    if path.is_dir():
        return read_series
    if reader := _READERS.get(suffix(path)):
        return reader
    if is_dicom(path):
        return read_dicom
    raise MandorlaError(f"{path}: unknown kind of file; known are {', '.join(SUFFIXES)} and folders of DICOM files")


def forget() -> None:
    """Let go of the file that was read last, which is kept for its other parts."""
    _pixels.cache_clear()
    voxels.cache_clear()


def _plain(values: np.ndarray, options: ReadOptions) -> np.ndarray:
    """Return finite values in a number type of this machine; a mask as 0 and 1."""
    if values.dtype.kind not in "biuf":
        raise MandorlaError(f"{values.dtype} values are no numbers that an image can have")
    if not values.size:
        raise MandorlaError(f"no values: its shape is {values.shape}")
    if values.dtype.kind == "f":
        values = values.astype(np.float64 if values.dtype.itemsize >= 8 else np.float32, copy=False)
        if options.nan is not None:
            values = np.where(np.isnan(values), values.dtype.type(options.nan), values)
        if not np.isfinite(values).all():
            raise MandorlaError("NaN or infinite values; remove or fill them (data.read.nan fills NaN)")
        if max(values.max(), -values.min()) > np.finfo(np.float32).max:
            raise MandorlaError(f"values up to {np.abs(values).max():g}, more than a float32 holds; rescale them")
        return values
    return values.astype(np.float32 if values.dtype == bool else values.dtype.newbyteorder("="), copy=False)


def _read_picture(path: Path, key: str | None, options: ReadOptions) -> Reading:
    if key is None:
        return Reading(decode_image(path))
    pixels = _pixels(path, path.stat().st_mtime_ns)
    if key in ("left", "right"):
        half, odd = divmod(pixels.shape[2], 2)
        if odd:
            raise MandorlaError(f"{pixels.shape[2]} pixels wide, which two images side by side cannot be")
        return Reading(pixels[..., :half] if key == "left" else pixels[..., half:])
    raise MandorlaError(f"an image has the parts left and right, not {key!r}")


@lru_cache(maxsize=1)
def _pixels(path: Path, changed: int) -> np.ndarray:
    """Return a picture of which both halves are wanted; `changed` is the time of its last change."""
    return decode_image(path)


def _to_channels_first(array: np.ndarray, options: ReadOptions) -> np.ndarray:
    dimensions = 2 if options.dimensions is None else options.dimensions
    if array.ndim == dimensions and dimensions:
        return array[None]
    if array.ndim != dimensions + 1:
        raise MandorlaError(
            f"an array of shape {array.shape} holds no sample of {dimensions} dimensions; set data.read.dimensions"
        )
    return array if options.channels == "first" else np.moveaxis(array, -1, 0)


def _read_npy(path: Path, key: str | None, options: ReadOptions) -> Reading:
    refuse_key(key)
    with open(path, "rb") as file:
        return Reading(_to_channels_first(_array(file, path.stat().st_size), options))


def _read_npz(path: Path, key: str | None, options: ReadOptions) -> Reading:
    with zipfile.ZipFile(path) as archive:
        names = {name.removesuffix(".npy"): name for name in archive.namelist()}
        if len(names) < len(archive.namelist()):
            raise MandorlaError("two of its arrays have one name; write it anew")
        if key is None and len(names) == 1:
            (key,) = names
        if key not in names:
            asked = "name one of its arrays" if key is None else f"no array {key!r} in it"
            raise MandorlaError(f"{asked}: {', '.join(names) or 'it is empty'}")
        with archive.open(names[key]) as file:
            return Reading(_to_channels_first(_array(file, archive.getinfo(names[key]).file_size), options))


def _array(file, num_bytes: int) -> np.ndarray:
    """Return the array in NumPy's format in `file`, which has `num_bytes`, after a look at what it declares."""
    if np.lib.format.read_magic(file) == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        begin, length = file.tell(), int.from_bytes(file.read(4), "little")
        if length > num_bytes:
            raise MandorlaError("is cut short: its header is longer than the file")
        file.seek(begin)
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.hasobject:
        raise MandorlaError("holds Python objects, not numbers")
    check_size(shape, dtype)
    if int(np.prod(shape, dtype=object)) * dtype.itemsize > num_bytes:
        raise MandorlaError("is cut short: it holds less than its header says")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def _read_hdf5(path: Path, key: str | None, options: ReadOptions) -> Reading:
    h5py = library("h5py", "hdf5")
    with h5py.File(path, "r") as file:
        names = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        key = names[0] if key is None and len(names) == 1 else key
        if key is None or not isinstance(file.get(key), h5py.Dataset):
            asked = "name one of its arrays" if key is None else f"no array {key!r} in it"
            raise MandorlaError(f"{asked}: {', '.join(names[:20]) or 'it is empty'}")
        dataset = file[key]
        if dataset.shape is None or dataset.dtype.kind not in "biuf":
            raise MandorlaError(f"{key!r} holds no numbers that an image can have ({dataset.dtype})")
        check_size(dataset.shape, dataset.dtype)
        if dataset.size and not (dataset.is_virtual or dataset.id.get_storage_size()):
            raise MandorlaError(f"{key!r} was declared but never written; write its values, or remove it")
        return Reading(_to_channels_first(dataset[()], options))


def _read_sound(path: Path, key: str | None, options: ReadOptions) -> Reading:
    """Return the spectrogram of a sound, of several channels that of their mean."""
    refuse_key(key)
    with warnings.catch_warnings():
        warnings.simplefilter("error", wavfile.WavFileWarning)  # a file that is cut short
        warnings.filterwarnings("ignore", "Chunk", wavfile.WavFileWarning)  # a note on the author
        try:
            rate, sound = wavfile.read(path)
        except ZeroDivisionError as error:
            raise MandorlaError("its header declares no channel or no bits; write it anew") from error
    if not 0 < rate <= _FASTEST:
        raise MandorlaError(f"{rate} samples per second, which no sound has; mend the header")
    check_size(sound.shape, np.dtype(np.float64))
    check_size((-(-len(sound) * options.spectrogram.rate // rate),), np.dtype(np.float64))
    if not sound.size:
        raise MandorlaError("a sound without samples")
    scale = {"u": 128, "i": 2.0 ** (8 * sound.dtype.itemsize - 1), "f": 1}[sound.dtype.kind]
    sound = (sound.astype(np.float64) - (128 if sound.dtype.kind == "u" else 0)) / scale
    return Reading(log_mel(sound.reshape(len(sound), -1).mean(1), rate, options.spectrogram))


_READERS: dict[str, Reader] = {
    **dict.fromkeys(IMAGES, _read_picture),
    **dict.fromkeys(NIFTI, read_nifti),
    **dict.fromkeys(HDF5, _read_hdf5),
    **dict.fromkeys(DICOM, read_dicom),
    **dict.fromkeys(TABLES, read_columns),
    **dict.fromkeys(SOUNDS, _read_sound),
    ".npy": _read_npy,
    ".npz": _read_npz,
}
