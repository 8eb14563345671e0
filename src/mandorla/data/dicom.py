"""DICOM: which files are images and one series, and their values; the slices of a series as a volume.

Reference: DICOM PS3.3, C.7.6.2, image plane module (place and spacing of a slice),
https://dicom.nema.org/medical/dicom/current/output/html/part03.html.
"""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mandorla.data.geometry import Geometry
from mandorla.data.images import check_size
from mandorla.data.places import DICOM, Reading, ReadOptions, refuse_key, suffix
from mandorla.errors import MandorlaError
from mandorla.optional import library

DICOMDIR = "DICOMDIR"  # a list of a medium's files, itself in DICOM
_IN_PLANE = 1e-3  # by how much the slices of a series may differ in orientation and spacing
_GAP = 0.02  # by how much of a step slices may stray from equal distances


def is_series(folder: Path) -> bool:
    """Return whether what lies directly in `folder` is one DICOM series."""
    return are_series(_images_in(folder))


def are_series(slices: Sequence[Path]) -> bool:
    """Return whether DICOM files, by the first two of them, are one series."""
    return len(slices) > 1 and len({_series(path) for path in slices[:2]} - {""}) < 2


def is_dicom(path: Path) -> bool:
    """Return whether a file is in DICOM, by its suffix or, where it has none, by its first bytes."""
    if suffix(path) in DICOM:
        return path.is_file()
    if path.suffix[1:].isalpha() or not path.is_file() or path.name.upper() == DICOMDIR:
        return False  # series often have no suffix, or a number
    with open(path, "rb") as file:
        file.seek(128)
        return file.read(4) == b"DICM"


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and is_dicom(path))


def _series(path: Path) -> str:
    """Return the name of the series that a DICOM file belongs to, its path if it has none; empty if it is damaged."""
    try:
        tags = library("pydicom", "medical").dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
    except MandorlaError:
        raise
    except Exception:  # `read` will say what is wrong with it
        return ""
    return str(tags.get("SeriesInstanceUID", path))


def read_dicom(path: Path, key: str | None, options: ReadOptions) -> Reading:
    """Return one image."""
    refuse_key(key)
    return Reading(_slice(_dataset(path))[None])


def read_series(folder: Path, key: str | None, options: ReadOptions) -> Reading:
    """Return the slices of one series as a volume, from the first to the last along their normal."""
    refuse_key(key)
    paths = _images_in(folder)
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
        ends = -1 if dataset.PixelRepresentation else 2 ** int(dataset.BitsStored) - 1  # smallest and largest, summed
        pixels = ends - pixels.astype(np.int32)
    return pixels if (slope, intercept) == (1, 0) else (pixels * slope + intercept).astype(np.float32)
