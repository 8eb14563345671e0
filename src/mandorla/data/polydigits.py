"""Three ways of drawing the same digit over three photographs.

A sample is three images, the modalities `view0`, `view1`, `view2`. All show the same digit class, and that is all they
share. Each view has its own handwriting (a different image of that class), its own position of the digit and its own
crop of its own photograph: these are private. The ways of drawing differ:

- `view0`: in red, over the cat: a digit pixel of value v becomes (v, 0, 0)
- `view1`: by inverting the colours of the photograph, over the coffee: x becomes 1 - x
- `view2`: in blue, over the astronaut: (0, 0, v)

The recipe is that of PolyMNIST (Sutter et al. 2021) with the private positions of its "quadrant" variant, in small:
the digits are scikit-learn's 1797 real handwritten ones (8x8, UCI), the photographs come with scikit-image, so that
nothing is downloaded. Digit images are divided among train, val and test by a fixed draw; sample i of a part is
composed when asked for, from random numbers that depend on (part, i) alone, so nothing is stored.

References: Sutter, Daunhawer, Vogt: Generalized Multimodal ELBO (2021), https://arxiv.org/abs/2105.02470 (PolyMNIST);
Alpaydin, Kaynak: Optical Recognition of Handwritten Digits (1998), https://doi.org/10.24432/C50P49.
"""

from functools import cache, partial
from typing import Literal

import numpy as np
import skimage.data
import torch
from numpy.lib.stride_tricks import sliding_window_view
from pydantic import Field, model_validator
from skimage.transform import resize
from torch import Tensor

from mandorla.config import Settings
from mandorla.data.composed import Composed, compose_parts
from mandorla.data.dataset import Modality, Splits
from mandorla.data.instances import Instances
from mandorla.data.random import Draws

VIEWS = {"view0": "chelsea", "view1": "coffee", "view2": "astronaut"}
INK = 0.4  # a digit pixel is one above this value; lower, the upscaled strokes of neighbours run together
VAL_SHARE, TEST_SHARE = 0.15, 0.15  # of the digit images


class PolydigitsConfig(Settings):
    """Choose the image size and the number of samples of `polydigits`."""

    kind: Literal["polydigits"] = "polydigits"
    size: int = Field(24, ge=9)
    """Pixels per side of an image."""
    digit_size: int = Field(16, ge=8)
    """Pixels per side of the digit in it."""
    num_train: int = Field(50_000, ge=1)
    """Training samples."""
    num_val: int = Field(2_000, ge=1)
    """Validation samples."""
    num_test: int = Field(2_000, ge=1)
    """Test samples."""

    @model_validator(mode="after")
    def _digit_fits(self):
        if self.digit_size >= self.size:
            raise ValueError(f"digit_size {self.digit_size} must be below size {self.size}: the digit moves about")
        return self


class Polydigits(Composed):
    """Compose samples of one part ("train", "val" or "test") of polydigits.

    Factors: `digit`, and for each view `instance_view0` (row in load_digits), `position_view0` (row, column of the
    digit's upper left corner), `quadrant_view0` (0..3 = upper left, upper right, lower left, lower right) and
    `crop_view0` (row, column in the photograph).
    """

    def __init__(self, config: PolydigitsConfig, part: str, num: int, seed: int):
        super().__init__(config.kind, part, num, seed, [Modality(name, 3, (config.size,) * 2) for name in VIEWS])
        self._digits, labels = _digit_windows(config.size, config.digit_size)
        self._instances = Instances(labels, split_instances(labels)[part])
        self._photographs = {name: _photograph_windows(photo, config.size) for name, photo in VIEWS.items()}

    def compose(self, draws: Draws) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
        """Return the views, each float32 `(B, 3, size, size)` in [0, 1], and the factors."""
        digit = (draws / "digit").integers(10)
        factors = {"digit": digit}
        instances = self._instances.draw(draws / "instance", digit, VIEWS)
        x = {}
        for name, instance in zip(VIEWS, instances, strict=True):
            x[name] = torch.from_numpy(self._view(name, instance, draws / name, factors))
        return x, factors

    def _view(self, name: str, instance: np.ndarray, draws: Draws, factors: dict[str, np.ndarray]) -> np.ndarray:
        """Return one view `(B, 3, size, size)` and note its private factors."""
        windows = self._photographs[name]
        crop = (draws / "crop").integers(np.array(windows.shape[:2]), shape=(2,))
        places = self._digits.shape[1]
        position = (draws / "position").integers(places, shape=(2,))
        lower, right = (position >= places // 2).T
        factors |= {
            f"instance_{name}": instance,
            f"position_{name}": position,
            f"quadrant_{name}": 2 * lower + right,
            f"crop_{name}": crop,
        }
        background = windows[crop[:, 0], crop[:, 1]]
        value = self._digits[instance, places - 1 - position[:, 0], places - 1 - position[:, 1]][:, None]
        return np.where(value > INK, _draw(name, value, background), background)


def split_instances(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Divide the digit images with these `labels` among the parts, by class; return the row numbers of each part.

    The draw is fixed: no seed of a run moves a test digit into training.
    """
    from sklearn.model_selection import train_test_split

    rest, test = train_test_split(np.arange(len(labels)), test_size=TEST_SHARE, stratify=labels, random_state=0)
    val_share = VAL_SHARE / (1 - TEST_SHARE)
    train, val = train_test_split(rest, test_size=val_share, stratify=labels[rest], random_state=0)
    return {"train": np.sort(train), "val": np.sort(val), "test": np.sort(test)}


def load_polydigits(config: PolydigitsConfig, seed: int) -> Splits:
    """Return the three parts; `seed` chooses the training samples, val and test are the same for every seed."""
    return compose_parts(config, seed, partial(Polydigits, config))


def _draw(name: str, value: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Return what a pixel becomes where the digit is: `value` `(B, 1, H, W)`, `background` `(B, 3, H, W)`."""
    if name == "view1":
        return 1 - background
    colour = {"view0": (1, 0, 0), "view2": (0, 0, 1)}[name]
    return value * np.array(colour, dtype=np.float32)[:, None, None]


@cache
def _digit_windows(size: int, digit_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return views `[n, i, j]` of digit n on an empty image, `places - 1 - (i, j)` from its corner, and the labels.

    The number of places per axis is even, so that the digit's centre is as often above the middle as below.
    """
    from sklearn.datasets import load_digits  # here, for it takes a second that other sources need not wait

    images, labels = load_digits(return_X_y=True)
    margin = size - digit_size
    digits = resize(images.reshape(-1, 8, 8) / 16, (len(images), digit_size, digit_size), order=3).clip(0, 1)
    places = (margin + 1) // 2 * 2
    padded = np.pad(digits.astype(np.float32), ((0, 0), (places - 1, margin), (places - 1, margin)))
    return sliding_window_view(padded, (size, size), axis=(1, 2)), labels


@cache
def _photograph_windows(name: str, size: int) -> np.ndarray:
    """Return views `[i, j]` `(3, size, size)` of a photograph scaled to four times the image's side."""
    photo = getattr(skimage.data, name)() / 255
    scale = 4 * size / min(photo.shape[:2])
    shape = tuple(round(n * scale) for n in photo.shape[:2])
    photo = resize(photo, shape, anti_aliasing=True).clip(0, 1).astype(np.float32).transpose(2, 0, 1)
    return sliding_window_view(photo, (size, size), axis=(1, 2)).transpose(1, 2, 0, 3, 4)
