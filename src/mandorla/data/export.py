"""Volumes out: NIfTI files on the grid of the files that a model was given.

A file that is written has both of NIfTI's maps to space, sform and qform, with codes that say so. Its numbers are of
the type of the file that it is like, integers with its scaling, where these can hold them; else float32.

Reference: the NIfTI-1 data format (2004), https://nifti.nimh.nih.gov/nifti-1, methods 2 and 3 of orientation.
"""

import gzip
from pathlib import Path

import numpy as np

from mandorla.data.geometry import Geometry
from mandorla.data.intensity import Intensity
from mandorla.data.readers import NIFTI, suffix
from mandorla.optional import library
from mandorla.storage import whole

LEVELS = 100  # of integers that a range of values must have, or it is written as floats
LEVEL = 1  # of gzip: higher ones take several times as long for a few percent
DESCRIPTION = "synthetic, made by mandorla"
SCANNER = 1  # code of a map to space of which nothing is known


def write_volume(
    path: Path, values: np.ndarray, grid: Geometry, like: Path | None = None, scale: Intensity | None = None
) -> None:
    """Write the volume `values` `(C, D, H, W)` on `grid` to the NIfTI file `path`, whole or not at all.

    The header says that it is synthetic. `like` is a file whose type of numbers, codes and unit of time are kept if it
    is NIfTI; `scale` says what values there can be, and without it they are written as floats. Several channels become
    the fourth dimension.
    """
    nibabel = library("nibabel", "medical")
    values = values[0] if len(values) == 1 else np.moveaxis(values, 0, -1)
    image = nibabel.Nifti1Image(np.ascontiguousarray(values, np.float32), grid.affine)
    image.header.set_xyzt_units("mm")
    code, stored = SCANNER, None
    if like and suffix(like) in NIFTI:
        source = nibabel.load(like)
        code = int(source.header["sform_code"]) or int(source.header["qform_code"]) or SCANNER
        image.header.set_xyzt_units("mm", source.header.get_xyzt_units()[1])  # the grid is in mm
        stored = _as_stored(values, source, scale)
    if stored is not None:
        image = nibabel.Nifti1Image(stored, grid.affine, image.header, dtype=stored.dtype)
        if stored.dtype.kind in "iu":
            image.header.set_slope_inter(source.dataobj.slope, source.dataobj.inter)
    image.set_sform(grid.affine, code)
    image.set_qform(grid.affine, code)
    image.header["descrip"] = DESCRIPTION
    with whole(path) as part, part.open("wb") as file:
        if path.suffix != ".gz":
            image.to_stream(file)
        else:
            with gzip.GzipFile("", "wb", LEVEL, file, 0) as packed:  # no name, no time: the same values, the same bytes
                image.to_stream(packed)


def plain_grid(shape: tuple[int, ...], axes: str) -> Geometry:
    """Return a grid of voxels of 1 mm whose axes lead to `axes`, for a volume that comes from nowhere."""
    orientations = library("nibabel", "medical").orientations
    return Geometry(orientations.inv_ornt_aff(orientations.axcodes2ornt(axes), _in_order(shape, axes)), tuple(shape))


def _in_order(shape: tuple[int, ...], axes: str) -> tuple[int, ...]:
    """Return the lengths of the axes right, forward, up of a volume with `axes`."""
    return tuple(shape[next(i for i, letter in enumerate(axes) if letter in pair)] for pair in ("LR", "PA", "IS"))


def _as_stored(values: np.ndarray, source, scale: Intensity | None) -> np.ndarray | None:
    """Return floats or integers as the image `source` would hold `values`; None where its integers could not."""
    dtype, slope, inter = source.get_data_dtype(), source.dataobj.slope, source.dataobj.inter
    if dtype.kind == "f":
        return np.ascontiguousarray(values, dtype)
    if scale is None or dtype.kind not in "iu":
        return None
    most = np.iinfo(dtype)
    ends = sorted((most.min * slope + inter, most.max * slope + inter))
    if np.min(scale.low) < ends[0] or np.max(scale.high) > ends[1] or abs(slope) * LEVELS > scale.width.min():
        return None
    return np.rint((values.astype(np.float64) - inter) / slope).clip(most.min, most.max).astype(dtype)
