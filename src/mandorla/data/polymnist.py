"""PolyMNIST: one digit class in several views, each handwritten by another hand over a photograph of its own.

A sample has the views `view0`, `view1`, ...; what they share is the digit's class. Each shows a different MNIST image
of it, over a random crop of its own photograph. With `quadrants`, the digit has half the image's side and lies in one
of the four quadrants, drawn for each view on its own: these, and the crops, are private. A pixel of MNIST above `ink`
belongs to the digit. There, of a digit's value v and a photograph's value x in [0, 255], a view shows

- `red`: (v, 0, 0);   `blue`: (0, 0, v);   `inverted`: 255 - x

The photographs of the authors are not to be had: these are scikit-image's, cut out at their own resolution: the
rocket, the coffee, the astronaut, the retina and the cat, for `view0` to `view4`.

Train, val and test tuples are of MNIST images of their own. Samples are composed when asked for, from random numbers
that depend on (seed, part, index) alone. All arithmetic is of integers, but for the last step, a product with one
float: a sample is the same bit by bit on any processor or GPU, in any batch.

References: Sutter, Daunhawer, Vogt: Generalized Multimodal ELBO (2021), https://arxiv.org/abs/2105.02470 (PolyMNIST);
IDMVAE, 2025, https://arxiv.org/abs/2509.23548 (quadrants).
"""

from collections.abc import Mapping
from copy import copy
from functools import cache, partial
from itertools import chain
from typing import Literal

import numpy as np
import skimage.data
import torch
from pydantic import Field, model_validator
from torch import Tensor

from mandorla.data.composed import Composed, compose_parts
from mandorla.data.dataset import Modality, Splits
from mandorla.data.instances import Instances
from mandorla.data.mnist import load_mnist
from mandorla.data.random import Draws
from mandorla.data.root import RootedConfig

PHOTOGRAPHS = ("rocket", "coffee", "astronaut", "retina", "chelsea")
Drawing = Literal["red", "inverted", "blue"]
Digits = tuple[np.ndarray, np.ndarray]  # images `(N, 28, 28)` and the digits that they show `(N,)`
_COLOUR = {"red": (1, 0, 0), "blue": (0, 0, 1)}
_BITS = 8  # of the weights of the resize: two of them times a byte stay below 2^24
_CHUNK = 4096  # images that are resized at once


class PolymnistConfig(RootedConfig):
    """Choose the views, their size and the number of samples of `polymnist`."""

    kind: Literal["polymnist"] = "polymnist"
    views: tuple[Drawing, ...] = Field(("red", "inverted", "inverted", "inverted", "blue"), min_length=2, max_length=5)
    """How each view draws its digit: red, inverted or blue."""
    size: int = Field(64, ge=8, le=256)
    """Pixels per side of an image."""
    quadrants: bool = True
    """Whether the digit lies in one of four quadrants; else it fills the image."""
    ink: int = Field(16, ge=0, le=254)
    """A pixel of MNIST above this value, of 255, belongs to the digit."""
    num_train: int = Field(220_000, ge=1)
    """Training samples."""
    num_val: int = Field(5_000, ge=1)
    """Validation samples."""
    num_test: int = Field(10_000, ge=1)
    """Test samples."""

    @model_validator(mode="after")
    def _size_is_even(self):
        if self.quadrants and self.size % 2:
            raise ValueError(f"size {self.size} must be even: it is divided into quadrants")
        return self


class Polymnist(Composed):
    """Compose samples of one part ("train", "val" or "test") of PolyMNIST from the images of `digits[part]`.

    Factors: `digit`, and for each view `instance_view0` (row of images), `quadrant_view0` (0..3 = upper left, upper
    right, lower left, lower right; with `quadrants` alone) and `crop_view0` (row, column in the photograph).
    """

    def __init__(self, config: PolymnistConfig, digits: Mapping[str, Digits], part: str, num: int, seed: int):
        views = [Modality(f"view{k}", 3, (config.size,) * 2) for k in range(len(config.views))]
        super().__init__(config.kind, part, num, seed, views)
        self.config = config
        images, labels = digits[part]
        self._instances = Instances(labels, np.arange(len(labels)))
        self._digits = resize_exactly(torch.from_numpy(images), config.size // 2 if config.quadrants else config.size)
        self._photographs = [_photograph(name) for name in PHOTOGRAPHS[: len(config.views)]]

    def on(self, device: torch.device) -> "Polymnist":
        """Return the same samples, composed on `device`."""
        moved = copy(self)
        moved._digits = self._digits.to(device)
        moved._photographs = [photograph.to(device) for photograph in self._photographs]
        return moved

    def compose(self, draws: Draws) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
        """Return the views, each float32 `(B, 3, size, size)` in [0, 1], and the factors."""
        digit = (draws / "digit").integers(10)
        factors = {"digit": digit}
        names = [modality.name for modality in self.modalities]
        instances = self._instances.draw(draws / "instance", digit, names)
        x = {
            name: self._view(name, drawing, photograph, instance, draws / name, factors)
            for name, drawing, photograph, instance in zip(
                names, self.config.views, self._photographs, instances, strict=True
            )
        }
        return x, factors

    def _view(
        self,
        name: str,
        drawing: Drawing,
        photograph: Tensor,
        instance: np.ndarray,
        draws: Draws,
        factors: dict[str, np.ndarray],
    ) -> Tensor:
        """Return one view `(B, 3, size, size)` and note its private factors."""

        def move(numbers: np.ndarray) -> Tensor:
            return torch.from_numpy(numbers).to(photograph.device)

        size = self.config.size
        places = np.array(photograph.shape[1:]) - size + 1
        crop = (draws / "crop").integers(places, shape=(2,))
        factors |= {f"instance_{name}": instance, f"crop_{name}": crop}
        windows = photograph.unfold(1, size, 1).unfold(2, size, 1).permute(1, 2, 0, 3, 4)  # a view: nothing is copied
        background = windows[move(crop[:, 0]), move(crop[:, 1])]
        value = self._digits[move(instance)]
        if self.config.quadrants:
            factors[f"quadrant_{name}"] = quadrant = (draws / "quadrant").integers(4)
            value = _place(value, move(quadrant))
        drawn = _draw(drawing, value[:, None], background)
        return torch.where(value[:, None] > self.config.ink, drawn, background).float() * (1 / 255)


def load_polymnist(config: PolymnistConfig, seed: int) -> Splits:
    """Return the three parts; `seed` chooses the training tuples, val and test are the same for every seed.

    Raises `MandorlaError` if the files of MNIST are missing or damaged.
    """
    digits = load_mnist(config)
    return compose_parts(config, seed, partial(Polymnist, config, digits), chain.from_iterable(digits.values()))


def resize_exactly(images: Tensor, size: int) -> Tensor:
    """Return uint8 images `(N, H, H)` at `size` pixels a side, the same bit by bit everywhere.

    Linear interpolation, smoothed where images shrink: y = (W x W' + half) / 2^16 with integer weights W.
    """
    if size == images.shape[-1]:
        return images
    weights = torch.from_numpy(_weights(images.shape[-1], size)).float()
    small = torch.empty(len(images), size, size, dtype=torch.uint8)
    for chunk, into in zip(images.split(_CHUNK), small.split(_CHUNK), strict=True):
        sums = weights @ chunk.float() @ weights.T  # below 2^24: float32 holds every such integer
        into.copy_((sums.int() + (1 << (2 * _BITS - 1))) >> (2 * _BITS))
    return small


def _weights(old: int, new: int) -> np.ndarray:
    """Return integers `(new, old)`, each row of sum 2^8: how much every pixel counts in a resized line."""
    scale = max(old / new, 1.0)  # of the triangle that smooths
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    triangle = np.maximum(0, 1 - np.abs(np.arange(old) - centres[:, None]) / scale)
    weights = np.rint(triangle / triangle.sum(1, keepdims=True) * 2**_BITS)
    weights[np.arange(new), weights.argmax(1)] += 2**_BITS - weights.sum(1)  # what rounding left over
    return weights


def _draw(drawing: Drawing, value: Tensor, background: Tensor) -> Tensor:
    """Return what a pixel becomes where the digit is: `value` `(B, 1, H, W)`, `background` `(B, 3, H, W)`."""
    if drawing == "inverted":
        return 255 - background
    return value * value.new_tensor(_COLOUR[drawing])[:, None, None]


def _place(digit: Tensor, quadrant: Tensor) -> Tensor:
    """Return images `(B, 2H, 2H)`, zero but for `digit` `(B, H, H)` in its `quadrant` `(B,)`."""
    count, side, _ = digit.shape
    image = digit.new_zeros(count, 2, side, 2, side)
    image[torch.arange(count, device=digit.device), quadrant // 2, :, quadrant % 2] = digit
    return image.view(count, 2 * side, 2 * side)


@cache
def _photograph(name: str) -> Tensor:
    """Return a photograph, uint8 `(3, H, W)`."""
    return torch.from_numpy(getattr(skimage.data, name)().transpose(2, 0, 1).copy())
