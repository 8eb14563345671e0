"""NIfTI volumes: read, checked for a header that contradicts itself, and written on the grid of files that were given.

A file that is written has both of NIfTI's maps to space, sform and qform, with codes that say so. Its numbers are of
the type of the file that it is like, integers with its scaling, where these can hold them; else float32.

Reference: the NIfTI-1 data format (2004), https://nifti.nimh.nih.gov/nifti-1, methods 2 and 3 of orientation.
"""

import gzip
from functools import lru_cache
from pathlib import Path

import numpy as np

from mandorla.data.geometry import Geometry
from mandorla.data.images import MOST_BYTES, check_size
from mandorla.data.intensity import Intensity
from mandorla.data.places import NIFTI, Reading, ReadOptions, suffix
from mandorla.errors import MandorlaError
from mandorla.optional import library
from mandorla.storage import whole

LEVELS = 100  # of integers that a range of values must have, or it is written as floats
LEVEL = 1  # of gzip: higher ones take several times as long for a few percent
DESCRIPTION = "synthetic, made by mandorla"
SCANNER = 1  # code of a map to space of which nothing is known
_APART = 0.5  # voxels by which a header's two ways into space may differ
_FLAT = 1e-6  # volume of a voxel below which, its edges being 1, it is none
_MM = {1: 1e3, 3: 1e-3}  # of NIfTI's units of length: the metre, the micrometre; others are millimetres
_PART = 2**20  # bytes that are unpacked at once


def read_nifti(path: Path, key: str | None, options: ReadOptions) -> Reading:
    """Return a volume, or with a `key` the channel of that number of an image of four dimensions."""
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
        values = voxels(path, path.stat().st_mtime_ns)[..., int(key)]
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
def voxels(path: Path, changed: int) -> np.ndarray:
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
