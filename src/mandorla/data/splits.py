"""Division into train, val and test: by group, repeatable, written down, checked.

Everything of one group (a patient) goes to one part; neighbouring slices of a head are near copies, and a model that
trained on one has seen the other. Which group goes where follows from the seed and the groups' names, not from the
order of files. `stratify` gives each class its share of every part (by largest remainders, Hamilton's method). A
division that the data bring along is taken as it is, if no group lies in two parts.

The same image under two names is found by its content: two parts may not share one. A near copy (compressed anew, of
other size, a little brighter or noisier) is found by a *sketch*: averages over a few cells, less their mean, over their
norm. Sketches e and f of unit length lie as far apart, |e - f|, as the cells differ in their standard deviations.
"""

import json
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import blake2b, sha256
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import KDTree
from torch.nn.functional import interpolate

from mandorla.data.dataset import Splits, row_chunks
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.storage import read_json, write_text

PARTS = ("train", "val", "test")
NEAR_CELLS = {1: 64, 2: 8, 3: 4}  # by number of axes: per axis, so that 64 averages describe an image
NEAR_DISTANCE = 0.04  # between sketches; heads of two patients lie at least 0.067 apart, 1 % of JPEG copies over 0.043
NEAR_VARIETY = 4  # cells that an image must vary in to be compared: single bright spots are alike
NEAR_SPREAD = 0.03  # least deviation of the cells, over the median of all images: rounding makes up fainter ones
_AGAIN = "restore them, or begin a new run"


def split(
    groups: Sequence[str],
    val_share: float,
    test_share: float,
    seed: int,
    source: str,
    strata: Sequence[str] | np.ndarray | None = None,
    excluded: Sequence[str] = (),
    parts: Sequence[str | None] | None = None,
    ids: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Return the rows of each part, "train", "val" and "test", so that no group lies in two.

    `groups` names the group of each row; the shares are of groups, and each part gets one at least. The order of rows
    plays no role. `strata` gives the class of each row (that of a group is its commonest): each class then has its
    share of every part, up to one group. Groups that are `excluded` are in no part; where the others are does not
    change. Where `parts` names the part of each row, of which `ids` are the names, only a part that no row is in is
    drawn, from the groups in train. `source` names the data in errors.

    Raises `MandorlaError` for too few groups, mistakes in `excluded`, a row without a part or with an unknown one, and
    a group that lies in two parts, which it names.
    """
    groups = list(map(str, groups))
    home = dict.fromkeys(groups, "train") if parts is None else _as_given(parts, ids, groups, source)
    _warn_of_like_names(groups, source)
    train = _shuffled([group for group in groups if home[group] == "train"], seed)
    num_train = len(train)
    stratum = dict.fromkeys(train, "") if strata is None else _commonest(groups, strata)
    shares = {"test": test_share, "val": val_share}
    drawn = [part for part in shares if part not in home.values()]
    for part in drawn:
        taken, train = _draw(train, max(1, round(shares[part] * num_train)), stratum)
        home |= dict.fromkeys(taken, part)
    if not train:
        given = "" if parts is None else " with the split train"
        remedy = ", or lower data.val_share and data.test_share" if num_train > len(drawn) else ", each part needs one"
        raise MandorlaError(
            f"{source}: {num_train} group(s){given} are too few to divide into train, val and test: add some{remedy}"
        )
    return _rows(groups, home, excluded, source)


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


def write_splits(path: Path, splits: Splits) -> None:
    """Write the ids of each part, the fingerprint of the data and a hash over both to the JSON file `path`.

    Raises `MandorlaError` if a sample or a group lies in two parts.
    """
    _check_disjoint(splits)
    record = {part: list(dataset.ids) for part, dataset in splits.parts.items()} | {"data": splits.fingerprint}
    write_text(path, json.dumps(record | {"hash": _hash(record)}))


def check_splits(path: Path, splits: Splits) -> bool:
    """Compare the data with the JSON file `path`; return whether they have the fingerprint that it holds.

    Raises `MandorlaError` if a sample or a group lies in two parts, if the file was changed, or if it holds another
    division: then data were added, removed or renamed since, and what was trained on might now be tested on.
    """
    _check_disjoint(splits)
    written = read_splits(path)
    for part, dataset in splits.parts.items():
        if changed := sorted(set(written[part]) ^ set(dataset.ids)):
            raise MandorlaError(
                f"{path}: the data changed since this run began ({len(changed)} sample(s) entered or left {part}, "
                f"such as {changed[0]!r}); {_AGAIN}"
            )
    return written["data"] == splits.fingerprint


def read_splits(path: Path) -> dict[str, list[str] | str]:
    """Return what `write_splits` wrote: ids by part, and the fingerprint of the `data`.

    Raises `MandorlaError` if the file is missing, or its hash says that it was changed.
    """
    written = read_json(path)
    lists = all(isinstance(written.get(part), list) for part in PARTS)
    if not lists or written.get("hash") != _hash(written):
        raise MandorlaError(f"{path}: its hash does not fit what it holds, it was changed or damaged; {_AGAIN}")
    return written


def _cells(images: np.ndarray) -> np.ndarray:
    """Return float images `(N, C, *size)` averaged down to a few cells; `(N, 0)` if they have less space than cells."""
    cells = NEAR_CELLS.get(images.ndim - 2, 0)
    if not cells or min(images.shape[2:]) < cells:
        return np.zeros((len(images), 0), np.float32)
    return interpolate(torch.from_numpy(images), size=(cells,) * (images.ndim - 2), mode="area").numpy()


def _check_disjoint(splits: Splits) -> None:
    """Raise `MandorlaError` if a sample, or a group where the data has groups, lies in two parts."""
    for what, key in (("sample", "ids"), ("subject", "groups")):
        home: dict[str, str] = {}
        for part, dataset in splits.parts.items():
            names = set(map(str, getattr(dataset, key, ())))
            if common := sorted(names & home.keys()):
                raise MandorlaError(
                    f"{what} {common[0]!r} lies in both {home[common[0]]} and {part} ({len(common)} in all)"
                )
            home |= dict.fromkeys(names, part)


def _as_given(parts: Sequence[str | None], ids: Sequence[str], groups: Sequence[str], source: str) -> dict[str, str]:
    """Return the part of each group. Raises `MandorlaError` for what is none, and a group that lies in two."""
    for name, part in zip(ids, parts, strict=True):
        if part not in PARTS:
            raise MandorlaError(
                f"{source}: sample {name!r} has the split {part!r}; give train, val or test to every one"
            )
    home: dict[str, str] = {}
    leaks = {}
    for group, part in zip(groups, parts, strict=True):
        if home.setdefault(group, part) != part:
            leaks.setdefault(group, part)
    if leaks:
        group, part = next(iter(leaks.items()))
        raise MandorlaError(
            f"{source}: the split leaks: subject {group!r} lies in both {home[group]} and {part} ({len(leaks)} such "
            "subject(s)); move each into one part"
        )
    return home


def _warn_of_like_names(groups: Sequence[str], source: str) -> None:
    """Warn of names that differ by case or leading zeros alone, as those of one subject in two files may."""
    alike: dict[str, list[str]] = {}
    for name in sorted(set(groups)):
        alike.setdefault(re.sub(r"(?<!\d)0+(?=\d)", "", name.casefold()), []).append(name)
    if found := [names for names in alike.values() if len(names) > 1]:
        warnings.warn(
            f"{source}: subjects {' and '.join(map(repr, found[0]))} ({len(found)} such case(s)) are told apart by "
            "case or leading zeros alone; if they are one, give them one name, lest the split leak",
            MandorlaWarning,
            stacklevel=3,
        )


def _shuffled(groups: Sequence[str] | np.ndarray, seed: int) -> list[str]:
    """Return the different groups, in an order that their names and the seed decide."""
    return sorted(set(map(str, groups)), key=lambda name: blake2b(f"{seed}/{name}".encode()).digest())


def _rows(
    groups: Sequence[str], home: Mapping[str, str], excluded: Sequence[str], source: str
) -> dict[str, np.ndarray]:
    """Return the rows of each part, of which `home` is that of each group, without those of `excluded` groups.

    Raises `MandorlaError` for a name that no group has, and where nothing is left of a part that had something.
    """
    names = sorted(home)
    if unknown := sorted(set(excluded) - set(names)):
        near = get_close_matches(unknown[0], names)
        hint = f"; is it {' or '.join(map(repr, near))}?" if near else f"; they have names like {names[0]!r}"
        raise MandorlaError(f"data.exclude: no subject of {source} is called {unknown[0]!r}{hint}")
    if excluded and (empty := set(home.values()) - {home[name] for name in set(names) - set(excluded)}):
        raise MandorlaError(f"data.exclude leaves nothing of {source} for {min(empty)}: exclude fewer subjects")
    part_of = np.array(["" if group in excluded else home[group] for group in groups])
    return {part: np.flatnonzero(part_of == part) for part in PARTS}


def _commonest(groups: Sequence[str], strata: Sequence[str] | np.ndarray) -> dict[str, str]:
    """Return the commonest class of each group, of equally common ones the first in the alphabet."""
    counts: dict[str, Counter] = {}
    for group, stratum in zip(groups, map(str, strata), strict=True):
        counts.setdefault(group, Counter())[stratum] += 1
    return {group: min(count, key=lambda name: (-count[name], name)) for group, count in counts.items()}


def _draw(names: Sequence[str], num: int, stratum: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Take the first of `names`, `num` in all, from each stratum its share; return those and the rest, in order."""
    sizes = Counter(stratum[name] for name in names)
    shares = {s: size * num / len(names) for s, size in sizes.items()}
    quota = {s: int(share) for s, share in shares.items()}
    order = sorted(sizes, key=lambda s: (quota[s] - shares[s], s))
    for s in order[: num - sum(quota.values())]:
        quota[s] += 1
    taken, rest = [], []
    for name in names:
        quota[stratum[name]] -= 1
        (taken if quota[stratum[name]] >= 0 else rest).append(name)
    return taken, rest


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


def _hash(parts: Mapping) -> str:
    content = {part: sorted(map(str, parts.get(part, ()))) for part in PARTS} | {"data": parts.get("data", "")}
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
