"""Images that are there twice: found by what they hold, under whatever names.

The same image under two names has the same hash of its values: two parts may not share one. A near copy (compressed
anew, of other size, a little brighter or noisier) is found by a *sketch*: averages over a few cells, less their mean,
over their norm. Sketches e and f of unit length lie as far apart, |e - f|, as the cells differ in their standard
deviations.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from scipy.spatial import KDTree
from torch.nn.functional import interpolate

from mandorla.data.dataset import row_chunks
from mandorla.data.splits import PARTS
from mandorla.errors import MandorlaError, MandorlaWarning

NEAR_CELLS = {1: 64, 2: 8, 3: 4}  # by number of axes: per axis, so that 64 averages describe an image
NEAR_DISTANCE = 0.04  # between sketches; heads of two patients lie at least 0.067 apart, 1 % of JPEG copies over 0.043
NEAR_VARIETY = 4  # cells that an image must vary in to be compared: single bright spots are alike
NEAR_SPREAD = 0.03  # least deviation of the cells, over the median of all images: rounding makes up fainter ones


@dataclass(frozen=True)
class Marks:
    """Hold what tells the images of one modality apart, without the images.

    - `hashes`: of each image as it is stored, uint8 `(N, 16)`; zeros where it is missing
    - `blank`: bool `(N,)`, whether an image is missing or of a single value
    - `cells`: means of its stored values over a few areas, float32 `(N, C, ...)`, zeros where it is missing
    """

    hashes: np.ndarray
    blank: np.ndarray
    cells: np.ndarray

    @classmethod
    def of(cls, images: np.ndarray, present: np.ndarray) -> "Marks":
        """Return those of `images` `(N, C, *size)`; `present`, bool `(N,)`, says which are there."""
        hashes = np.zeros((len(images), 16), np.uint8)
        blank, cells = ~present, []
        for row in np.flatnonzero(present):
            image = np.ascontiguousarray(images[row])
            hashes[row] = np.frombuffer(blake2b(image, digest_size=16).digest(), np.uint8)
            blank[row] = image.min() == image.max()
        for rows in row_chunks(images):
            cells.append(_cells(images[rows].astype(np.float32)))
            cells[-1][~present[rows]] = 0
        return cls(hashes, blank, np.concatenate(cells))

    def digests(self) -> list[bytes]:
        """Return the hash of each image; empty for a blank one."""
        return [b"" if blank else row.tobytes() for row, blank in zip(self.hashes, self.blank, strict=True)]


def sketch(cells: np.ndarray) -> np.ndarray:
    """Return the sketch of each image, float32 `(N, F)`, from its `cells` `(N, C, ...)`; NaN for one all but blank."""
    flat = cells.reshape(len(cells), -1).astype(np.float32)
    if not flat.size:
        return flat
    rounding = 1e-6 * np.linalg.norm(flat, axis=1, keepdims=True)
    flat = flat - flat.mean(1, keepdims=True)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    norms = np.where(norms > rounding, norms, 0)
    unit = flat / np.where(norms > 0, norms, 1)
    variety = 1 / np.maximum((unit**4).sum(1, keepdims=True), np.finfo(np.float32).tiny)
    usual = np.median(norms[norms > 0]) if norms.any() else 1.0
    return np.where((norms > NEAR_SPREAD * usual) & (variety >= NEAR_VARIETY), unit, np.float32(np.nan))


def check_duplicates(
    digests: Mapping[str, Sequence[bytes]],
    sketches: Mapping[str, np.ndarray],
    rows: Mapping[str, np.ndarray],
    ids: Sequence[str],
    source: str,
) -> None:
    """Look for images that lie in two parts; `digests` and `sketches` hold those of each modality's images, by row.

    Raises `MandorlaError` for the same image; warns of images that look the same. Blank images do not count.
    """
    if found := find_shared(digests, rows, ids):
        name, (one, other) = found[0]
        raise MandorlaError(
            f"{source}: {len(found)} image(s) lie in two parts, such as {name} of samples {one!r} and {other!r}; "
            "remove one, give both the same group, or set data.duplicates to keep"
        )
    if found := find_alike(sketches, rows, ids):
        name, (one, other) = found[0]
        warnings.warn(
            f"{source}: {len(found)} image(s) look like one in another part, such as {name} of samples {one!r} and "
            f"{other!r}: are they of one subject?",
            MandorlaWarning,
            stacklevel=2,
        )


def find_shared(
    digests: Mapping[str, Sequence[bytes]], rows: Mapping[str, np.ndarray], ids: Sequence[str]
) -> list[tuple[str, tuple[str, str]]]:
    """Return the images of a later part that an earlier one has too: modality, and the ids of both samples.

    `digests[modality]` are hashes by row, empty for an image that is not to count; `rows` are those of each part.
    """
    found = []
    for name, hashes in digests.items():
        first: dict[bytes, tuple[str, str]] = {}
        for part in PARTS:
            for row in rows[part].tolist():
                part_of_first, id_of_first = first.setdefault(hashes[row], (part, ids[row]))
                if hashes[row] and part_of_first != part:
                    found.append((name, (str(id_of_first), str(ids[row]))))
    return found


def find_alike(
    sketches: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray], ids: Sequence[str]
) -> list[tuple[str, tuple[str, str]]]:
    """Return the images of a later part that look like one of an earlier part: modality, and the ids of both samples.

    `sketches[modality]` are `(N, F)` by row, as `sketch` makes them; each image is named once, with the nearest one.
    """
    found = []
    for name, of in sketches.items():
        if not of.shape[1]:
            continue
        seen = ~np.isnan(of).any(axis=1)
        earlier = np.arange(0)
        for part in PARTS:
            own = rows[part][seen[rows[part]]]
            if len(earlier) and len(own):
                _, nearest = KDTree(of[earlier]).query(of[own], distance_upper_bound=NEAR_DISTANCE)
                pairs = zip(own.tolist(), nearest.tolist(), strict=True)
                found += [(name, (str(ids[earlier[j]]), str(ids[i]))) for i, j in pairs if j < len(earlier)]
            earlier = np.concatenate([earlier, own])
    return found


def _cells(images: np.ndarray) -> np.ndarray:
    """Return float images `(N, C, *size)` averaged down to a few cells; `(N, 0)` if they have less space than cells."""
    cells = NEAR_CELLS.get(images.ndim - 2, 0)
    if not cells or min(images.shape[2:]) < cells:
        return np.zeros((len(images), 0), np.float32)
    return interpolate(torch.from_numpy(images), size=(cells,) * (images.ndim - 2), mode="area").numpy()
