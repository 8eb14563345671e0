"""One file, one array: decoding what users keep, each kind by the library that knows it.

A *place* says where the values of one modality of one sample lie: `PATH`, or `PATH:KEY` for a part of a file.

| kind | place | values |
|---|---|---|
| PNG, JPEG, TIFF | `a.png`, a half of an A\\|B image `a.png:left` | (C, H, W) |
| NumPy | `a.npy`, `a.npz:KEY` | by `ReadOptions` |
| HDF5 | `a.h5:PATH/IN/IT` | by `ReadOptions` |
| NIfTI | `a.nii.gz`, a channel of four dimensions `a.nii.gz:2` | (1, D, H, W) and geometry |
| DICOM | a folder with one series; one image `a.dcm` | (1, D, H, W) and geometry; (1, H, W) |
| WAV | `a.wav` | log-mel spectrogram (1, bands, frames) |
| table | `a.csv`, columns of it `a.csv:x,"y,z"` | (C, T), or (C,) by `ReadOptions` |

What a file declares is checked before it is decoded, for a small file can claim to hold terabytes.

References: the NIfTI-1 data format (2004), https://nifti.nimh.nih.gov/nifti-1; DICOM PS3.3, C.7.6.2, image plane module
(place and spacing of a slice), https://dicom.nema.org/medical/dicom/current/output/html/part03.html.
"""

import csv
import gzip
import io
import os
import re
import warnings
import zipfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.io import wavfile

from mandorla.config import Settings
from mandorla.data.geometry import Geometry
from mandorla.data.images import MOST_BYTES, check_size, decode_image
from mandorla.data.images import SUFFIXES as IMAGES
from mandorla.data.intensity import FILE as INTENSITY
from mandorla.data.spectrogram import SpectrogramConfig, log_mel
from mandorla.data.splits import FILE as SPLITS
from mandorla.errors import MandorlaError
from mandorla.optional import library

NIFTI = (".nii.gz", ".nii")
HDF5 = (".h5", ".hdf5")
DICOM = (".dcm", ".dicom", ".ima")
DICOMDIR = "DICOMDIR"  # a list of a medium's files, itself in DICOM
SOUNDS = (".wav",)
TABLES = (".csv",)
SUFFIXES = (*NIFTI, *sorted(IMAGES), ".npy", ".npz", *HDF5, *DICOM, *SOUNDS, *TABLES)
MOST_TEXT = 2**31  # bytes of one table
_PLACE = re.compile(rf"(?P<path>.+?({'|'.join(map(re.escape, SUFFIXES))})):(?P<key>.+)", re.IGNORECASE | re.DOTALL)
_MOST_NAMES = 2**16  # characters of a table in which the names of its columns are looked for
_IN_PLANE = 1e-3  # by how much the slices of a series may differ in orientation and spacing
_GAP = 0.02  # by how much of a step slices may stray from equal distances
_APART = 0.5  # voxels by which a NIfTI header's two ways into space may differ
_FLAT = 1e-6  # volume of a voxel below which, its edges being 1, it is none
_MM = {1: 1e3, 3: 1e-3}  # of NIfTI's units of length: the metre, the micrometre; others are millimetres
_PART = 2**20  # bytes that are unpacked at once
_FASTEST = 10**6  # samples per second of a sound


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


def find(folder: Path, pattern: str = "**/*") -> list[Path]:
    """Return the files in `folder` that `read` understands and whose path in it matches `pattern`, sorted.

    A folder that holds a DICOM series counts as one file. `*` stands for any part of a name, `**/` for any folders.
    Links are followed; what begins with a dot, or was written by a run, is left out. Raises `MandorlaError` for a link
    that leads back to a folder above it or nowhere, and for names with line breaks or that are not Unicode: they would
    not fit into a list of names.
    """
    matches = to_regex(pattern).fullmatch
    found = [path for path in _walk(folder) if matches(path.relative_to(folder).as_posix())]
    for path in found:
        if not str(path.relative_to(folder)).isprintable():
            raise MandorlaError(f"{str(path)!r}: unprintable characters in the name; rename the file")
    return sorted(found)


def to_regex(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern as `find` takes it, with a group for each wildcard."""
    parts = {"**/": "(.*/)?", "**": "(.*)", "*": "([^/]*)", "?": "([^/])"}
    split = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return re.compile("".join(parts.get(part, re.escape(part)) for part in split), re.DOTALL)


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


# -------------------------------------------------------------------------------------------------------------- search


def _walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield the files in `folder` and below that can be read, and folders that hold one DICOM series."""
    real = os.path.realpath(folder)
    if real in above:
        raise MandorlaError(f"{folder}: a link that leads back to a folder above it; remove it")
    slices = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if not all((path / name).is_file() for name in (SPLITS, INTENSITY)):  # a run folder: it holds no data
                yield from _walk(path, (*above, real))
        elif _is_dicom(path):
            slices.append(path)
        elif suffix(path):  # also what is no file: whether it is wanted is not known here
            yield path
    if above and _are_series(slices):
        yield folder
    else:
        yield from slices


def is_series(folder: Path) -> bool:
    """Return whether what lies directly in `folder` is one DICOM series."""
    return _are_series(sorted(path for path in folder.iterdir() if not path.name.startswith(".") and _is_dicom(path)))


def _are_series(slices: list[Path]) -> bool:
    return len(slices) > 1 and len({_series(path) for path in slices[:2]} - {""}) < 2


def _is_dicom(path: Path) -> bool:
    if suffix(path) in DICOM:
        return path.is_file()
    if path.suffix[1:].isalpha() or not path.is_file() or path.name.upper() == DICOMDIR:
        return False  # series often have no suffix, or a number
    with open(path, "rb") as file:
        file.seek(128)
        return file.read(4) == b"DICM"


def _series(path: Path) -> str:
    """Return the name of the series that a DICOM file belongs to, its path if it has none; empty if it is damaged."""
    try:
        tags = library("pydicom", "medical").dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
    except MandorlaError:
        raise
    except Exception:  # `read` will say what is wrong with it
        return ""
    return str(tags.get("SeriesInstanceUID", path))


# ------------------------------------------------------------------------------------------------------------- readers


def _reader(path: Path) -> Callable[[Path, str | None, ReadOptions], Reading]:
    if path.is_dir():
        return _read_series
    if reader := _readers().get(suffix(path)):
        return reader
    if _is_dicom(path):
        return _read_dicom
    raise MandorlaError(f"{path}: unknown kind of file; known are {', '.join(SUFFIXES)} and folders of DICOM files")


@cache
def _readers() -> dict[str, Callable[[Path, str | None, ReadOptions], Reading]]:
    readers = dict.fromkeys(IMAGES, _read_picture) | dict.fromkeys(NIFTI, _read_nifti)
    readers |= dict.fromkeys(HDF5, _read_hdf5) | dict.fromkeys(DICOM, _read_dicom) | dict.fromkeys(TABLES, _read_table)
    return readers | dict.fromkeys(SOUNDS, _read_sound) | {".npy": _read_npy, ".npz": _read_npz}


def forget() -> None:
    """Let go of the file that was read last, which is kept for its other parts."""
    _pixels.cache_clear()
    _voxels.cache_clear()


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


def _refuse_key(key: str | None) -> None:
    if key is not None:
        raise MandorlaError(f"this kind of file has no part {key!r}; give its path alone")


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
    _refuse_key(key)
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
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
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


def _read_nifti(path: Path, key: str | None, options: ReadOptions) -> Reading:
    nibabel = library("nibabel", "medical")
    image = nibabel.load(path)
    dtype, shape = image.get_data_dtype(), image.shape
    if dtype.kind not in "iuf":
        raise MandorlaError(f"{dtype} values are no numbers that an image can have")
    check_size(shape, dtype)
    if any(n < 1 for n in shape) or not shape:
        raise MandorlaError(f"no values: its shape is {shape}")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 4:
        raise MandorlaError(f"{len(shape)} dimensions {shape}; give volumes of three, or channels of them by a fourth")
    _check_header(image, path)
    if len(shape) == 4:
        if key is None or not key.isdecimal() or int(key) >= shape[3]:
            raise MandorlaError(f"it holds {shape[3]} volumes; name one as {path.name}:0 to {path.name}:{shape[3] - 1}")
        values = _voxels(path, path.stat().st_mtime_ns)[..., int(key)]
    elif key is not None:
        raise MandorlaError(f"it holds one volume, there is no channel {key!r}")
    else:
        values = _scaled(image).reshape(shape)
    values = values.reshape(*values.shape, *[1] * (3 - values.ndim))
    affine = image.affine.copy()
    affine[:3] *= _MM.get(int(image.header["xyzt_units"]) & 7, 1)
    return Reading(values[None], Geometry(affine, values.shape))


def _check_header(image, path: Path) -> None:
    """Raise `MandorlaError` if the header of a NIfTI image does not say where its voxels are and what they mean."""
    from nibabel.openers import ImageOpener

    if not np.isfinite(image.affine).all():
        raise MandorlaError("its affine maps no volume into space; mend the header")
    edges = np.linalg.norm(image.affine[:3, :3], axis=0)
    if not abs(np.linalg.det(image.affine[:3, :3])) > _FLAT * edges.prod():
        raise MandorlaError("its affine maps no volume into space; mend the header")
    with ImageOpener(path) as file:
        stored = type(image.header).from_fileobj(file, check=False)  # the image's own has lost its scale
    if not np.isfinite(stored["scl_slope"]):
        raise MandorlaError(f"scl_slope {stored['scl_slope']:g} scales no values; mend the header (0 stands for none)")
    if image.dataobj.offset < image.header.single_vox_offset:
        raise MandorlaError(
            f"vox_offset {image.dataobj.offset}: its values would begin within the header of "
            f"{image.header.single_vox_offset} bytes; mend the header"
        )
    codes = int(stored["sform_code"]), int(stored["qform_code"])
    if min(codes) > 0:
        wanted = image.header.copy()
        wanted.set_qform(image.affine)  # without shears, which a qform cannot have
        shape = (*image.shape[:3], 1, 1)[:3]
        sform, qform = (Geometry(header.get_qform(), shape) for header in (wanted, stored))
        mirrored = np.linalg.det(sform.affine[:3, :3]) * np.linalg.det(qform.affine[:3, :3]) < 0
        apart = sform.distance(qform) / sform.spacing.min()
        if mirrored or (codes[0] == codes[1] and apart > _APART):  # of other codes they may be two spaces
            raise MandorlaError(
                f"its sform (axes {sform.axes}) and its qform (axes {qform.axes}) place it {apart:.3g} voxels apart"
                f"{', mirrored' if mirrored else ''}; set the code of the wrong one to 0 (nibabel: "
                "image.set_sform(None) or image.set_qform(None))"
            )


@lru_cache(maxsize=1)
def _voxels(path: Path, changed: int) -> np.ndarray:
    """Return a volume of which several channels are wanted; `changed` is the time of its last change."""
    image = library("nibabel", "medical").load(path)
    return _scaled(image).reshape(*image.shape[:3], -1)


def _scaled(image) -> np.ndarray:
    """Return the voxels of a NIfTI image: as stored, or float32 where the header scales them."""
    path = image.get_filename()
    if suffix(Path(path)) == ".nii":
        values = np.asarray(image.dataobj)
    else:
        with gzip.open(path) as file:
            values = np.asarray(type(image).from_stream(file).dataobj)
            for _ in range(0, MOST_BYTES.get(), _PART):  # to its checksum, at the end, where nibabel does not look
                if not file.read(_PART):
                    break
    plain = (image.dataobj.slope, image.dataobj.inter) == (1, 0)
    return values if plain else values.astype(np.float32)


def _read_dicom(path: Path, key: str | None, options: ReadOptions) -> Reading:
    _refuse_key(key)
    return Reading(_slice(_dataset(path))[None])


def _read_series(folder: Path, key: str | None, options: ReadOptions) -> Reading:
    """Return the slices of one series as a volume, from the first to the last along their normal."""
    _refuse_key(key)
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and _is_dicom(path))
    if not paths:
        raise MandorlaError("a folder without DICOM files")
    datasets = [_dataset(path) for path in paths]
    if len(found := {str(d.get("SeriesInstanceUID", "")) for d in datasets}) > 1:
        raise MandorlaError(f"{len(found)} series in one folder; give each a folder of its own")
    first = datasets[0]
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        for path, dataset in zip(paths, datasets, strict=True):
            if not dataset.get(tag):
                raise MandorlaError(f"{path}: no {tag}, so its place in the volume is unknown")
            if tag != "ImagePositionPatient" and not np.allclose(dataset[tag].value, first[tag].value, atol=_IN_PLANE):
                raise MandorlaError(f"{path}: {tag} differs from that of {paths[0].name}: no one volume")
    check_size((len(paths), first.Rows, first.Columns), np.dtype(np.float32))
    rows, columns = np.reshape(np.array(first.ImageOrientationPatient, float), (2, 3))  # along a row, along a column
    positions = np.array([d.ImagePositionPatient for d in datasets], float)
    along = positions @ np.cross(rows, columns)
    order = np.argsort(along, kind="stable")
    steps = np.diff(along[order])
    usual = float(np.median(steps)) if len(steps) else float(first.get("SliceThickness") or 1)
    for one, other, step in zip(order, order[1:], steps, strict=False):
        if step < _GAP * max(usual, 1e-6) or usual <= 0:
            raise MandorlaError(f"{paths[other].name} lies where {paths[one].name} does; remove one")
        if abs(step - usual) > _GAP * usual:
            raise MandorlaError(
                f"slices are missing between {paths[one].name} and {paths[other].name}: {step:.3g} mm apart where "
                f"others are {usual:.3g} mm"
            )
    values = [_slice(datasets[index]) for index in order]
    if len({(v.shape, v.dtype) for v in values}) > 1:
        values = [v.astype(np.float32) for v in values]
    whole = positions[order[-1]] - positions[order[0]]
    spacing = np.array(first.PixelSpacing, float)  # between rows, between columns
    affine = np.eye(4)
    affine[:3, 0] = whole / (len(order) - 1) if len(order) > 1 else np.cross(rows, columns) * usual
    affine[:3, 1], affine[:3, 2] = columns * spacing[0], rows * spacing[1]
    affine[:3, 3] = positions[order[0]]
    affine[:2] *= -1  # DICOM's axes lead left and back, NIfTI's right and forward
    stack = np.stack(values)
    return Reading(stack[None], Geometry(affine, stack.shape))


def _dataset(path: Path):
    """Return a DICOM file of one grey image, pixels undecoded."""
    pydicom = library("pydicom", "medical")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "End of file reached")  # it is cut short
            # of its bytes: a file object sets aside whatever length a damaged element claims
            dataset = pydicom.dcmread(io.BytesIO(path.read_bytes()))
        dataset.filename = str(path)
    except Exception as error:
        raise MandorlaError(f"{path}: cannot be read as DICOM ({error}); replace or remove it") from error
    if "PixelData" not in dataset:
        raise MandorlaError(f"{path}: a DICOM file without an image")
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise MandorlaError(f"{path}: {dataset.NumberOfFrames} frames in one file; convert it to NIfTI or one per file")
    if dataset.get("SamplesPerPixel", 1) != 1:
        raise MandorlaError(f"{path}: colours in DICOM are not read; convert it to PNG")
    check_size((dataset.Rows, dataset.Columns), np.dtype(np.float32))
    return dataset


def _slice(dataset) -> np.ndarray:
    """Return the values `(H, W)` of a DICOM image: as stored, or float32 where its header scales them."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "The decoded RLE segment")  # it is not what the header says
            pixels = dataset.pixel_array
    except Exception as error:
        kind = dataset.file_meta.TransferSyntaxUID.name
        if "missing dependencies" in str(error):
            package = "pylibjpeg pylibjpeg-openjpeg" if kind.startswith("High-Throughput") else "python-gdcm"
            raise MandorlaError(f"{dataset.filename}: {kind} needs a decoder: pip install {package}") from error
        reason = " ".join(str(error).split())
        raise MandorlaError(
            f"{dataset.filename}: its pixels, {kind}, cannot be decoded ({reason}); replace or remove it"
        ) from error
    slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":  # 0 is white
        pixels = (2 ** int(dataset.BitsStored) - 1) - pixels.astype(np.int32)
    return pixels if (slope, intercept) == (1, 0) else (pixels * slope + intercept).astype(np.float32)


def _read_sound(path: Path, key: str | None, options: ReadOptions) -> Reading:
    """Return the spectrogram of a sound, of several channels that of their mean."""
    _refuse_key(key)
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


def _read_table(path: Path, key: str | None, options: ReadOptions) -> Reading:
    """Return columns of numbers below one line of names."""
    check_text(path)
    with open(path, encoding="utf-8-sig", newline="") as file:
        lines = ([cell.strip() for cell in line] for line in csv.reader(file, strict=True) if line)
        names = next(lines, [])
        if names and all(map(_is_number, names)):
            raise MandorlaError(f"its first line holds numbers ({', '.join(names[:3])}); put a line of names above it")
        wanted = names if key is None else split_columns(key)
        if "" in wanted:  # as pandas writes the numbers of rows
            number = wanted.index("") + 1
            raise MandorlaError(f"column {number} has no name; remove it, or name those to take, as in {path.name}:a,b")
        counts, place = Counter(names), {name: index for index, name in enumerate(names)}
        for name in wanted:
            if counts[name] != 1:
                raise MandorlaError(f"{counts[name] or 'no'} column(s) {name!r}; it has {', '.join(names[:20])}")
        places = [place[name] for name in wanted]
        values, num = array("d"), 0  # of float64: a clock's seconds have ten digits
        for num, line in enumerate(lines, 1):
            if len(line) != len(names):
                raise MandorlaError(f"row {num} has {len(line)} cells where the first line names {len(names)}")
            for index in places:
                if not _is_number(line[index]) and (line[index] or options.nan is None):
                    raise MandorlaError(f"row {num}, column {names[index]!r}: {line[index]!r} is no number")
                values.append(float(line[index] or "nan"))  # an empty cell is how pandas writes NaN
    if options.dimensions == 0 and num != 1:
        raise MandorlaError(f"{num} rows where a vector has one; data.read.dimensions 1 makes it a sequence")
    rows = np.array(values).reshape(num, len(wanted))
    return Reading(rows[0] if options.dimensions == 0 else rows.T)


def check_columns(places: Iterable[str | None]) -> None:
    """Raise `MandorlaError` if whole tables among the places of one modality differ in their columns, or their order.

    What cannot be read as a table is passed over: `read` says what is wrong with it.
    """
    first: tuple[str, list[str]] | None = None
    for place in filter(None, places):
        if not (names := _first_line(*split_place(place))):
            continue
        first = first or (place, names)
        if names != first[1]:
            raise MandorlaError(
                f"{place}: its columns are {', '.join(names)}, those of {first[0]} are {', '.join(first[1])}; give "
                f"all of a modality the same, or name them as in *.csv:{join_columns(first[1])}"
            )


def columns_of(places: Iterable[str | None]) -> tuple[str, ...]:
    """Return the names of the columns that the first table among `places` gives, in order; none without a table."""
    for path, key in map(split_place, filter(None, places)):
        if names := split_columns(key) if key and suffix(path) in TABLES else _first_line(path, key):
            return tuple(names)
    return ()


def split_columns(key: str) -> list[str]:
    """Return the names of columns in the `key` of a table, as CSV has them: `x,"y,z"` are x and y,z."""
    return [name.strip() for name in next(csv.reader([key]))]


def join_columns(names: Iterable[str]) -> str:
    """Undo `split_columns`: return a line of CSV."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(names)
    return line.getvalue()


def _first_line(path: Path, key: str | None) -> list[str] | None:
    """Return the names of the columns of a whole table; None of what is none, or cannot be read."""
    if key is not None or suffix(path) not in TABLES or not path.is_file():
        return None
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file.read(_MOST_NAMES).splitlines())
        return [cell.strip() for cell in next(line for line in lines if line)]
    except (OSError, ValueError, StopIteration, csv.Error):
        return None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # Python takes 1_0 for 10
