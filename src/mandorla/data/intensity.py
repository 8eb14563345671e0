"""From stored values to [0, 1] and back, per modality, decided on training samples alone.

A modality's values v become x = (v - low) / (high - low), cut to [0, 1]; `invert` gives low + x (high - low). What
`low` and `high` are is set by `data.intensity`, for one modality by `data.intensity_of`, and is read off the training
samples, so that nothing of a test image enters the model. With `per: subject` each subject (group) has its own pair,
read off its own images: for scanners without a common scale. With `per: channel` each channel has: for columns of a
table, each in a unit of its own. A run keeps all of it in `intensity.json`; files that change later do not change it.

*Foreground* is what lies above the background. The background is the most frequent of 1024 levels between the 0.1 and
99.9 percentile, where that level lies in the darkest quarter; else there is none and every value counts. `> 0` would
take air in CT (-1000) or an offset for tissue, and stray values below an empty background for the background; Otsu's
threshold cuts off dark tissue (fluid in T1). Noise above the background's peak does count, which moves a high
percentile a little; the other two errors move the low one a lot.

An input *lies far outside* what a model was trained on if the median of its foreground does, or if more of it is at the
upper end of the range than in any training sample, each with a margin: `Seen` holds those bounds.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, TypeAdapter, model_validator
from torch import Tensor

from mandorla.config import Settings
from mandorla.data.dataset import Dataset, evenly
from mandorla.errors import MandorlaError
from mandorla.storage import INTENSITY, read_json, write_text

LEVELS = 1024  # among which the background is looked for
NUM_VALUES = 2**24  # at most so many values, spread evenly, are looked at for a percentile or a deviation
NUM_ROWS = 2**13  # of at most about so many samples, spread evenly: each must be fetched
NUM_SEEN = 256  # training samples, spread evenly, that say what is usual
MOST_SEEN = 2**28  # and their values, at most
DARKEST = 0.05  # share of the training samples that are too dark, or blank, to say what is usual
MARGIN = 0.1  # of the range [0, 1]: how far a median, or a share of saturated values, may leave what is usual
_KNOWN = (np.uint8, np.uint16)  # types of whole numbers that say what range they mean
Per = Literal["dataset", "subject", "channel"]


class AsStored(Settings):
    """Take values as their type means them: 0 to 255 for uint8, 0 to 65535 for uint16, 0 to 1 for floats.

    Whole numbers of another type that come later mean what those of the training meant.
    """

    kind: Literal["none"] = "none"


class Window(Settings):
    """Take a fixed range, such as [-160, 240] for soft tissue in CT."""

    kind: Literal["window"] = "window"
    low: float
    """Value that becomes 0."""
    high: float
    """Value that becomes 1."""

    @model_validator(mode="after")
    def _low_is_below_high(self):
        if not is_range(self.low, self.high):
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}, by what a float32 holds")
        return self


class MinMax(Settings):
    """Take the smallest and the largest value."""

    kind: Literal["minmax"] = "minmax"
    per: Per = "dataset"
    """Whether all training samples have one range, or each subject, or each channel, its own."""


class Percentile(Settings):
    """Take two percentiles, which single bright or dark pixels do not move."""

    kind: Literal["percentile"] = "percentile"
    low: float = Field(0.5, ge=0, lt=100)
    """Percentile that becomes 0."""
    high: float = Field(99.5, gt=0, le=100)
    """Percentile that becomes 1."""
    foreground: bool = True
    """Whether only values above the background count."""
    per: Per = "dataset"
    """Whether all training samples have one range, or each subject, or each channel, its own."""

    @model_validator(mode="after")
    def _low_is_below_high(self):
        if self.low >= self.high:
            raise ValueError(f"percentile low {self.low:g} must be below high {self.high:g}")
        return self


class ZScore(Settings):
    """Take the mean less and plus four standard deviations: 0.5 is the mean, 1/8 a standard deviation."""

    kind: Literal["zscore"] = "zscore"
    per: Per = "dataset"
    """Whether all training samples have one range, or each subject, or each channel, its own."""


IntensityConfig = Annotated[AsStored | Window | MinMax | Percentile | ZScore, Field(discriminator="kind")]
_READ_CONFIG = TypeAdapter(IntensityConfig)


@dataclass(frozen=True)
class Intensity:
    """Map stored values to [0, 1] and back: `low` becomes 0, `high` becomes 1.

    Both are numbers, or nested lists `(C, 1, ...)` with one for each channel and an axis for each of space.
    """

    low: float | list
    high: float | list

    @property
    def width(self) -> np.ndarray:
        """Return `high` less `low`, float64."""
        return np.asarray(self.high, np.float64) - np.asarray(self.low, np.float64)

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Return `values` `(..., C, *size)` of any number type as float32, cut to [0, 1]."""
        wide = np.result_type(values.dtype, np.float32)  # float64 where 24 bits do not hold an integer
        unit = (values.astype(wide) - np.asarray(self.low, wide)) * (1 / self.width).astype(wide)
        return unit.clip(0, 1).astype(np.float32, copy=False)

    def invert(self, unit: np.ndarray) -> np.ndarray:
        """Return the stored values, float32, of `unit` `(..., C, *size)` in [0, 1]."""
        return (np.asarray(self.low) + np.asarray(unit, np.float64) * self.width).astype(np.float32)


@dataclass(frozen=True)
class Seen:
    """Hold what training samples look like in [0, 1].

    `background`: foreground lies above it; `median`: smallest and largest median of a sample's foreground, without the
    darkest few, for one blank image must not make every dark one usual; `saturated`: largest share of a sample's values
    that are 1.
    """

    background: float
    median: tuple[float, float]
    saturated: float

    @classmethod
    def of(cls, x: np.ndarray) -> "Seen":
        """Return what samples `x` `(N, ...)` in [0, 1] look like."""
        dark = background(_spread(x, np.arange(len(x))))
        here = cls(max(dark, 0.0) if np.isfinite(dark) else -1.0, (0.0, 1.0), 1.0)
        medians, saturated = here._measure(torch.from_numpy(x))
        median = (medians.quantile(DARKEST).item(), medians.max().item())
        return replace(here, median=median, saturated=saturated.max().item())

    def outside(self, x: Tensor) -> Tensor:
        """Return which of the samples `x` `(B, ...)`, meant to be in [0, 1], lie far outside, bool `(B,)`."""
        medians, saturated = self._measure(x)
        low, high = self.median
        dark = max(low - MARGIN, low / 2)  # a sample without foreground is dark, unless many of the training are
        return (medians < dark) | (medians > high + MARGIN) | (saturated > self.saturated + MARGIN)

    def _measure(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the median of each sample's foreground, 0 where it has none, and the share of it that is 1 or more."""
        flat = x.flatten(1)
        medians = torch.where(flat > self.background, flat, torch.nan).nanmedian(1).values
        return medians.nan_to_num(0.0), (flat >= 1).float().mean(1)


@dataclass(frozen=True)
class Fitted:
    """Bring one modality to [0, 1] as `settings` say and as the training samples had it.

    `usual` is the range of all, or the median of the training subjects' ranges; `subjects[name]` the range of each
    subject, empty unless `per: subject`; `seen` what training samples look like, None before a training; `dtype` the
    type of the stored numbers; `columns` the names of the channels, where the training read tables.
    """

    settings: IntensityConfig
    usual: Intensity
    subjects: Mapping[str, Intensity]
    seen: Seen | None = None
    dtype: str = "float32"
    columns: tuple[str, ...] = ()

    def apply(self, values: np.ndarray, groups: Sequence[str]) -> np.ndarray:
        """Return the stored samples `values` `(B, ...)` of the subjects `groups` as float32 in [0, 1].

        A subject that was not there when the ranges were read off gets the range of what it has in `values`.
        """
        if isinstance(self.settings, AsStored):
            return self._as_stored(values.dtype).apply(values)
        if not self.subjects:
            return self.usual.apply(values)
        groups, unit = np.asarray(groups), np.empty(values.shape, np.float32)
        for name in np.unique(groups):
            rows = np.flatnonzero(groups == name)
            own = self.subjects.get(str(name)) or _range(self.settings, values, rows) or self.usual
            unit[rows] = own.apply(values[rows])
        return unit

    def _as_stored(self, dtype: np.dtype) -> Intensity:
        """Return what values of a type mean where they are taken as stored: whole numbers, what they meant in training.

        Raises `MandorlaError` for whole numbers where a training on floats says nothing of their range.
        """
        if dtype.kind == "f":
            return Intensity(0.0, 1.0)
        if np.dtype(self.dtype).kind in "iu":
            return self.usual
        if dtype in _KNOWN:
            return Intensity(0.0, float(_largest(dtype)))
        raise MandorlaError(f"the training's values were floats in [0, 1], what {dtype} values mean is unknown")

    def of_others(self, images: np.ndarray, present: np.ndarray, groups: np.ndarray) -> "Fitted":
        """Return these settings, `per: subject`, with the ranges of the subjects `groups` of other data `images`.

        `images` are `(N, ...)`; `present` bool `(N,)` says which rows are there.
        """
        found = _of_subjects(self.settings, images, present, groups)
        return replace(self, subjects={name: own or self.usual for name, own in found.items()})

    def apply_new(self, values: np.ndarray, groups: Sequence[str] | None = None) -> np.ndarray:
        """Return new samples `values` `(B, ...)` as float32 in [0, 1]; none of their subjects is one of the training.

        `groups` says which samples belong to one subject; without it each is one of its own.
        """
        names = [f"new/{name}" for name in (range(len(values)) if groups is None else groups)]
        return self.apply(values, names)

    def invert(self, unit: np.ndarray) -> np.ndarray:
        """Return `unit` in [0, 1] on the stored scale, float32: with `per: subject` on that of a usual subject."""
        return self.usual.invert(unit)

    def restore(self, unit: np.ndarray, spread: bool = False) -> np.ndarray:
        """Return `unit` in [0, 1] as files hold it: on the stored scale and of the stored type, rounded and cut to it.

        `spread` says that these are standard deviations, for which it does not matter where the scale begins.
        """
        values, dtype = self.invert(unit) - (np.asarray(self.usual.low) if spread else 0), np.dtype(self.dtype)
        if dtype.kind in "iu":
            values = np.rint(values).clip(np.iinfo(dtype).min, np.iinfo(dtype).max)
        return values.astype(dtype)

    def to_json(self) -> dict:
        """Return plain values for `intensity.json`."""
        pairs = {name: [own.low, own.high] for name, own in self.subjects.items()}
        return {
            "settings": self.settings.model_dump(mode="json"),
            "usual": [self.usual.low, self.usual.high],
            "subjects": pairs,
            "seen": asdict(self.seen) if self.seen else None,
            "dtype": self.dtype,
            "columns": list(self.columns),
        }

    @classmethod
    def of_json(cls, tree: dict) -> "Fitted":
        """Undo `to_json`."""
        seen = tree["seen"] and Seen(
            tree["seen"]["background"], tuple(tree["seen"]["median"]), tree["seen"]["saturated"]
        )
        subjects = {name: Intensity(*pair) for name, pair in tree["subjects"].items()}
        settings = _READ_CONFIG.validate_json(json.dumps(tree["settings"]))
        dtype = np.dtype(tree.get("dtype", cls.dtype)).name
        return cls(settings, Intensity(*tree["usual"]), subjects, seen, dtype, tuple(tree.get("columns", ())))


UNIT = Fitted(AsStored(), Intensity(0.0, 1.0), {})


def fit(
    settings: IntensityConfig,
    images: np.ndarray,
    present: np.ndarray,
    train: np.ndarray,
    groups: np.ndarray,
    place: str,
) -> Fitted:
    """Read off `images` `(N, ...)` what `settings` leave open, from the rows `train` where `present`, bool `(N,)`.

    With `per: subject`, `groups` `(N,)` names the subject of each row, and each one's range is read off its own rows.
    With `per: channel`, one that holds a single value becomes 0, unless all do.
    Raises `MandorlaError`, which begins with `place`, for a type whose range is unknown, floats outside [0, 1] where
    values are taken as stored, and training images that are all of one value.
    """
    rows, dtype = train[present[train]], images.dtype.name
    if not len(rows):
        raise MandorlaError(f"{place}: no training sample has it; give other data, seed or shares")
    if isinstance(settings, AsStored):
        return Fitted(settings, _stored_range(images, np.flatnonzero(present), place), {}, dtype=dtype)
    per = getattr(settings, "per", "dataset")
    if per == "subject":
        own = _of_subjects(settings, images, present, groups)
        found = [own[str(name)] for name in np.unique(groups[rows]) if own[str(name)]]
        usual = Intensity(*np.median([(i.low, i.high) for i in found], axis=0).tolist()) if found else None
        subjects = {name: intensity or usual for name, intensity in own.items()}
    else:
        usual, subjects = (_ranges if per == "channel" else _range)(settings, images, rows), {}
    if usual is None:
        other = ""
        if isinstance(settings, Percentile):
            other = f", or set foreground to {str(not settings.foreground).lower()}"
        raise MandorlaError(
            f"{place}: data.intensity {settings.kind} finds a single value in the training images; leave it out, or"
            f" give it a window in data.intensity_of{other}"
        )
    return Fitted(settings, usual, subjects, dtype=dtype)


def _of_subjects(
    settings: IntensityConfig, images: np.ndarray, present: np.ndarray, groups: np.ndarray
) -> dict[str, Intensity | None]:
    """Return the range of each subject that is there, None where it has but one value."""
    names = np.unique(groups[present])
    return {str(name): _range(settings, images, np.flatnonzero((groups == name) & present)) for name in names}


def background(values: np.ndarray) -> float:
    """Return the value above which foreground lies; minus infinity if there is no dark background."""
    low, high = np.percentile(values, [0.1, 99.9])
    if low == high:
        low, high = values.min(), values.max()
    if low == high:
        return -np.inf
    counts, edges = np.histogram(values, LEVELS, (low, high))
    level = counts.argmax()
    return float(edges[level + 1]) if level < LEVELS // 4 else -np.inf


def empty(values: np.ndarray) -> float:
    """Return the value that background has in `values`: the median of it; the smallest value if there is none."""
    below = values[values <= background(values)]
    return float(np.median(below) if below.size else values.min())


def is_range(low: float, high: float) -> bool:
    """Return whether float32 can be divided by what lies between `low` and `high`."""
    return float(np.finfo(np.float32).tiny) < high - low < float(np.finfo(np.float32).max)


def look(intensity: Mapping[str, Fitted], train: Dataset) -> dict[str, Fitted]:
    """Return `intensity` with what samples of `train` look like."""
    values = sum(math.prod(modality.shape) for modality in train.modalities)
    batch = train.batch(evenly(len(train), max(1, min(NUM_SEEN, MOST_SEEN // values))))
    x = {name: value[batch.present[name]].numpy() for name, value in batch.x.items()}
    return {
        name: replace(fitted, seen=Seen.of(x[name]) if len(x[name]) else None) for name, fitted in intensity.items()
    }


def write_intensity(run: Path, intensity: Mapping[str, Fitted]) -> None:
    """Write `intensity.json` into a run folder."""
    write_text(run / INTENSITY, json.dumps({name: fitted.to_json() for name, fitted in intensity.items()}, indent=1))


def read_intensity(run: Path) -> dict[str, Fitted]:
    """Return what a run's `intensity.json` says by modality. Raises `MandorlaError` if it is missing or damaged."""
    try:
        return {name: Fitted.of_json(tree) for name, tree in read_json(run / INTENSITY).items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise MandorlaError(
            f"{run / INTENSITY} is damaged ({type(error).__name__}): restore it, or begin a new run"
        ) from error


def _range(settings: IntensityConfig, images: np.ndarray, rows: np.ndarray) -> Intensity | None:
    """Return the range that `settings` give for the images at `rows`; None if they hold a single value."""
    if isinstance(settings, Window):
        return Intensity(settings.low, settings.high)
    if isinstance(settings, MinMax):
        low, high = _extremes(images, rows)
    else:
        values = _spread(images, rows)
        if isinstance(settings, ZScore):
            middle, width = values.mean(dtype=np.float64), 4 * values.std(dtype=np.float64)
            low, high = middle - width, middle + width
        else:
            if settings.foreground:
                values = values[values > background(values)]
            low, high = np.percentile(values, [settings.low, settings.high])
    return Intensity(float(low), float(high)) if is_range(float(low), float(high)) else None


def _ranges(settings: IntensityConfig, images: np.ndarray, rows: np.ndarray) -> Intensity | None:
    """Return the range of each channel, as `_range` gives it; None if all of them hold a single value."""
    channels = [images[:, channel : channel + 1] for channel in range(images.shape[1])]
    found = [_range(settings, channel, rows) for channel in channels]
    if not any(found):
        return None
    lows = [own.low if own else float(channel[rows[0]].min()) for own, channel in zip(found, channels, strict=True)]
    highs = [own.high if own else low + max(1.0, abs(low)) for own, low in zip(found, lows, strict=True)]
    shape = (-1, *[1] * (images.ndim - 2))
    return Intensity(np.reshape(lows, shape).tolist(), np.reshape(highs, shape).tolist())


def _spread(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the values of the images at `rows`, or evenly spread ones if there are too many."""
    rows = rows[:: -(-len(rows) // NUM_ROWS)]
    step = -(-len(rows) * images[0].size // NUM_VALUES)
    return np.concatenate([images[row].ravel()[place % step :: step] for place, row in enumerate(rows)])


def _extremes(images: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
    return min(images[row].min() for row in rows), max(images[row].max() for row in rows)


def _largest(dtype: np.dtype) -> int:
    """Return the stored value that means 1."""
    return 1 if dtype.kind == "f" else np.iinfo(dtype).max


def _stored_range(images: np.ndarray, rows: np.ndarray, place: str) -> Intensity:
    """Return the range that the type of `images` means. Raises `MandorlaError` if it means none, or is left."""
    if images.dtype.newbyteorder("=") not in _KNOWN and images.dtype.kind != "f":
        raise MandorlaError(
            f"{place}: the range of type {images.dtype} is unknown; set data.intensity, such as {{kind: percentile}}"
        )
    if images.dtype.kind == "f":
        low, high = _extremes(images, rows)
        if low < 0 or high > 1:
            raise MandorlaError(
                f"{place}: values from {low:g} to {high:g} lie outside [0, 1]; "
                "set data.intensity, such as {kind: percentile}"
            )
    return Intensity(0.0, float(_largest(images.dtype)))
