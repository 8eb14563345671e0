"""What is known of samples beside their images: classes, numbers, masks, for evaluation and conditions of stage 2.

A class is a whole number from 0; names are numbered in alphabetical order and kept. -1 stands for a sample without a
class, NaN for one without a number. An array with more axes than samples is kept as it is; one with the space of the
images is a mask, which is brought to the size of the images by majority.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import interpolate

from mandorla.data.dataset import row_chunks
from mandorla.errors import MandorlaError

MANY = 1000  # from here on an integer is a number and not a class


@dataclass(frozen=True)
class Label:
    """Hold the `values` `(N, ...)` of one label and the names of its `classes`, empty where it has none."""

    values: np.ndarray
    classes: tuple[str, ...] = ()


def to_label(values: np.ndarray | Sequence[str | float | None], place: str, number: bool = False) -> Label:
    """Return `values`, one per sample, as a label.

    Strings and whole numbers from 0 on, however they are stored, are classes, other numbers are numbers, and all of
    them where it is said to be a `number`. None, "" and NaN stand for a sample without a value. Raises
    `MandorlaError`, which begins with `place`, for strings and numbers in one list, types that are neither, names and
    arrays that should be a number, and a label that no sample has.
    """
    if not isinstance(values, np.ndarray):
        kinds = {type(value) for value in values}
        if not number and bool in kinds and kinds <= {bool, type(None)}:
            return Label(np.array([-1 if value is None else int(value) for value in values]), ("false", "true"))
        values = _to_array(values, place)
    if values.dtype.kind == "U" and values.ndim == 1:
        names = tuple(sorted(set(values.tolist()) - {""}))
        if not names:
            raise MandorlaError(f"{place}: no sample has this label")
        if number:
            raise MandorlaError(f"{place}: names, such as {names[0]!r}, are no numbers; take it out of data.numbers")
        return Label(np.array([names.index(name) if name else -1 for name in values.tolist()]), names)
    if values.dtype.kind not in "biuf":
        raise MandorlaError(
            f"{place}: {values.dtype} values are no label; give integers, floats, bools or one name each"
        )
    if number and (values.ndim > 1 or values.dtype == bool):
        raise MandorlaError(f"{place}: neither arrays nor bools are numbers; take it out of data.numbers")
    if number:
        return Label(values.astype(np.float64))
    if values.ndim > 1:
        return Label(values)
    if values.dtype == bool:
        return Label(values, ("false", "true"))
    whole = _whole(values) if values.dtype.kind == "f" else values.astype(np.int64)
    if whole.dtype.kind == "i" and whole.min() >= -1 and 0 <= whole.max() < MANY:
        return Label(whole, tuple(map(str, range(whole.max() + 1))))
    return Label(values.astype(np.float64))


def shrink_mask(masks: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return `masks` `(N, *space)` brought down to `size`: the commonest value of each area, of two the larger.

    Floats are averaged.
    """
    if masks.shape[1:] == size:
        return masks
    small = np.empty((len(masks), *size), masks.dtype)
    values = [None] if masks.dtype.kind == "f" else np.unique(masks)[::-1]  # the first of equally common ones is taken
    for rows in row_chunks(masks):
        chunk = masks[rows]
        maps = [chunk if value is None else chunk == value for value in values]
        shares = [interpolate(torch.from_numpy(m[:, None].astype(np.float32)), size=size, mode="area") for m in maps]
        small[rows] = shares[0][:, 0].numpy() if values[0] is None else values[torch.cat(shares, 1).argmax(1).numpy()]
    return small


def _to_array(values: Sequence[str | float | None], place: str) -> np.ndarray:
    """Return a list of names or numbers as an array, "" or NaN where there is none."""
    given = [value for value in values if value is not None and value != ""]
    if all(isinstance(value, str) for value in given):
        return np.array([value or "" for value in values], dtype=str)
    if any(isinstance(value, str) for value in given):
        name = next(value for value in given if isinstance(value, str))
        raise MandorlaError(f"{place}: both names, such as {name!r}, and numbers; give one kind")
    return np.array([np.nan if value is None or value == "" else value for value in values], dtype=np.float64)


def _whole(numbers: np.ndarray) -> np.ndarray:
    """Return `numbers` `(N,)` as integers, -1 for NaN, if all are whole and none is negative, else as they are."""
    known = np.isfinite(numbers)
    if known.any() and (numbers[known] % 1 == 0).all() and numbers[known].min() >= 0:
        return np.where(known, numbers, -1).astype(np.int64)
    return numbers
