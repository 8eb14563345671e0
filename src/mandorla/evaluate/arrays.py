"""Arrays and tensors of anybody's, brought to one form and checked: what the public functions here begin with."""

import numpy as np
import torch
from torch import Tensor

from mandorla.errors import MandorlaError

Array = np.ndarray | Tensor


def tensor(values: Array, what: str) -> Tensor:
    """Return `values` as a tensor on the CPU, whatever their strides and their order of bytes.

    Raises MandorlaError, which says `what` they are, where they are no real numbers.
    """
    try:
        if not isinstance(values, Tensor):
            array = np.array(values)
            values = torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("=")))
        if values.is_complex():
            raise ValueError("complex numbers")
    except (TypeError, ValueError) as error:
        raise MandorlaError(f"{what} are no real numbers: give an array of NumPy or torch") from error
    return values.detach().cpu()


def code_rows(values: Array, what: str) -> Tensor:
    """Return codes `(N, ...)` as rows `(N, F)` of floats, maps flattened.

    Raises MandorlaError for no rows, for rows without numbers, for NaN and infinity.
    """
    rows = tensor(values, what)
    if rows.ndim < 2 or 0 in rows.shape:
        raise MandorlaError(f"{what} have shape {tuple(rows.shape)}: expected (N, F), N at least 1")
    if not rows.isfinite().all():
        raise MandorlaError(f"{what} have NaN or infinite values: leave those samples out")
    return rows.flatten(1) if rows.dtype in (torch.float32, torch.float64) else rows.flatten(1).double()


def columns(values: np.ndarray) -> np.ndarray:
    """Return what is one number, or several, of each sample, `(N,)` or `(N, D)`, as float64 `(N, D)`."""
    return np.asarray(values, np.float64).reshape(len(values), -1)


def numbers(values: Array, what: str) -> np.ndarray:
    """Return one number per sample, `(N,)`, float64. Raises MandorlaError for none at all, NaN and infinity."""
    found = tensor(values, what)
    if found.ndim != 1 or not len(found):
        raise MandorlaError(f"{what} have shape {tuple(found.shape)}: expected (N,), N at least 1")
    return code_rows(found[:, None], what).double()[:, 0].numpy()


def classes(values: Array, what: str, num: int | None = None) -> np.ndarray:
    """Return the class of each sample, `(N,)`, as integers.

    Raises MandorlaError for none at all, for what are no integers and, where there are `num` classes, not among them.
    """
    found = tensor(values, what)
    if found.ndim != 1 or not len(found) or found.is_floating_point():
        kind = str(found.dtype).removeprefix("torch.")
        raise MandorlaError(f"{what} are {kind} of shape {tuple(found.shape)}: expected integers (N,), N at least 1")
    labels = found.long().numpy()
    if num is not None and (labels.min() < 0 or labels.max() >= num):
        wrong = labels[(labels < 0) | (labels >= num)][0]
        raise MandorlaError(f"{what} have a {wrong}, of {num} classes from 0 on: leave samples without a class out")
    return labels


def same_number(*sets: Array, what: str) -> None:
    """Raise MandorlaError, which says `what` the sets are, where they do not have one row each per sample."""
    if len({len(each) for each in sets}) > 1:
        raise MandorlaError(f"{what} are {' and '.join(str(len(each)) for each in sets)}: give one of each per sample")
