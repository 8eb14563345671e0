"""Where voxels lie: the grid of a volume, how far two grids are apart, and how one is brought onto the other.

An affine A maps the index of a voxel to millimetres, (x, y, z, 1) = A (i, j, k, 1), with x to the right of the patient,
y forward and z up (NIfTI's convention). Two scans of one patient can be compared voxel by voxel only if their grids are
the same. How far they are apart is the largest distance between the places that both give to a corner of the volume.

The axes of an array may follow the patient's in any order and direction. A volume is turned to wanted axes by flips and
permutations alone, which change no value and are undone exactly. `IPL` names axes toward the inferior, posterior and
left: then every slice stands upright as radiologists look at it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import affine_transform

from mandorla.errors import MandorlaError

OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}
PLANES = {"sagittal": "LR", "coronal": "PA", "axial": "IS"}  # and the letters of the axis across them


@dataclass(frozen=True)
class Geometry:
    """Hold the grid of a volume: its `affine` (4, 4), from voxels to mm, and its `shape`."""

    affine: np.ndarray
    shape: tuple[int, ...]

    @property
    def spacing(self) -> np.ndarray:
        """Return the edges of a voxel in mm, `(3,)`."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def axes(self) -> str:
        """Return the direction that each axis leads to, such as `RAS`: right, anterior, superior."""
        return _axes(np.asarray(self.affine, np.float64).tobytes())

    def distance(self, other: "Geometry") -> float:
        """Return how far, in mm, a corner of this volume lies from where `other` puts it."""
        corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(self.shape) - 1)
        apart = corners @ (self.affine - other.affine)[:3, :3].T + (self.affine - other.affine)[:3, 3]
        return float(np.linalg.norm(apart, axis=1).max())

    def difference(self, other: "Geometry", tolerance: float) -> str:
        """Return in words how the grid of `other` differs; empty if it is this one up to `tolerance` voxels."""
        if self.shape != other.shape:
            return f"shape {_show(other.shape)} instead of {_show(self.shape)}"
        apart, edge = self.distance(other), float(self.spacing.min())
        if apart <= tolerance * edge:
            return ""
        if not np.allclose(self.spacing, other.spacing, rtol=tolerance / max(self.shape)):
            return f"spacing {_show(other.spacing)} mm instead of {_show(self.spacing)}, up to {apart:.3g} mm apart"
        return f"voxels lie up to {apart:.3g} mm ({apart / edge:.3g} voxels) apart"


@dataclass(frozen=True)
class Turn:
    """Turn arrays on one grid by flips and permutations: axis `order[i]` becomes axis i, reversed where `flips[i]`."""

    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @classmethod
    def of(cls, geometry: Geometry, axes: str) -> "Turn":
        """Return what turns a volume on `geometry` to `axes`."""
        own = geometry.axes
        order = tuple(next(i for i, letter in enumerate(own) if letter in (a, OPPOSITE[a])) for a in axes)
        return cls(order, tuple(own[i] != a for i, a in zip(order, axes, strict=True)))

    @property
    def moves(self) -> bool:
        """Return whether any axis changes its place or direction."""
        return self.order != (0, 1, 2) or any(self.flips)

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Return `values` `(..., D, H, W)` turned."""
        lead = values.ndim - 3
        turned = values.transpose(*range(lead), *(lead + axis for axis in self.order))
        return np.flip(turned, [lead + axis for axis in range(3) if self.flips[axis]])

    def undo(self, values: np.ndarray) -> np.ndarray:
        """Return turned `values` `(..., D, H, W)` as they were."""
        lead = values.ndim - 3
        back = np.flip(values, [lead + axis for axis in range(3) if self.flips[axis]])
        return back.transpose(*range(lead), *(lead + int(axis) for axis in np.argsort(self.order)))

    def of_grid(self, geometry: Geometry) -> Geometry:
        """Return the grid of a turned volume."""
        affine = geometry.affine.astype(float).copy()
        for axis, flip in zip(self.order, self.flips, strict=True):
            if flip:
                affine[:3, 3] += geometry.affine[:3, axis] * (geometry.shape[axis] - 1)
                affine[:3, axis] *= -1
        affine[:3, :3] = affine[:3, list(self.order)]
        return Geometry(affine, tuple(geometry.shape[axis] for axis in self.order))


@lru_cache(maxsize=256)
def _axes(affine: bytes) -> str:
    """Return the axes of an affine: the same for most files, and slow to find."""
    import nibabel

    return "".join(nibabel.aff2axcodes(np.frombuffer(affine).reshape(4, 4)))


def across(plane: str | int, axes: str) -> int:
    """Return the axis across a `plane` (axial, coronal, sagittal) of a volume with `axes`; a number is the axis."""
    if isinstance(plane, int):
        return plane
    return next(i for i, letter in enumerate(axes) if letter in PLANES[plane])


def resample(
    values: np.ndarray, own: Geometry, wanted: Geometry, nearest: bool, background: Sequence[float]
) -> np.ndarray:
    """Return `values` `(C, D, H, W)` on the grid `own` on the grid `wanted`.

    Numbers are interpolated linearly, so that no value is made up beyond those around it, and become float32; with
    `nearest` each voxel takes its nearest one's value and type. Within the outermost half voxel the outermost value
    counts; what lies outside becomes `background`, a number for each channel.

    Raises `MandorlaError` if all of it lies outside.
    """
    step = np.linalg.inv(own.affine) @ wanted.affine  # from an index on the wanted grid to one on the own
    outside = np.zeros(wanted.shape, bool)
    for row, length in zip(step, own.shape, strict=False):
        index = row[3] + sum(np.ix_(*(each * np.arange(n) for each, n in zip(row, wanted.shape, strict=False))))
        outside |= (index < -0.5) | (index > length - 0.5)
    if outside.all():
        raise MandorlaError("no voxel of one lies within the other")
    moved = np.empty((len(values), *wanted.shape), values.dtype if nearest else np.float32)
    for channel, own_channel, level in zip(moved, values, background, strict=True):
        affine_transform(
            own_channel,
            step[:3, :3],
            step[:3, 3],
            wanted.shape,
            channel,
            0 if nearest else 1,
            "nearest",
            prefilter=False,
        )
        channel[outside] = level
    return moved


def check_axes(axes: str) -> str:
    """Return `axes` if they name three different axes of the patient. Raises `MandorlaError` if not."""
    if sorted(min(letter, OPPOSITE.get(letter, "")) for letter in axes) != ["A", "I", "L"]:
        raise MandorlaError(f"{axes!r}: axes are three letters, one of R or L, one of A or P, one of S or I")
    return axes


def _show(numbers) -> str:
    return " x ".join(f"{number:g}" for number in numbers)
