"""What is in a data source, before anything is trained on it.

`examine` looks at every row of a `Stock` once and gathers `Facts`. Numbers of values come from at most `NUM_ROWS` rows,
spread evenly, and from `NUM_VALUES` values of each modality; shapes, types, NaN, blank and double images from all.

A *row* is what a source lists, such as a pair of volumes; a *sample* is what a training sees, such as one of their
slices.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mandorla.check.source import Look, Seen, Stock
from mandorla.data import DataConfig
from mandorla.data.dataset import evenly
from mandorla.data.duplicates import find_alike, find_shared, sketch
from mandorla.data.intensity import background
from mandorla.data.labels import to_label
from mandorla.data.samples import to_id
from mandorla.data.splits import PARTS, split
from mandorla.data.stored import StoredConfig, sort_pairs
from mandorla.data.workers import work_in_order
from mandorla.errors import MandorlaError

NUM_ROWS = 512  # whose values are looked at
NUM_VALUES = 2**21  # of one modality
NUM_PICTURES = 8
PERCENTILES = (0.5, 50, 99.5)
BINS = 64
FEW_PER_CLASS = 3  # samples, below which classes are no classes
NEAREST = 0.02  # share of the usual range of brightness, below which an image is all but blank
SPREAD = 3  # subjects, from which on their brightness is compared
DARK = 1 / 8  # of the range of a subject's values: what is dark


class Double(NamedTuple):
    """Name two samples that hold the same image of `modality`."""

    modality: str
    ids: tuple[str, str]


@dataclass(frozen=True)
class ModalityFacts:
    """Say what one modality holds.

    - `num`: samples that have it; `shapes`, `dtypes`: how many of each there are
    - `low`, `high`: of all; `percentiles`, `foreground` (the same above the background), `background` (its share),
      `counts` and `edges` of a histogram: of some samples
    - `unreadable`: places and why; `bad`: ids of samples with NaN or infinite values; `blank`: ids of samples of one
      value; `dark`: ids of those that hold next to nothing but background
    - `blank_slices`: of whole volumes, and all their slices
    - `unlike`: how many times as bright the bright subjects are as the dark ones; `lit`: the subjects without the dark
      background that others have
    - `pictures`: of the samples that `Facts.pictured` names, None where it is missing
    """

    name: str
    num: int
    shapes: Counter
    dtypes: Counter
    low: float
    high: float
    percentiles: dict[float, float]
    foreground: dict[float, float]
    background: float
    counts: np.ndarray
    edges: np.ndarray
    unreadable: list[tuple[str, str]]
    bad: list[str]
    blank: list[str]
    dark: list[str]
    blank_slices: tuple[int, int]
    unlike: float
    lit: list[str]
    pictures: list[np.ndarray | None]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the commonest shape `(C, *size)`; empty if nothing can be read."""
        return self.shapes.most_common(1)[0][0] if self.shapes else ()

    @property
    def dtype(self) -> str:
        """Return the commonest type; empty if nothing can be read."""
        return self.dtypes.most_common(1)[0][0] if self.dtypes else ""


@dataclass(frozen=True)
class LabelFacts:
    """Say what one label holds.

    `kind` is class, number, mask or array; `num` counts the samples that have it, `counts` those of each class.
    """

    name: str
    kind: str
    num: int
    counts: dict[str, int]
    low: float = 0.0
    high: float = 0.0
    error: str = ""

    @property
    def is_class(self) -> bool:
        """Return whether this is a class with several samples in each, on average."""
        return self.kind == "class" and FEW_PER_CLASS * len(self.counts) <= self.num


@dataclass(frozen=True)
class Facts:
    """Say what a source holds.

    - `parts[part]`: samples and subjects in it; `division`: what is wrong with the division
    - `paired`: samples with all modalities; `partly[modality]`: ids of the rows that lack it; `skipped`: places that
      belong to no row, and why
    - `together`, `apart`: pairs of modalities that some training sample has both of, and those that none has
    - `grids`: rows whose volumes do not lie on one grid, and how; `spacings`, `axes`: how many rows have each
    - `num_slices`: slices of all volumes, of which samples are those kept; `empty`: ids of volumes without a kept one
    - `doubles`, `alike`: the same image, and images that look the same, in two parts; `repeated`: the same in one part;
      `copied`: ids of samples in which two modalities, named, are the same image
    - `pictured`: ids of the samples with pictures
    - `composed`: whether samples are made up, of which `looked_at` were looked at; `sampled`: whether numbers of values
      are of some samples only
    """

    num_samples: int
    num_subjects: int
    looked_at: int
    parts: dict[str, tuple[int, int]]
    division: str
    paired: int
    together: list[tuple[str, str]]
    apart: list[tuple[str, str]]
    partly: dict[str, list[str]]
    skipped: list[tuple[str, str]]
    modalities: list[ModalityFacts]
    grids: list[tuple[str, str]]
    spacings: Counter
    axes: Counter
    num_slices: int
    empty: list[str]
    doubles: list[Double]
    alike: list[Double]
    repeated: list[Double]
    copied: list[tuple[str, str, str]]
    labels: list[LabelFacts]
    pictured: list[str]
    composed: bool
    sampled: bool


def examine(stock: Stock, config: DataConfig, seed: int) -> Facts:
    """Look at all rows of `stock`; `config` and `seed` say how they are divided."""
    seen = _see(stock)
    samples = list(_samples(stock, seen))
    ids, groups, rows = ([getattr(sample, key) for sample in samples] for key in ("id", "group", "row"))
    known: dict[str, Any] = {
        name: values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]
        for name, values in stock.labels.items()
    }
    marks = {name: [sample.marked.get(name) for sample in samples] for name in stock.masks}
    given = None if stock.parts is None else [stock.parts[row] for row in rows]
    rows_of, division = _divide(stock, ids, groups, given, known, marks, config, seed)

    excluded, numbers = getattr(config, "exclude", ()), getattr(config, "numbers", ())
    used = [i for i, group in enumerate(groups) if group not in excluded]
    looks = {name: {i: samples[i].looks[name] for i in used if name in samples[i].looks} for name in stock.there}
    pictured = sorted({i for of in looks.values() for i, look in of.items() if look.picture is not None})
    errors = {name: [one.errors[name] for one in seen if name in one.errors] for name in (*looks, *marks)}
    subjects = np.array(groups)
    return Facts(
        num_samples=sum(stock.total.values()) or len(ids),
        num_subjects=len(set(groups)),
        looked_at=len(ids),
        parts={part: (stock.total.get(part, len(of)), len(set(subjects[of].tolist()))) for part, of in rows_of.items()},
        division=division,
        **_pairs(stock, rows, np.array(rows, int)[... if division else rows_of["train"]]),
        modalities=[_modality(name, of, ids, groups, errors[name], pictured) for name, of in looks.items()],
        **_grids(stock, seen),
        **_copies(looks, rows_of, ids),
        labels=[
            *(_label(name, values, name in numbers) for name, values in known.items()),
            *(_mask(name, of, errors[name]) for name, of in marks.items()),
        ],
        pictured=[ids[i] for i in pictured],
        composed=bool(stock.total),
        sampled=bool(stock.total) or len(stock.ids) > NUM_ROWS,
    )


def _see(stock: Stock) -> list[Seen]:
    """Return what is kept of all rows: of some the values, of a few a picture."""
    drawn, kept = set(_choose(stock)), set(evenly(len(stock.ids), NUM_ROWS).tolist())
    tasks = [
        (*task, NUM_VALUES // len(kept) if row in kept or row in drawn else 0, row in drawn)
        for row, task in enumerate(stock.tasks)
    ]
    return list(work_in_order(stock.see, tasks, stock.workers))


class _Sample(NamedTuple):
    id: str
    group: str
    row: int
    looks: dict[str, Look]
    marked: dict[str, bool]


def _samples(stock: Stock, seen: Sequence[Seen]) -> Iterator[_Sample]:
    """Yield the samples that rows give, under the names that they have in a training."""
    for row, (text, one) in enumerate(zip(stock.ids, seen, strict=True)):
        for index, number in enumerate([None] if one.numbers is None else one.numbers):
            yield _Sample(
                to_id(text, number),
                stock.groups[row],
                row,
                {name: of[index] for name, of in one.looks.items()},
                {name: of[index] for name, of in one.marked.items()},
            )


def _pairs(stock: Stock, rows: Sequence[int], train: np.ndarray) -> dict[str, Any]:
    """Return the facts on what is there of whom; `rows` are those of samples, `train` those of training samples."""
    together, apart = sort_pairs({name: there[train] for name, there in stock.there.items()})
    lacking = {name: [stock.ids[row] for row in np.flatnonzero(~there)] for name, there in stock.there.items()}
    return {
        "paired": sum(all(there[row] for there in stock.there.values()) for row in rows),
        "together": together,
        "apart": apart,
        "partly": {name: without for name, without in lacking.items() if without},
        "skipped": [(place, why) for place, why in stock.report.skipped],
    }


def _grids(stock: Stock, seen: Sequence[Seen]) -> dict[str, Any]:
    """Return the facts on where volumes lie, and on their slices."""
    rows = list(zip(stock.ids, seen, strict=True))
    return {
        "grids": [(text, one.grid) for text, one in rows if one.grid],
        "spacings": Counter(" x ".join(f"{mm:.3g}" for mm in one.spacing) for one in seen if one.spacing),
        "axes": Counter(one.axes for one in seen if one.axes),
        "num_slices": sum(one.num_slices for one in seen),
        "empty": [text for text, one in rows if one.numbers == []],
    }


def _copies(
    looks: Mapping[str, Mapping[int, Look]], rows_of: Mapping[str, np.ndarray], ids: Sequence[str]
) -> dict[str, Any]:
    """Return the facts on images that are there twice."""
    digests = {name: [of[i].digest if i in of else b"" for i in range(len(ids))] for name, of in looks.items()}
    sketches = {name: _sketches(of, len(ids)) for name, of in looks.items()}
    doubles = [Double(name, pair) for name, pair in find_shared(digests, rows_of, ids)]
    exact = {(double.modality, double.ids[1]) for double in doubles}
    near = [Double(name, pair) for name, pair in find_alike(sketches, rows_of, ids)]
    return {
        "doubles": doubles,
        "alike": [double for double in near if (double.modality, double.ids[1]) not in exact],
        "repeated": _repeated(digests, rows_of, ids),
        "copied": _copied(digests, ids),
    }


def _choose(stock: Stock) -> list[int]:
    """Return a few rows to draw, of different subjects as far as there are such, complete ones first."""
    count = sum(there.astype(int) for there in stock.there.values())
    by_subject: dict[str, list[int]] = {}
    for row, group in enumerate(stock.groups):
        by_subject.setdefault(group, []).append(row)
    middles = []
    for rows in by_subject.values():
        full = [row for row in rows if count[row] == max(count[rows])]
        middles.append(full[len(full) // 2])
    best = [row for row in middles if count[row] == len(stock.there)] or middles
    chosen = _spread(best, NUM_PICTURES)
    others = sorted(set(range(len(stock.ids))) - set(chosen))
    return sorted(chosen + _spread(others, NUM_PICTURES - len(chosen)))


def _spread(rows: Sequence[int], most: int) -> list[int]:
    return [rows[i] for i in evenly(len(rows), most)]


def _divide(
    stock: Stock,
    ids: Sequence[str],
    groups: Sequence[str],
    parts: Sequence[str | None] | None,
    known: Mapping[str, Any],
    marks: Mapping[str, Sequence[bool | None]],
    config: DataConfig,
    seed: int,
) -> tuple[dict[str, np.ndarray], str]:
    """Return the samples in each part, and what is wrong with the division."""
    if stock.total:
        return {part: np.flatnonzero(np.array(parts) == part) for part in PARTS}, ""
    shares = (config.val_share, config.test_share)
    try:
        strata = None if config.stratify is None else _strata(config, known, marks)
        return split(groups, *shares, seed, "data", strata, config.exclude, parts, ids), ""
    except MandorlaError as error:
        return {part: np.arange(0) for part in PARTS}, str(error)


def _strata(config: StoredConfig, known: Mapping[str, Any], marks: Mapping[str, Sequence[bool | None]]) -> np.ndarray:
    """Return each sample's class by the label to stratify by; `X_present` is whether the mask `X_mask` marks any."""
    name = config.stratify
    mask = f"{name.removesuffix('_present')}_mask"
    if name in known:
        label = to_label(known[name], f"data.labels.{name}", name in config.numbers)
        if label.classes:
            return label.values
    elif name.endswith("_present") and mask in marks:
        return np.array([-1 if marked is None else int(marked) for marked in marks[mask]])
    elif name.endswith("_present") and mask in known:
        return np.asarray(known[mask]).reshape(len(known[mask]), -1).any(axis=1)
    raise MandorlaError(f"data.stratify: {name!r} is no label with classes; mend it, or leave it out")


def _modality(
    name: str,
    looks: Mapping[int, Look],
    ids: Sequence[str],
    groups: Sequence[str],
    unreadable: list[tuple[str, str]],
    pictured: Sequence[int],
) -> ModalityFacts:
    seen = list(looks.values())
    values = np.concatenate([np.zeros(0, np.float32), *(look.values for look in seen)])
    has_space = any(len(look.shape) > 2 for look in seen)
    dark = background(values) if len(values) and has_space else -np.inf
    above = values[values > dark]
    edges = np.unique(np.percentile(values, [0.1, 99.9])) if len(values) else np.zeros(0)
    counts, edges = np.histogram(values, BINS, edges if len(edges) == 2 else None) if len(values) else (edges, edges)
    floor = dark if np.isfinite(dark) else min((look.low for look in seen), default=0.0)
    width = float(np.percentile(above, 99.5) - floor) if len(above) else 0.0
    tops: dict[str, float] = {}
    for i, look in looks.items():
        if look.top > floor:
            tops[groups[i]] = max(tops.get(groups[i], 0.0), look.top - floor)
    faint, bright = np.percentile(list(tops.values()), [10, 90]) if len(tops) >= SPREAD else (1.0, 1.0)
    return ModalityFacts(
        name=name,
        num=len(looks) + len(unreadable),
        shapes=Counter(look.shape for look in seen),
        dtypes=Counter(look.dtype for look in seen),
        low=min((look.low for look in seen if look.low == look.low), default=0.0),
        high=max((look.high for look in seen if look.high == look.high), default=0.0),
        percentiles=_percentiles(values),
        foreground=_percentiles(above),
        background=1 - len(above) / len(values) if len(values) else 0.0,
        counts=counts,
        edges=edges,
        unreadable=unreadable,
        bad=[ids[i] for i, look in looks.items() if look.num_bad],
        blank=[ids[i] for i, look in looks.items() if look.blank],
        dark=[
            ids[i]
            for i, look in looks.items()
            if np.isfinite(dark) and not look.blank and look.top - floor <= NEAREST * width
        ],
        blank_slices=(sum(look.blank_slices[0] for look in seen), sum(look.blank_slices[1] for look in seen)),
        unlike=float(bright / faint),
        lit=_lit(looks, groups) if has_space else [],
        pictures=[looks[i].picture if i in looks else None for i in pictured],
    )


def _lit(looks: Mapping[int, Look], groups: Sequence[str]) -> list[str]:
    """Return the subjects in whose images next to nothing is dark, where more than a third of the others' is."""
    of: dict[str, list[np.ndarray]] = {}
    for i, look in looks.items():
        if len(look.values) and not look.blank:
            of.setdefault(groups[i], []).append(look.values)
    shares = {name: _dark_share(np.concatenate(values)) for name, values in of.items()}
    usual = np.median(list(shares.values())) if shares else 0.0
    return [name for name, share in shares.items() if usual > 1 / 3 and share < usual / 4]


def _dark_share(values: np.ndarray) -> float:
    """Return which share of `values` lies in the darkest part of their range."""
    low, high = np.percentile(values, [0.1, 99.5])
    return float((values <= low + DARK * (high - low)).mean())


def _percentiles(values: np.ndarray) -> dict[float, float]:
    return dict(zip(PERCENTILES, np.percentile(values, PERCENTILES).tolist(), strict=True)) if len(values) else {}


def _sketches(looks: Mapping[int, Look], num: int) -> np.ndarray:
    """Return the sketch of each of `num` images, as `sketch` makes it; NaN where none has the usual shape."""
    shapes = Counter(look.cells.shape for look in looks.values())
    if not shapes:
        return np.zeros((num, 0), np.float32)
    ((usual, _),) = shapes.most_common(1)
    rows = [i for i, look in looks.items() if look.cells.shape == usual]
    sketches = np.full((num, np.prod(usual)), np.nan, np.float32)
    sketches[rows] = sketch(np.stack([looks[i].cells for i in rows]))
    return sketches


def _repeated(
    digests: Mapping[str, Sequence[bytes]], rows_of: Mapping[str, np.ndarray], ids: Sequence[str]
) -> list[Double]:
    """Return the images that one part holds twice."""
    found = []
    for name, hashes in digests.items():
        for rows in rows_of.values():
            first: dict[bytes, str] = {}
            for i in rows.tolist():
                if hashes[i] and first.setdefault(hashes[i], ids[i]) != ids[i]:
                    found.append(Double(name, (first[hashes[i]], ids[i])))
    return found


def _copied(digests: Mapping[str, Sequence[bytes]], ids: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return the samples in which two modalities hold one image: id and both names."""
    names = list(digests)
    return [
        (ids[i], one, other)
        for i in range(len(ids))
        for index, one in enumerate(names)
        for other in names[index + 1 :]
        if digests[one][i] and digests[one][i] == digests[other][i]
    ]


def _label(name: str, values: np.ndarray | Sequence[str | float | None], number: bool) -> LabelFacts:
    try:
        label = to_label(values, f"data.labels.{name}", number)
    except MandorlaError as error:
        return LabelFacts(name, "?", 0, {}, error=str(error))
    if name.endswith("_mask"):
        return _mask(name, label.values.reshape(len(label.values), -1).any(axis=1).tolist(), [])
    if label.values.ndim > 1:
        return LabelFacts(name, "array", len(label.values), {})
    if label.classes:
        counts = Counter(label.values.astype(int).tolist())
        named = {text: counts[number] for number, text in enumerate(label.classes) if counts[number]}
        return LabelFacts(name, "class", sum(named.values()), dict(sorted(named.items(), key=lambda c: -c[1])))
    numbers = label.values[np.isfinite(label.values)].astype(float)
    low, high = (numbers.min(), numbers.max()) if len(numbers) else (0, 0)
    return LabelFacts(name, "number", len(numbers), {}, float(low), float(high))


def _mask(name: str, marked: Sequence[bool | None], errors: Sequence[tuple[str, str]]) -> LabelFacts:
    known = [mark for mark in marked if mark is not None]
    text = f"{len(errors)} mask(s) cannot be read, such as {errors[0][0]}: {errors[0][1]}" if errors else ""
    return LabelFacts(name, "mask", len(known), {"marked": sum(known), "empty": len(known) - sum(known)}, error=text)
