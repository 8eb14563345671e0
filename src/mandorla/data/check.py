"""What is in a data source, before anything is trained on it: facts, and what is wrong.

`gather` lists the samples of a source without reading them, `examine` looks at every file or array row once and keeps
of each only what it needs: shape, type, grid, a hash, means of a few areas, some values. Memory therefore does not grow
with the size of the images. `judge` compares the facts with settings and says what stops a training (`mend`) and what
is worth a look (`note`); `advise` gives the settings that the facts ask for.

Numbers of values come from at most `NUM_ROWS` samples per modality, spread evenly; shapes, types, NaN, blank and double
images from all.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch.nn.functional import interpolate

from mandorla.data import DataConfig, load_data, pair_files
from mandorla.data.arrays import ArraysConfig, gather_arrays
from mandorla.data.decode import FilesConfig
from mandorla.data.export import plain_grid
from mandorla.data.geometry import Geometry, Turn, across
from mandorla.data.intensity import AsStored, Intensity, Percentile, background
from mandorla.data.labels import to_label
from mandorla.data.pairing import PairingReport
from mandorla.data.readers import ReadOptions, read
from mandorla.data.samples import GeometryConfig
from mandorla.data.splits import (
    PARTS,
    Marks,
    digest_looks,
    find_shared,
    split_as_given,
    split_by_group,
)
from mandorla.data.stored import StoredConfig
from mandorla.errors import MandorlaError

NUM_ROWS = 512  # samples per modality whose values are looked at
NUM_VALUES = 4096  # values of each of them
NUM_PICTURES = 8
TOLERANCE = GeometryConfig().tolerance
UPRIGHT = "IPL"  # axes of a volume, in which its shape is said
NUM_COMPOSED = 512  # samples per part that are composed to be looked at
PICTURE = 160  # most pixels per side of a picture
PERCENTILES = (0.5, 50, 99.5)
BINS = 64
WORKERS = 4  # threads: decoders release the interpreter
FEW_SUBJECTS, FEW_SAMPLES, FEW_PER_CLASS = 10, 50, 3
UNLIKE = 3.0  # ratio of bright values between subjects from which they have no common scale
DIM = 0.5  # share of a type's range below which values of an integer type are dim
HOUNSFIELD = (-1000.0, 1000.0)
LARGEST = {2: 128, 3: 64}  # by number of axes: values per axis that train in a fair time


# ----------------------------------------------------------------------------------------------------------- the source


@dataclass(frozen=True)
class Stock:
    """List the samples of a source, unread.

    - `fetch(modality, row)` gives the values `(C, *size)` and grid of one, None where it is missing
    - `places[modality]`: where they lie, for words about them; `total`: samples by part where only some are listed
    """

    modalities: tuple[str, ...]
    ids: list[str]
    groups: list[str]
    fetch: Callable[[str, int], tuple[np.ndarray, Geometry | None] | None]
    places: Mapping[str, Sequence[str | None]]
    parts: list[str | None] | None = None
    labels: Mapping[str, np.ndarray | Sequence[str | float | None]] = field(default_factory=dict)
    masks: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    report: PairingReport | None = None
    total: Mapping[str, int] = field(default_factory=dict)


def gather(config: DataConfig, seed: int) -> Stock:
    """Return the samples of the source that `config` describes; unpaired and unpairable files do not stop it.

    Raises `MandorlaError` where they cannot be told apart, and as the source does.
    """
    if isinstance(config, FilesConfig):
        pairs = pair_files(config.model_copy(update={"unpaired": "keep", "unpairable": "skip"}))
        files = pairs.files

        def fetch_file(name: str, row: int) -> tuple[np.ndarray, Geometry | None] | None:
            place = files[name][row]
            if place is None:
                return None
            reading = read(place, config.options(name))
            return reading.values, reading.geometry

        return Stock(
            tuple(files),
            pairs.ids,
            pairs.groups,
            fetch_file,
            files,
            pairs.parts,
            pairs.labels,
            pairs.masks,
            pairs.report,
        )
    if isinstance(config, ArraysConfig):
        rows = gather_arrays(config)
        places = {name: _names(rows.ids, rows.present[name]) for name in rows.x}

        def fetch_row(name: str, row: int) -> tuple[np.ndarray, None] | None:
            return (rows.x[name][row], None) if rows.present[name][row] else None

        return Stock(tuple(rows.x), rows.ids, rows.groups, fetch_row, places, rows.parts, rows.labels)
    return _compose(config, seed)


def _compose(config: DataConfig, seed: int) -> Stock:
    """Return some samples of each part of a composed source."""
    splits = load_data(config, seed)
    parts, batches = [], []
    for part, dataset in splits.parts.items():
        chosen = np.linspace(0, len(dataset) - 1, min(NUM_COMPOSED, len(dataset))).astype(int)
        batches.append(dataset.batch(chosen))
        parts += [part] * len(chosen)
    names = tuple(m.name for m in splits.modalities)
    x = {name: np.concatenate([b.x[name].numpy() for b in batches]) for name in names}
    present = {name: np.concatenate([b.present[name].numpy() for b in batches]) for name in names}
    ids = [text for b in batches for text in b.ids]
    factors = {
        key: np.concatenate([b.factors[key] for b in batches])
        for key in batches[0].factors
        if np.asarray(batches[0].factors[key]).dtype.kind in "biufU"
    }

    def fetch(name: str, row: int) -> tuple[np.ndarray, None] | None:
        return (x[name][row], None) if present[name][row] else None

    places = {name: _names(ids, present[name]) for name in names}
    total = {part: len(dataset) for part, dataset in splits.parts.items()}
    return Stock(names, ids, ids, fetch, places, parts, factors, total=total)


def _names(ids: Sequence[str], present: np.ndarray) -> list[str | None]:
    return [text if there else None for text, there in zip(ids, present, strict=True)]


# ----------------------------------------------------------------------------------------------------------- one image


class Look(NamedTuple):
    """Hold what is kept of one image: `top` is its 99.5 percentile, `cells` `(C, ...)` means of a few areas."""

    shape: tuple[int, ...]
    dtype: str
    geometry: Geometry | None
    digest: bytes
    blank: bool
    num_bad: int
    low: float
    high: float
    top: float
    cells: np.ndarray
    values: np.ndarray
    blank_slices: tuple[int, int]
    picture: np.ndarray | None


def look(values: np.ndarray, geometry: Geometry | None, keep: bool, draw: bool) -> Look:
    """Return what is kept of the image `values` `(C, *size)`: some of its values if `keep`, a picture if `draw`."""
    flat = values.ravel()
    finite = flat if flat.dtype.kind != "f" else flat[np.isfinite(flat)]
    some = finite[:: -(-len(finite) // NUM_VALUES) or 1].astype(np.float32)
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (np.nan, np.nan)
    marks = Marks.of(values[None], np.ones(1, bool))
    upright = values
    if geometry is not None and values.ndim == 4:
        upright = Turn.of(geometry, UPRIGHT).apply(values)
    slices = (0, 0)
    if values.ndim == 4:
        flat_slices = upright.transpose(1, 0, 2, 3).reshape(upright.shape[1], -1)
        slices = (int((flat_slices.min(1) == flat_slices.max(1)).sum()), len(flat_slices))
    return Look(
        shape=upright.shape,
        dtype=values.dtype.name,
        geometry=geometry,
        digest=marks.digests()[0],
        blank=low == high,
        num_bad=len(flat) - len(finite),
        low=low,
        high=high,
        top=float(np.percentile(some, 99.5)) if len(some) else np.nan,
        cells=np.nan_to_num(marks.cells[0]),
        values=some if keep else some[:0],
        blank_slices=slices,
        picture=_picture(upright) if draw else None,
    )


def _picture(values: np.ndarray) -> np.ndarray:
    """Return `(C, *size)` in few pixels, float32; of a volume the middle slice."""
    if values.ndim == 4:
        values = values[:, values.shape[1] // 2]
    values = np.nan_to_num(values.astype(np.float32))
    if values.ndim == 3 and max(values.shape[1:]) > PICTURE:
        scale = PICTURE / max(values.shape[1:])
        size = [max(1, round(n * scale)) for n in values.shape[1:]]
        values = interpolate(torch.from_numpy(values)[None], size=size, mode="area")[0].numpy()
    return values


# --------------------------------------------------------------------------------------------------------------- facts


@dataclass(frozen=True)
class ModalityFacts:
    """Say what one modality holds.

    - `num`: samples that have it; `shapes`, `dtypes`, `spacings`, `axes`: how many of each there are
    - `low`, `high`: of all; `percentiles`, `foreground` (the same above the background), `background` (its share),
      `counts` and `edges` of a histogram: of some samples
    - `unreadable`: places and why; `bad`: ids of samples with NaN or infinite values; `blank`: ids of samples of one
      value; `dark`: ids of those that hold next to nothing but background
    - `unlike`: how many times as bright the bright subjects are as the dark ones
    - `pictures`: of the samples that `Facts.pictured` names, None where it is missing
    """

    name: str
    num: int
    shapes: Counter
    dtypes: Counter
    spacings: Counter
    axes: Counter
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
    """Say what one label holds: `kind` is class, number or mask; `counts` are of classes, largest first."""

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


class Double(NamedTuple):
    """Name two samples that hold the same image of `modality`, and the parts that they lie in."""

    modality: str
    ids: tuple[str, str]


@dataclass(frozen=True)
class Facts:
    """Say what a source holds; `parts[part]` counts samples and subjects, `division` says what is wrong with it."""

    ids: list[str]
    num_samples: int
    num_subjects: int
    looked_at: int
    parts: dict[str, tuple[int, int]]
    division: str
    paired: int
    partly: dict[str, list[str]]
    skipped: list[tuple[str, str]]
    modalities: list[ModalityFacts]
    grids: list[tuple[str, str]]
    doubles: list[Double]
    alike: list[Double]
    repeated: list[Double]
    copied: list[tuple[str, str, str]]
    labels: list[LabelFacts]
    pictured: list[str]
    composed: bool
    sampled: bool


def examine(stock: Stock, config: DataConfig, seed: int, progress: Callable[[int, int], None]) -> Facts:
    """Look at every image of `stock`; `progress(done, all)` is called as it goes. `config` and `seed` divide it."""
    num = len(stock.ids)
    there = {name: [row for row in range(num) if stock.places[name][row] is not None] for name in stock.modalities}
    pictured = _choose(stock, there)
    total, done = sum(map(len, there.values())), 0
    looks: dict[str, dict[int, Look]] = {}
    unreadable: dict[str, list[tuple[str, str]]] = {}

    def see(name: str, kept: frozenset[int], row: int) -> Look | str:
        try:
            return look(*stock.fetch(name, row), keep=row in kept, draw=row in pictured)
        except MandorlaError as error:
            return str(error)

    with ThreadPoolExecutor(WORKERS) as pool:
        for name, rows in there.items():
            kept = frozenset(rows[i] for i in np.linspace(0, len(rows) - 1, min(NUM_ROWS, len(rows))).astype(int))
            looks[name], unreadable[name] = {}, []
            for row, result in zip(rows, pool.map(partial(see, name, kept), rows), strict=True):
                if isinstance(result, str):
                    unreadable[name].append((str(stock.places[name][row]), result))
                else:
                    looks[name][row] = result
                progress(done := done + 1, total)

    known = {**stock.labels, **_read_masks(stock)}
    labels = [_label(name, values) for name, values in known.items()]
    rows_of, division = _divide(stock, known, config, seed)
    home = {row: part for part, rows in rows_of.items() for row in rows.tolist()}
    facts = [_modality(stock, name, looks[name], unreadable[name], pictured) for name in stock.modalities]
    digests = {name: [of[row].digest if row in of else b"" for row in range(num)] for name, of in looks.items()}
    near = {f.name: _near(looks[f.name], f, num) for f in facts}
    exact = {pair for _, pair in find_shared(digests, rows_of, stock.ids)}
    has_all = sum(all(stock.places[name][row] is not None for name in stock.modalities) for row in range(num))
    groups = np.asarray(stock.groups)
    return Facts(
        ids=stock.ids,
        num_samples=sum(stock.total.values()) or num,
        num_subjects=len(set(stock.groups)),
        looked_at=num,
        parts={
            part: (stock.total.get(part, len(rows)), len(set(groups[rows].tolist()))) for part, rows in rows_of.items()
        },
        division=division,
        paired=has_all,
        partly={
            name: [text for row, text in enumerate(stock.ids) if stock.places[name][row] is None]
            for name in stock.modalities
            if len(there[name]) < num
        },
        skipped=[tuple(item) for item in stock.report.skipped] if stock.report else [],
        modalities=facts,
        grids=_grids(stock, looks),
        doubles=[Double(name, pair) for name, pair in find_shared(digests, rows_of, stock.ids)],
        alike=[Double(name, p) for name, p in find_shared(near, rows_of, stock.ids) if p not in exact],
        repeated=_repeated(digests, home, stock.ids),
        copied=_copied(digests, stock.ids),
        labels=labels,
        pictured=[stock.ids[row] for row in pictured],
        composed=bool(stock.total),
        sampled=bool(stock.total) or max(map(len, there.values())) > NUM_ROWS,
    )


def _choose(stock: Stock, there: Mapping[str, Sequence[int]]) -> list[int]:
    """Return a few rows to draw, of different subjects as far as there are such, complete ones first."""
    count = Counter(row for rows in there.values() for row in rows)
    by_subject: dict[str, list[int]] = {}
    for row, group in enumerate(stock.groups):
        by_subject.setdefault(str(group), []).append(row)
    middles = [
        max(rows, key=lambda row: (count[row], -abs(rows.index(row) - len(rows) // 2))) for rows in by_subject.values()
    ]
    best = [row for row in middles if count[row] == len(stock.modalities)] or middles
    chosen = [best[i] for i in np.linspace(0, len(best) - 1, min(NUM_PICTURES, len(best))).astype(int)]
    if len(chosen) < NUM_PICTURES:
        others = [row for row in range(len(stock.ids)) if row not in chosen]
        more = min(NUM_PICTURES - len(chosen), len(others))
        chosen += [others[i] for i in np.linspace(0, len(others) - 1, more).astype(int)]
    return sorted(chosen)


def _divide(stock: Stock, known: Mapping[str, Any], config: DataConfig, seed: int) -> tuple[dict[str, np.ndarray], str]:
    """Return the rows of each part, and what is wrong with the division."""
    if stock.total:
        parts = np.asarray(stock.parts)
        return {part: np.flatnonzero(parts == part) for part in PARTS}, ""
    try:
        if stock.parts is not None:
            shares = (config.val_share, config.test_share, seed, "data")
            return split_as_given(stock.parts, stock.ids, stock.groups, *shares), ""
        strata = None if config.stratify is None else _strata(known, config.stratify)
        return split_by_group(stock.groups, config.val_share, config.test_share, seed, "data", strata), ""
    except MandorlaError as error:
        return {part: np.arange(0) for part in PARTS}, str(error)


def _strata(known: Mapping[str, Any], name: str) -> np.ndarray:
    """Return the class of each row by the label `name`; `X_present` is whether the mask `X_mask` marks anything."""
    mask = f"{name.removesuffix('_present')}_mask"
    values = known.get(name) if name in known or mask not in known else np.asarray(known[mask])
    if values is None or isinstance(values, str):
        raise MandorlaError(f"data.stratify: no label {name!r} in the data, only {', '.join(known) or 'none'}")
    if name not in known:
        values = values.reshape(len(values), -1).any(axis=1)
    label = to_label(values, f"data.labels.{name}")
    if not label.classes:
        raise MandorlaError(f"data.stratify: {name!r} is no label with classes")
    return label.values


def _modality(
    stock: Stock,
    name: str,
    looks: Mapping[int, Look],
    unreadable: list[tuple[str, str]],
    pictured: Sequence[int],
) -> ModalityFacts:
    seen = list(looks.values())
    values = np.concatenate([np.zeros(0, np.float32), *(look.values for look in seen)])
    spatial = any(len(look.shape) > 2 for look in seen)
    dark = background(values) if len(values) and spatial else -np.inf
    above = values[values > dark]
    edges = np.unique(np.percentile(values, [0.1, 99.9])) if len(values) else np.zeros(0)
    counts, edges = np.histogram(values, BINS, edges if len(edges) == 2 else None) if len(values) else (edges, edges)
    tops: dict[str, list[float]] = {}
    for row, one in looks.items():
        if not one.blank and one.top > dark:
            tops.setdefault(str(stock.groups[row]), []).append(one.top)
    floor = dark if np.isfinite(dark) else min((look.low for look in seen), default=0.0)
    bright = [max(of) - floor for of in tops.values()]
    ninth = np.percentile(bright, [10, 90]) if len(bright) >= FEW_SUBJECTS else (1.0, 1.0)
    width = float(np.percentile(above, 99.5) - floor) if len(above) else 0.0
    return ModalityFacts(
        name=name,
        num=len(looks) + len(unreadable),
        shapes=Counter(look.shape for look in seen),
        dtypes=Counter(look.dtype for look in seen),
        spacings=Counter(
            " x ".join(f"{mm:.3g}" for mm in look.geometry.spacing) for look in seen if look.geometry is not None
        ),
        axes=Counter(look.geometry.axes for look in seen if look.geometry is not None),
        low=min((look.low for look in seen if look.low == look.low), default=0.0),
        high=max((look.high for look in seen if look.high == look.high), default=0.0),
        percentiles=_percentiles(values),
        foreground=_percentiles(above),
        background=1 - len(above) / len(values) if len(values) else 0.0,
        counts=counts,
        edges=edges,
        unreadable=unreadable,
        bad=[stock.ids[row] for row, look in looks.items() if look.num_bad],
        blank=[stock.ids[row] for row, look in looks.items() if look.blank],
        dark=[stock.ids[row] for row, look in looks.items() if not look.blank and look.top - floor <= 0.02 * width]
        if np.isfinite(dark)
        else [],
        blank_slices=tuple(map(sum, zip(*(look.blank_slices for look in seen), strict=True))) if seen else (0, 0),
        unlike=float(ninth[1] / ninth[0]) if ninth[0] > 0 else 1.0,
        pictures=[looks[row].picture if row in looks else None for row in pictured],
    )


def _percentiles(values: np.ndarray) -> dict[float, float]:
    return dict(zip(PERCENTILES, np.percentile(values, PERCENTILES).tolist(), strict=True)) if len(values) else {}


def _near(looks: Mapping[int, Look], facts: ModalityFacts, num: int) -> list[bytes]:
    """Return what each image looks like from afar, as `digest_looks` does; empty where there is none."""
    near = [b""] * num
    low, high = (facts.percentiles.get(p, 0.0) for p in (PERCENTILES[0], PERCENTILES[-1]))
    if low < high:
        for row, one in looks.items():
            if one.cells.size:
                near[row] = digest_looks(Intensity(low, high).apply(one.cells[None]))[0]
    return near


def _repeated(digests: Mapping[str, Sequence[bytes]], home: Mapping[int, str], ids: Sequence[str]) -> list[Double]:
    """Return the images that one part holds twice."""
    found = []
    for name, hashes in digests.items():
        first: dict[tuple[bytes, str], str] = {}
        for row, digest in enumerate(hashes):
            other = first.setdefault((digest, home.get(row, "")), ids[row])
            if digest and other != ids[row]:
                found.append(Double(name, (other, ids[row])))
    return found


def _copied(digests: Mapping[str, Sequence[bytes]], ids: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return the samples in which two modalities hold one image: id and both names."""
    names = list(digests)
    return [
        (ids[row], one, other)
        for row in range(len(ids))
        for index, one in enumerate(names)
        for other in names[index + 1 :]
        if digests[one][row] and digests[one][row] == digests[other][row]
    ]


def _grids(stock: Stock, looks: Mapping[str, Mapping[int, Look]]) -> list[tuple[str, str]]:
    """Return the samples whose volumes do not lie on one grid: id, and how they differ."""
    found = []
    for row, text in enumerate(stock.ids):
        grids = [(name, of[row].geometry) for name, of in looks.items() if row in of and of[row].geometry is not None]
        for name, grid in grids[1:]:
            turned = Turn.of(grid, grids[0][1].axes).of_grid(grid)  # axes in another order are no other grid
            if how := grids[0][1].difference(turned, TOLERANCE):
                found.append((text, f"{name} against {grids[0][0]}: {how}"))
    return found


def _label(name: str, values: np.ndarray | Sequence[str | float | None] | str) -> LabelFacts:
    if isinstance(values, str):
        return LabelFacts(name, "?", 0, {}, error=values)
    try:
        label = to_label(values, f"data.labels.{name}")
    except MandorlaError as error:
        return LabelFacts(name, "?", 0, {}, error=str(error))
    if name.endswith("_mask"):
        marked = label.values.reshape(len(label.values), -1).any(axis=1)
        return LabelFacts(name, "mask", len(marked), {"marked": int(marked.sum()), "empty": int((~marked).sum())})
    if label.values.ndim > 1:
        return LabelFacts(name, "array", len(label.values), {})
    if label.classes:
        counts = Counter(label.values.astype(int).tolist())
        named = {text: counts[number] for number, text in enumerate(label.classes) if counts[number]}
        return LabelFacts(name, "class", sum(named.values()), dict(sorted(named.items(), key=lambda c: -c[1])))
    known = label.values[np.isfinite(label.values)].astype(float)
    low, high = (known.min(), known.max()) if len(known) else (0, 0)
    return LabelFacts(name, "number", len(known), {}, float(low), float(high))


def _read_masks(stock: Stock) -> dict[str, np.ndarray | str]:
    """Return for each mask whether it marks anything, bool `(N,)`; in words what is wrong where it cannot be read."""
    marked: dict[str, np.ndarray | str] = {}
    for name, places in stock.masks.items():
        try:
            marked[name] = np.array([bool(place and read(place, ReadOptions()).values.any()) for place in places])
        except MandorlaError as error:
            marked[name] = str(error)
    return marked


# -------------------------------------------------------------------------------------------------------- what is wrong


class Problem(NamedTuple):
    """Say what is wrong: `mend` stops a training or spoils it, `note` is worth a look; `where` are examples."""

    level: Literal["mend", "note"]
    what: str
    where: list[str]
    remedy: str


class Change(NamedTuple):
    """Propose a setting: dotted `key`, plain `value`, and why."""

    key: str
    value: Any
    why: str


def judge(facts: Facts, config: DataConfig) -> list[Problem]:
    """Return all that is wrong with the data if they are read as `config` says, what stops a training first."""
    problems = [*_judge_samples(facts, config), *_judge_parts(facts, config)]
    for modality in facts.modalities:
        problems += _judge_modality(modality, facts, config)
    problems += [
        Problem("mend", f"label {label.name}: {label.error}", [], "mend it, or leave the label out")
        for label in facts.labels
        if label.error
    ]
    problems += [
        Problem(
            "note", f"label {label.name} is the same for all samples", [], "leave it out: nothing can be learnt of it"
        )
        for label in facts.labels
        if len(label.counts) == 1 and label.kind == "class"
    ]
    problems += [
        Problem(
            "note",
            f"label {label.name}: {len(label.counts)} classes in {label.num:,} samples",
            [],
            "meant as a number? then write one of them with decimals, such as 61.5",
        )
        for label in facts.labels
        if label.kind == "class" and not label.is_class
    ]
    return sorted(problems, key=lambda problem: problem.level != "mend")


def _judge_samples(facts: Facts, config: DataConfig) -> list[Problem]:
    problems = []
    if len(facts.modalities) < 2:
        problems.append(Problem("mend", "fewer than two modalities", [], "paired data need two or more"))
    if facts.partly:
        lacking = ", ".join(f"{name} {len(ids):,}" for name, ids in facts.partly.items())
        stop = getattr(config, "unpaired", "keep") == "error"
        remedy = "add the files, mend data.key, or set data.unpaired to keep" if stop else "kept, as missing"
        where = [f"{text} lacks {name}" for name, ids in facts.partly.items() for text in ids]
        problems.append(Problem("mend" if stop else "note", f"samples that lack a modality: {lacking}", where, remedy))
    if facts.skipped:
        stop = getattr(config, "unpairable", "skip") == "error"
        remedy = "mend or move them, or set data.unpairable to skip" if stop else "left out"
        where = [f"{place}: {why}" for place, why in facts.skipped]
        what = f"files that belong to no sample: {len(where):,}"
        problems.append(Problem("mend" if stop else "note", what, where, remedy))
    if facts.grids:
        where = [f"{text}: {how}" for text, how in facts.grids]
        stop = not (isinstance(config, FilesConfig) and config.geometry.resample)
        remedy = "resampled to that of the first modality"
        if stop:
            remedy = "register them; set data.geometry.resample to to_first if they are, and only their grids differ"
        problems.append(
            Problem(
                "mend" if stop else "note", f"volumes on another grid than their partner: {len(where):,}", where, remedy
            )
        )
    if facts.copied:
        where = [f"{text}: {one} and {other}" for text, one, other in facts.copied]
        remedy = "does a copy stand in for a missing modality? then leave it out: a missing one may be missing"
        problems.append(
            Problem("note", f"samples with the same image as two modalities: {len(where):,}", where, remedy)
        )
    if facts.num_samples < FEW_SAMPLES:
        what = f"few samples: {facts.num_samples}"
        problems.append(Problem("note", what, [], "enough to try things, not for a model of use"))
    if facts.num_subjects == facts.num_samples and not facts.composed and len(facts.ids) > FEW_SAMPLES:
        remedy = "if several are of one patient, say so: neighbouring slices in two parts are copies"
        problems.append(Problem("note", "every sample counts as a subject of its own", [], remedy))
    elif facts.num_subjects < FEW_SUBJECTS and not facts.composed and not facts.division:
        what = f"few subjects: {facts.num_subjects}"
        problems.append(Problem("note", what, [], "figures on test subjects will vary much from one to the next"))
    return problems


def _judge_parts(facts: Facts, config: DataConfig) -> list[Problem]:
    problems = []
    if facts.division:
        problems.append(Problem("mend", facts.division, [], "mend the division, or add subjects"))
    if facts.doubles:
        stop = getattr(config, "duplicates", "keep") == "error"
        remedy = "remove one, or give both the same subject" + (", or set data.duplicates to keep" if stop else "")
        what = f"images that lie in two parts: {len(facts.doubles):,}"
        problems.append(Problem("mend" if stop else "note", what, _pairs(facts.doubles), remedy))
    if facts.alike:
        remedy = "are they of one subject? then give them the same"
        what = f"images that look like one in another part: {len(facts.alike):,}"
        problems.append(Problem("note", what, _pairs(facts.alike), remedy))
    if facts.repeated:
        what = f"images that are in one part twice: {len(facts.repeated):,}"
        problems.append(Problem("note", what, _pairs(facts.repeated), "copies count twice in the training"))
    return problems


def _judge_modality(modality: ModalityFacts, facts: Facts, config: DataConfig) -> list[Problem]:
    name, problems = modality.name, []

    def add(level: Literal["mend", "note"], what: str, where: Sequence[str], remedy: str) -> None:
        problems.append(Problem(level, f"{name}: {what}", list(where), remedy))

    if modality.unreadable:
        where = [text if text.startswith(place) else f"{place}: {text}" for place, text in modality.unreadable]
        add("mend", f"files that cannot be read: {len(where):,}", where, "replace or remove them")
    if modality.bad:
        add("mend", f"samples with NaN or infinite values: {len(modality.bad):,}", modality.bad, "fill or remove")
    size = config.size if isinstance(config, StoredConfig) else None
    if len({_as_read(shape[1:], modality, config) for shape in modality.shapes}) > 1 and not size:
        where = [f"{_count(count, 'sample')} {show(shape)}" for shape, count in modality.shapes.most_common()]
        add("mend", f"{len(modality.shapes)} different shapes", where, "bring all of a modality to one shape")
    if len(modality.dtypes) > 1 and not modality.axes:  # volumes of several types become floats
        where = [f"{_count(count, 'sample')} {dtype}" for dtype, count in modality.dtypes.most_common()]
        add("mend", f"{len(modality.dtypes)} different number types", where, "store all of a modality alike")
    if len(modality.spacings) > 1:
        where = [f"{_count(count, 'sample')} {text} mm" for text, count in modality.spacings.most_common()]
        add("note", f"{len(modality.spacings)} different spacings", where, "a voxel means a different length in each")
    if len(modality.axes) > 1:
        where = [f"{_count(count, 'sample')} {text}" for text, count in modality.axes.most_common()]
        add("note", f"{len(modality.axes)} different orientations", where, "")
    if modality.shapes and modality.low == modality.high:
        add("mend", f"holds the single value {modality.low:g}", [], "replace it, or leave this modality out")
    elif modality.shapes and (why := misfit(modality, config)):
        add("mend", why, [], "set data.intensity, as suggested below")
    if modality.blank:
        what = f"samples of a single value: {len(modality.blank):,}"
        add("note", what, modality.blank, "blank ones teach nothing: leave out those that stand for a missing image")
    if modality.dark:
        what = f"samples with next to nothing but background: {len(modality.dark):,}"
        add("note", what, modality.dark, "end slices? they teach little")
    if modality.unlike > UNLIKE and per_dataset(modality, config):
        what = f"bright subjects are {modality.unlike:.1f} times as bright as dark ones"
        add("note", what, [], "scanners without a common scale? then data.intensity {kind: percentile, per: subject}")
    for shape in modality.shapes if size else ():
        if not _shrinks(own := _as_read(shape[1:], modality, config), size):
            what = f"{show((shape[0], *own))} cannot be averaged down to data.size {list(size)}"
            add("mend", what, [], "lower data.size, or leave it out")
    return problems


def _as_read(size: tuple[int, ...], modality: ModalityFacts, config: DataConfig) -> tuple[int, ...]:
    """Return the size that an image has for a training, before it is averaged down: of a volume that of its slices."""
    if not isinstance(config, FilesConfig) or len(size) != 3:
        return size
    axes = (config.geometry.axes or UPRIGHT) if modality.axes else UPRIGHT
    if modality.axes:
        grid = plain_grid(size, UPRIGHT)
        size = Turn.of(grid, axes).of_grid(grid).shape
    if config.slices is None:
        return size
    across_slices = across(config.slices.axis, axes)
    return tuple(length for axis, length in enumerate(size) if axis != across_slices)


def misfit(modality: ModalityFacts, config: DataConfig) -> str:
    """Return why the values of `modality` do not fit the intensity that `config` sets; empty if they do."""
    if not isinstance(_intensity_of(modality, config), AsStored):
        return ""
    if modality.dtype in ("uint8", "uint16"):
        return ""
    if not modality.dtype.startswith("float"):
        return f"what range values of type {modality.dtype} have is not known"
    if modality.low < 0 or modality.high > 1:
        return f"values from {modality.low:.4g} to {modality.high:.4g} lie outside [0, 1]"
    return ""


def per_dataset(modality: ModalityFacts, config: DataConfig) -> bool:
    """Return whether all subjects share one range under `config`, which a fixed window means to."""
    settings = _intensity_of(modality, config)
    return isinstance(settings, AsStored) or getattr(settings, "per", "") == "dataset"


def advise(facts: Facts, config: DataConfig, guessed: bool) -> list[Change]:
    """Return the settings of the data that the facts ask for; where `config` was `guessed`, also what is convenient."""
    if not isinstance(config, StoredConfig):
        return []
    changes = []
    if facts.partly and getattr(config, "unpaired", "keep") == "error":
        changes.append(Change("data.unpaired", "keep", "some samples lack a modality"))
    if facts.skipped and getattr(config, "unpairable", "skip") == "error":
        changes.append(Change("data.unpairable", "skip", "some files belong to no sample"))
    changes += _advise_intensity(facts, config)
    if guessed and config.size is None and (size := _fair_size(facts)):
        changes.append(Change("data.size", size, "larger images need more memory and time"))
    return changes


def _advise_intensity(facts: Facts, config: StoredConfig) -> list[Change]:
    """Return settings of the intensity: one for most modalities, others for single ones."""
    now = {m.name: _intensity_of(m, config).model_dump(mode="json") for m in facts.modalities}
    asked = {m.name: _best_intensity(m) for m in facts.modalities if isinstance(_intensity_of(m, config), AsStored)}
    asked = {name: advice for name, advice in asked.items() if advice}
    if not asked:
        return []
    wanted = [_brief(asked[name][0]) if name in asked else _brief(now[name]) for name in now]
    usual = max(wanted, key=wanted.count)
    others = {name: settings for name, settings in zip(now, wanted, strict=True) if settings != usual}
    why = "; ".join(f"{name}: {reason}" for name, (_, reason) in asked.items())
    changes = [Change("data.intensity", usual, why)]
    return changes + ([Change("data.intensity_of", others, "others differ")] if others or config.intensity_of else [])


def _best_intensity(modality: ModalityFacts) -> tuple[dict[str, Any], str] | None:
    """Return the intensity that values as they are stored ask for, and why; None if they are fine so."""
    if not modality.shapes or modality.low == modality.high or len(modality.dtypes) > 1:
        return None
    per = {"per": "subject"} if modality.unlike > UNLIKE else {}
    largest = {"uint8": 255, "uint16": 65535}.get(modality.dtype, 1 if modality.dtype.startswith("float") else 0)
    dims = len(modality.shape) - 1
    bright = modality.foreground.get(99.5, modality.high)
    if modality.low >= 0 and modality.high <= largest:
        if bright >= DIM * largest or dims < 2:
            return None
        return {"kind": "percentile", **per}, f"bright values are at {bright:.4g} where the type goes to {largest}"
    if dims < 2:
        return {"kind": "minmax"}, f"values from {modality.low:.4g} to {modality.high:.4g}"
    if -3100 <= modality.low <= -900 and modality.high > 200 and modality.percentiles[0.5] < -500:
        low, high = HOUNSFIELD
        return {
            "kind": "window",
            "low": low,
            "high": high,
        }, "values look like Hounsfield units; narrow it to your tissue"
    return {"kind": "percentile", **per}, f"{modality.dtype} values from {modality.low:.4g} to {modality.high:.4g}"


def _fair_size(facts: Facts) -> list[int] | None:
    """Return a size to average down to that all modalities can have, None if they are small or unlike."""
    sizes = {m.shape[1:] for m in facts.modalities if m.shapes}
    if len({len(size) for size in sizes}) != 1 or len(next(iter(sizes))) < 2:
        return None
    least = [min(axis) for axis in zip(*sizes, strict=True)]
    most = LARGEST[len(least)]
    if max(least) <= most and len(sizes) == 1:
        return None
    if len({round(size[0] / size[-1], 2) for size in sizes}) > 1:
        return None
    factor = max(1, -(-max(least) // most))
    return [max(1, n // factor) for n in least]


def _intensity_of(modality: ModalityFacts, config: DataConfig):
    if not isinstance(config, StoredConfig):
        return AsStored()
    return config.intensity_of.get(modality.name, config.intensity)


def _brief(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings of an intensity without what percentiles have anyway."""
    usual = Percentile().model_dump(mode="json")
    return {k: v for k, v in settings.items() if k == "kind" or settings["kind"] != "percentile" or usual[k] != v}


def _shrinks(own: tuple[int, ...], wanted: Sequence[int]) -> bool:
    return len(own) == len(wanted) and all(a >= b for a, b in zip(own, wanted, strict=True))


def _pairs(doubles: Sequence[Double]) -> list[str]:
    return [f"{double.modality} of {double.ids[0]} and {double.ids[1]}" for double in doubles]


def show(shape: tuple[int, ...]) -> str:
    """Return a shape `(C, *size)` in words."""
    channels = f", {shape[0]} channels" if shape[0] > 1 else ""
    return f"{' x '.join(map(str, shape[1:]))}{channels}" if len(shape) > 1 else f"{shape[0]} numbers"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
