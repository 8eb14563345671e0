"""MNIST, read from `mnist/mnist.npz` or from the four files of its authors beside it.

The last twelfth of the training images, 5,000, is for validation.

Reference: LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition (1998),
https://doi.org/10.1109/5.726791.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from mandorla.data.arrays import load_array
from mandorla.data.root import RootedConfig
from mandorla.errors import MandorlaError

NPZ = "mnist/mnist.npz"
IDX = {  # array of the .npz file -> name of the authors' file
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
SOURCE = (
    "https://storage.googleapis.com/cvdf-datasets/mnist, whose four files "
    f"{', '.join(f'{name}.gz' for name in IDX.values())} may lie in that folder in its stead"
)
VAL_SHARE = 12  # one of so many training images is for validation
FEWEST = 5  # images of each digit, one for each view


def load_mnist(config: RootedConfig) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return for train, val and test the images, uint8 `(N, 28, 28)`, and their digits, int `(N,)`.

    Raises `MandorlaError` if the files are missing, damaged or hold something else.
    """
    folder = config.locate(NPZ).parent
    idx = {key: _packed_or_plain(folder / name) for key, name in IDX.items()}
    if not config.locate(NPZ).is_file() and all(file.is_file() for file in idx.values()):
        path, arrays = folder, {key: _read_idx(file) for key, file in idx.items()}
    else:
        path = config.find(NPZ, SOURCE)
        arrays = {key: load_array(path, key) for key in IDX}
    for part in ("train", "test"):
        images, digits = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if (images.dtype, images.shape[1:], digits.shape) != (np.uint8, (28, 28), images.shape[:1]):
            raise MandorlaError(f"{path}: its {part} images are {images.dtype} {images.shape}, no MNIST; fetch it anew")
    num_train = len(arrays["x_train"]) - len(arrays["x_train"]) // VAL_SHARE
    x, y = arrays["x_train"], arrays["y_train"].astype(np.int64)
    parts = {
        "train": (x[:num_train], y[:num_train]),
        "val": (x[num_train:], y[num_train:]),
        "test": (arrays["x_test"], arrays["y_test"].astype(np.int64)),
    }
    for part, (_, digits) in parts.items():
        classes, counts = np.unique(digits, return_counts=True)
        if classes.tolist() != list(range(10)) or counts.min() < FEWEST:
            raise MandorlaError(f"{path}: not {FEWEST} images of each digit 0 to 9 for {part}; fetch it anew")
    return parts


def _packed_or_plain(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.is_file() else path


def _read_idx(path: Path) -> np.ndarray:
    """Return the bytes of an IDX file: two zeros, 8 for uint8, the number of axes, their lengths, then the values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if content[:3] != b"\0\0\x08":
            raise ValueError("it does not begin as an IDX file of bytes")
        shape = np.frombuffer(content, ">u4", content[3], 4).astype(int)
        if len(content) != 4 + 4 * len(shape) + math.prod(shape):
            raise ValueError(f"it has {len(content)} bytes, which does not fit the shape {shape.tolist()}")
    except (OSError, ValueError, EOFError, IndexError, zlib.error) as error:
        raise MandorlaError(f"{path}: cannot be read as an IDX file ({error}); fetch it anew") from error
    return np.frombuffer(bytearray(content), np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
