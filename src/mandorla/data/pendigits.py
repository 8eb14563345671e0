"""Pendigits: digits as the movement of a pen, eight points each, of 44 writers.

Read from `pendigits/pendigits.tra` and `.tes`, as published (x and y of every point from 0 to 100, then the digit,
separated by commas), or from `pendigits/pendigits.npz`, which holds both: `x_train` uint8 `(N, 8, 2)`, `y_train`,
`x_test`, `y_test`. The test file has writers of its own. The last tenth of the training file is for validation.

Reference: Alpaydin, Alimoglu: Pen-Based Recognition of Handwritten Digits (1998), https://doi.org/10.24432/C5MG6K.
"""

from pathlib import Path

import numpy as np

from mandorla.data.arrays import load_array
from mandorla.data.root import RootedConfig
from mandorla.errors import MandorlaError

NPZ, TEXTS = "pendigits/pendigits.npz", {"train": "pendigits/pendigits.tra", "test": "pendigits/pendigits.tes"}
SOURCE = "https://doi.org/10.24432/C5MG6K, whose files pendigits.tra and pendigits.tes may lie there in its stead"
LARGEST = 100  # coordinate
VAL_SHARE = 10  # one of so many training drawings is for validation


def load_pendigits(config: RootedConfig) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return for train, val and test the points, uint8 `(N, 8, 2)` from 0 to `LARGEST`, and digits `(N,)`.

    Raises `MandorlaError` if the files are missing, damaged or hold something else.
    """
    texts = {part: config.locate(text) for part, text in TEXTS.items()}
    given = {}
    for part in ("train", "test"):
        if not config.locate(NPZ).is_file() and all(text.is_file() for text in texts.values()):
            path = texts[part]
            points, digits = _read_text(path)
        else:
            path = config.find(NPZ, SOURCE)
            points, digits = load_array(path, f"x_{part}"), load_array(path, f"y_{part}")
        if points.shape[1:] != (8, 2) or digits.shape != points.shape[:1] or points.dtype.kind not in "iu":
            raise MandorlaError(f"{path}: its {part} points are {points.dtype} {points.shape}; fetch it anew")
        if not points.size or points.min() < 0 or points.max() > LARGEST:
            raise MandorlaError(f"{path}: its {part} points do not lie between 0 and {LARGEST}; fetch it anew")
        given[part] = points.astype(np.uint8), digits.astype(np.int64)
    points, digits = given["train"]
    num_train = len(points) - len(points) // VAL_SHARE
    return {
        "train": (points[:num_train], digits[:num_train]),
        "val": (points[num_train:], digits[num_train:]),
        "test": given["test"],
    }


def _read_text(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        rows = np.loadtxt(path, dtype=np.int64, delimiter=",", ndmin=2)
    except (OSError, ValueError) as error:
        raise MandorlaError(
            f"{path}: cannot be read as numbers separated by commas ({error}); fetch it anew"
        ) from error
    if rows.shape[1:] != (17,):
        raise MandorlaError(f"{path}: expected 17 numbers per line, 8 points and a digit; fetch it anew")
    return rows[:, :16].reshape(-1, 8, 2), rows[:, 16]
