"""Labels as a condition of stage 2: what is known of a sample beside its images, such as a class, an age or a grade.

A class enters the network as a vector with a one at its place, a number standardised over the training set. NaN stands
for what is not known: in training for samples without the label and for half of the others, so that the same weights
serve with it and without.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from mandorla.data.dataset import Dataset, Splits, pieces
from mandorla.data.stored import StoredDataset
from mandorla.errors import MandorlaError, did_you_mean
from mandorla.latents import Components

Value = str | float
Given = Mapping[str, Value | None | Sequence[Value | None]]
_AT_ONCE = 512  # composed samples that are asked for their labels at once
_HALF = 0.5
_SHOWN = 12  # classes that a message names
_NEAR = 1e-5  # standard deviations: machines add in other orders
_FAR = 100  # standard deviations from the mean: no number that was meant


@dataclass(frozen=True)
class LabelScale:
    """How one label becomes numbers: by the names of its `classes` or, where it has none, by `mean` and `std`."""

    classes: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0

    @property
    def size(self) -> int:
        """Return how many numbers the network is given."""
        return len(self.classes) or 1

    def __str__(self) -> str:
        if self.classes:
            return f"{len(self.classes)} classes, {_few(self.classes)}"
        return f"mean {self.mean:.6g} and standard deviation {self.std:.6g}"

    def is_like(self, other: "LabelScale") -> bool:
        """Return whether values become the same numbers by the `other` scale, up to rounding."""
        near = abs(self.mean - other.mean) <= _NEAR * self.std and math.isclose(self.std, other.std, rel_tol=_NEAR)
        return near and self.classes == other.classes

    def apply(self, values: np.ndarray) -> Tensor:
        """Return float32 `(N, size)` of values `(N,)`: numbers of classes, or numbers; NaN for none, and for classes
        that are not known, such as -1.
        """
        values = torch.from_numpy(np.asarray(values, np.float64))
        if not self.classes:
            return ((values - self.mean) / self.std).float()[:, None]
        known = (values >= 0) & (values < len(self.classes))
        places = torch.eye(len(self.classes))[values.where(known, 0).long()] * math.sqrt(len(self.classes))
        return places.where(known[:, None], torch.nan)

    def of(self, value: Value, label: str) -> float:
        """Return the number that stands for what a user gave. Raises MandorlaError if it is no value of the label."""
        if not self.classes:
            try:
                number = float(value)
            except (TypeError, ValueError):
                number = math.nan
            if not math.isfinite(number):
                raise MandorlaError(f"label {label!r} is a number, not {value!r}")
            if abs(number - self.mean) > _FAR * self.std:
                usual = f"{self.mean:.3g} with a standard deviation of {self.std:.3g}"
                raise MandorlaError(f"label {label!r} is {usual} in the training: {value!r} means nothing to the model")
            return number
        name = str(value).lower() if isinstance(value, bool | np.bool_) else str(value)
        if name not in self.classes:
            hint = did_you_mean(name, self.classes)
            raise MandorlaError(f"label {label!r} has no class {name!r}{hint}; it has {_few(self.classes)}")
        return float(self.classes.index(name))


def _few(classes: Sequence[str]) -> str:
    return ", ".join((*classes[:_SHOWN], "...") if len(classes) > _SHOWN else classes)


def label_values(dataset: Dataset, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the labels `names` of all samples, `(N,)` each; images are touched only where samples are composed.

    Raises MandorlaError for a label that the data do not have, or that is no single number or class.
    """
    if not names:
        return {}
    if isinstance(dataset, StoredDataset):
        found = {name: values[dataset.rows] for name, values in dataset.labels.items() if name in names}
    else:
        batches = [dataset.batch(rows).factors for rows in pieces(np.arange(len(dataset)), _AT_ONCE)]
        found = {n: np.concatenate([b[n] for b in batches]) for n in batches[0] if n in names}
    for name in names:
        if name not in found:
            have = list(dataset.batch([0]).factors)
            raise MandorlaError(f"diffusion.labels: the data have no label {name!r}, only {', '.join(have) or 'none'}")
        if found[name].ndim != 1 or found[name].dtype.kind not in "biuf":
            raise MandorlaError(f"diffusion.labels: {name!r} is no class and no number, one for each sample")
    return found


def fit_scales(values: Mapping[str, np.ndarray], data: Splits) -> dict[str, LabelScale]:
    """Return how the labels of the training set, `(N,)` each, become numbers.

    Raises MandorlaError for a label that no sample has.
    """
    scales = {}
    for name, given in values.items():
        known = given[np.isfinite(given)] if given.dtype.kind == "f" else given[given >= 0]
        if not len(known):
            raise MandorlaError(f"diffusion.labels: no training sample has the label {name!r}")
        if classes := data.classes.get(name) or ():
            scales[name] = LabelScale(tuple(classes))
        elif given.dtype.kind == "f" or isinstance(data.train, StoredDataset):
            scales[name] = LabelScale((), float(known.mean()), float(known.std()) or 1.0)
        else:  # of composed samples, whole numbers are classes
            scales[name] = LabelScale(tuple(map(str, range(int(known.max()) + 1))))
    return scales


def split_labels(texts: Sequence[str]) -> dict[str, str]:
    """Return by name what a user wrote as NAME=VALUE; a value may hold further signs of equality."""
    return dict(text.partition("=")[::2] for text in texts)


def to_labels(given: Given, scales: Mapping[str, LabelScale], num: int) -> Components:
    """Return the network's labels of `num` samples, `(num, size)` each, for what a user says of one or of all.

    None is a value that is not known.

    Raises MandorlaError for labels that this model was not trained on, and values that they do not have.
    """
    if not isinstance(given, Mapping):
        raise MandorlaError(f"labels are a mapping from names to values, not a {type(given).__name__}")
    labels = {}
    for name, value in given.items():
        if name not in scales:
            known = f"only {', '.join(scales)}" if scales else "none: name them in diffusion.labels"
            raise MandorlaError(f"stage 2 was trained with no label {name!r}, {known}")
        single = value is None or isinstance(value, str | int | float | np.number | np.bool_)
        values = [value] * num if single else list(value)
        if len(values) != num:
            raise MandorlaError(f"label {name!r} has {len(values)} values for {num} samples: give one for all, or each")
        labels[name] = scales[name].apply(
            np.array([math.nan if v is None else scales[name].of(v, name) for v in values], np.float64)
        )
    return labels


def forget_half(labels: Components) -> Components:
    """Return labels `(B, size)` of which each sample's is not known, by chance, half of the time."""
    return {name: z.where(torch.rand(len(z), 1, device=z.device) < _HALF, torch.nan) for name, z in labels.items()}


def to_json(scales: Mapping[str, LabelScale]) -> dict:
    """Return scales as plain values."""
    return {name: asdict(scale) for name, scale in scales.items()}


def of_json(tree: Mapping[str, Mapping]) -> dict[str, LabelScale]:
    """Undo `to_json`."""
    return {name: LabelScale(tuple(s["classes"]), s["mean"], s["std"]) for name, s in tree.items()}
