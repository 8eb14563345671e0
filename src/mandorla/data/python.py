"""A dataset of the user's own: a class like those of torch, or a function that gives one, in a file of theirs.

It is called with the folder `data.root` and with `data.options`. What it gives has a length; its item i is sample i:

    {"images": {"t1": (C, *size), "t2": (C, *size)}, "group": "p01", "labels": {"age": 54, "lesion_mask": (*size)}}

Only `images` is needed; a modality that a sample lacks is left out there, or None. `id` names a sample and `split` its
part (train, val or test). All samples are read once, in their order, and kept with their own numbers and types: what is
made of them then is what is made of files.
"""

import inspect
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from mandorla.data.dataset import Splits
from mandorla.data.stored import Rows, StoredConfig, check_present, divide
from mandorla.errors import MandorlaError, did_you_mean
from mandorla.registry import Register

_KEYS = ("images", "id", "group", "labels", "split")  # of a sample


def _may_be_a_dataset(thing: Any) -> bool:
    """Return whether a call of `thing` may give what has a length and items."""
    return inspect.isfunction(thing) or inspect.isclass(thing) and _is_a_dataset(thing)


def _is_a_dataset(thing: Any) -> bool:
    return hasattr(thing, "__len__") and hasattr(thing, "__getitem__")


DATASETS = Register(
    "data.dataset",
    "a class with __len__ and __getitem__, nor a function that gives one: mend it",
    _may_be_a_dataset,
)


class PythonConfig(StoredConfig):
    """Name a dataset of your own."""

    kind: Literal["python"] = "python"
    dataset: str
    """registered name of a class or function, or import path `package.module:Class`"""
    options: dict[str, Any] = {}
    """keyword arguments of its call, after the folder `data.root`; paths among them stay as they are"""


def load_python(config: PythonConfig, seed: int) -> Splits:
    """Return train, val and test, divided by group under `seed`.

    Raises `MandorlaError` as `gather_samples` and `divide` do.
    """
    return divide(gather_samples(config), config, seed, "data.dataset")


def gather_samples(config: PythonConfig) -> Rows:
    """Return the samples of the dataset, undivided.

    Raises `MandorlaError` for a dataset that cannot be built, fewer than two modalities, samples that are no such
    mappings as they must be or unlike each other, an id of two samples, and a sample that is another each time.
    """
    whose = f"data.dataset {config.dataset!r}"
    dataset = DATASETS.build(config.dataset, [config.locate("")], config.options, whose)
    if not _is_a_dataset(dataset):
        raise MandorlaError(f"{whose} gives a {type(dataset).__name__}, not a dataset with __len__ and __getitem__")
    samples = _Samples(whose, len(dataset))
    for row in range(samples.num):
        samples.add(row, _read(dataset, row, f"{whose}: sample {row}"))
    rows = samples.rows()
    for name, image in _read(dataset, 0, f"{whose}: sample 0")["images"].items():
        if image is not None and not np.array_equal(image, rows.x[name][0], equal_nan=True):
            raise MandorlaError(f"{whose}: sample 0 is another each time: what is random belongs to data.augment")
    return rows


class _Samples:
    """Collect `num` samples in arrays."""

    def __init__(self, whose: str, num: int):
        self.whose, self.num = whose, num
        self.names: dict[str, None] = {}  # of modalities, also of those that nobody has yet
        self.x: dict[str, np.ndarray] = {}
        self.present: dict[str, np.ndarray] = {}
        self.labels: dict[str, list[Any]] = {}
        self.known: dict[str, list[str | None]] = {"id": [], "group": [], "split": []}

    def add(self, row: int, sample: Mapping[str, Any]) -> None:
        """Add what `_read` gives for that row."""
        for name, image in sample["images"].items():
            self.names.setdefault(name)
            if image is None:
                continue
            if name not in self.x:
                self.x[name] = np.zeros((self.num, *image.shape), image.dtype)
                self.present[name] = np.zeros(self.num, bool)
            like = self.x[name][0]
            if (image.shape, image.dtype) != (like.shape, like.dtype):
                raise MandorlaError(
                    f"{self.whose}: sample {row} has {name!r} as {image.dtype} {list(image.shape)}, those before it as"
                    f" {like.dtype} {list(like.shape)}: make them alike"
                )
            self.x[name][row], self.present[name][row] = image, True
        for name, value in sample["labels"].items():
            self.labels.setdefault(name, [None] * self.num)[row] = value
        for key, values in self.known.items():
            values.append(sample[key])

    def rows(self) -> Rows:
        """Return all of them."""
        if len(self.names) < 2:
            found = ", ".join(self.names) or "none"
            raise MandorlaError(f"{self.whose}: paired data need two modalities or more, its samples have: {found}")
        if unseen := [name for name in self.names if name not in self.x]:
            raise MandorlaError(f"{self.whose}: no sample has {unseen[0]!r}: leave it out")
        check_present(self.present, self.whose)
        given = self.known["group"]
        grouped = None not in given
        if not grouped and set(given) != {None}:
            raise MandorlaError(f"{self.whose}: sample {given.index(None)} has no group, others do: give it one")
        names = [str(row) if group is None else f"{group}-{row}" for row, group in enumerate(given)]
        ids = [name if own is None else own for own, name in zip(self.known["id"], names, strict=True)]
        if twice := [name for name, count in Counter(ids).items() if count > 1]:
            raise MandorlaError(
                f"{self.whose}: {len(twice)} id(s) of several samples, such as {twice[0]!r}: rename one"
            )
        labels = {name: self._label(name, values) for name, values in self.labels.items()}
        parts = self.known["split"] if set(self.known["split"]) != {None} else None
        x = {name: self.x[name] for name in self.names}
        present = {name: self.present[name] for name in self.names}
        return Rows(x, present, ids, np.array(given if grouped else ids), labels, parts)

    def _label(self, name: str, values: list[Any]) -> Any:
        """Return arrays as one, `(N, ...)`, names and numbers as they are."""
        kinds = {(value.shape, value.dtype) if isinstance(value, np.ndarray) else () for value in values}
        if kinds == {()}:
            return values
        if len(kinds) > 1:
            raise MandorlaError(
                f"{self.whose}: label {name!r} is an array, but not of one shape and type in all samples: make it so"
            )
        return np.stack(values)


def _read(dataset: Any, row: int, place: str) -> dict[str, Any]:
    """Return one sample with every key of samples, images and labels as arrays; `place` begins an error."""
    try:
        sample = dataset[row]
    except Exception as error:  # whatever a user's code raises
        raise MandorlaError(f"{place} cannot be had ({type(error).__name__}: {error}): mend the dataset") from error
    if not (isinstance(sample, Mapping) and isinstance(sample.get("images"), Mapping)):
        kind = f"keys {', '.join(map(str, sample))}" if isinstance(sample, Mapping) else f"a {type(sample).__name__}"
        raise MandorlaError(f'{place}: expected {{"images": {{"t1": array, ...}}, ...}}, got {kind}')
    for key in sample:
        if key not in _KEYS:
            hint = did_you_mean(str(key), _KEYS)
            raise MandorlaError(f"{place}: unknown key {key!r}{hint or ';'} a sample has {', '.join(_KEYS)}")
    images = {name: _image(image, f"{place}: {name!r}") for name, image in sample["images"].items()}
    labels = {name: _label(value, f"{place}: label {name!r}") for name, value in (sample.get("labels") or {}).items()}
    words = {key: sample.get(key) for key in ("id", "group", "split")}
    words = {key: None if word is None else str(word) for key, word in words.items()}
    return words | {"images": images, "labels": labels}


def _array(value: Any, place: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except Exception as error:  # of a tensor that needs gradients, say, or lists of unequal length
        raise MandorlaError(f"{place} is no array ({error}): convert it") from error


def _image(image: Any, place: str) -> np.ndarray | None:
    """Return an image `(C, *size)`, a mask as 0 and 1."""
    if image is None:
        return None
    array = _array(image, place)
    if not 1 <= array.ndim <= 4 or not array.size or array.dtype.kind not in "biuf":
        raise MandorlaError(f"{place}: expected numbers (C, *size), got {array.dtype} of shape {list(array.shape)}")
    return array.astype(np.float32) if array.dtype == bool else array


def _label(value: Any, place: str) -> Any:
    """Return a label as an array, or as a name, a number, a bool or None."""
    array = _array(value, place)
    value = array if array.ndim else array.item()
    if isinstance(value, np.ndarray | str | bool | int | float | None):
        return value
    raise MandorlaError(f"{place}: a {type(value).__name__} is no label: give a name, a number or an array")
