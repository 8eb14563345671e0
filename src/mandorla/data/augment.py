"""Augmentation that keeps pairs aligned: one geometry for all modalities of a sample, intensities for each on its own.

A pixel at p, in units of half the longest side from the centre, shows in all modalities and masks what was at

    flip( A^-1 (p - shift) + d(p) ),        A = scale * rotation,

with d a smooth random field: cubic (in 3D linear) between 4 normal numbers per axis. Beyond an image its edge goes on.
Then every modality has x <- clip( gain * x^gamma + bias + noise ), log gamma, gain - 1 and bias uniform, noise normal.

Every strength is the largest that may be drawn, and zero leaves images as they are, bit by bit. What is drawn depends
on (seed, step, sample) alone: a training that resumes draws the same. Only training batches of stage 1 and copies of
training samples in the latent cache (`vae.copies`) are augmented; validation and evaluation see the data as they are.

Reference: Perez, Wang: The Effectiveness of Data Augmentation in Image Classification (2017),
https://arxiv.org/abs/1712.04621; Simard, Steinkraus, Platt: Best Practices for Convolutional Neural Networks (2003),
https://doi.org/10.1109/ICDAR.2003.1227801 (smooth random fields).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import grid_sample

from mandorla.config import Settings
from mandorla.data.dataset import Batch, Modality
from mandorla.data.random import Draws
from mandorla.errors import MandorlaError

_KNOTS = 4  # per axis, of the smooth field


class AugmentConfig(Settings):
    """Change training images at random, all modalities of a sample alike."""

    flip: tuple[int, ...] = ()
    """Axes that are mirrored for every other sample: 0 is the first after the channels, such as a picture's height."""
    rotate: float = Field(0.0, ge=0, le=180)
    """Degrees; in 3D about each axis."""
    scale: float = Field(0.0, ge=0, lt=1)
    """Share by which an image grows or shrinks."""
    shift: float = Field(0.0, ge=0, le=1)
    """Share of the longest side by which an image moves along each axis."""
    elastic: float = Field(0.0, ge=0, le=0.2)
    """Standard deviation of the smooth field, as a share of the longest side."""
    gamma: float = Field(0.0, ge=0, lt=3)
    """Logarithm of the exponent of the values."""
    gain: float = Field(0.0, ge=0, lt=1)
    """Share by which values are multiplied."""
    bias: float = Field(0.0, ge=0, lt=1)
    """What is added to the values, which lie in [0, 1]."""
    noise: float = Field(0.0, ge=0, lt=1)
    """Standard deviation of the noise; each sample has its own, from zero to this."""


def augment_of(data: Settings) -> AugmentConfig:
    """Return how the training images of the source `data` are changed: not at all where it has no such setting."""
    return getattr(data, "augment", AugmentConfig())


class Augment:
    """Augment training batches of `modalities`.

    Raises `MandorlaError` if these have no common geometry and `config` would change it.
    """

    def __init__(self, config: AugmentConfig, modalities: Sequence[Modality], seed: int):
        self.config, self.seed = config, seed
        self._warps = any((config.rotate, config.scale, config.shift, config.elastic))
        self._recolours = any((config.gamma, config.gain, config.bias, config.noise))
        if self._warps or config.flip:
            _check_geometry(config, modalities)

    def __call__(self, batch: Batch, indices: np.ndarray, step: int) -> Batch:
        """Return `batch`, the samples at `indices` of the training part, as they are seen in this step."""
        draws = Draws(self.seed, indices, f"augment/{step}")
        x, factors = batch.x, batch.factors
        if self._warps or self.config.flip:
            sizes = {value.shape[2:] for value in x.values()}
            geometry = _Geometry(self.config, draws, len(next(iter(sizes))), next(iter(x.values())).device)
            x = {name: geometry.move(value, "bilinear") for name, value in x.items()}
            masks = {name: mask for name, mask in factors.items() if mask.shape[1:] in sizes}
            factors = factors | {name: geometry.move_mask(mask) for name, mask in masks.items()}
        if self._recolours:
            x = {name: self._recolour(value, batch.present[name], draws / name) for name, value in x.items()}
        return replace(batch, x=x, factors=factors)

    def _recolour(self, x: Tensor, present: Tensor, draws: Draws) -> Tensor:
        """Return images `(B, C, *size)` with other intensities, still zero where they are missing."""
        config = self.config

        def draw(name: str, low: float, high: float) -> Tensor:
            return _tensor((draws / name).uniform(low, high), x.device).view(-1, *[1] * (x.ndim - 1))

        x = draw("gain", 1 - config.gain, 1 + config.gain) * x ** draw("gamma", -config.gamma, config.gamma).exp()
        x = x + draw("bias", -config.bias, config.bias)
        if config.noise:
            x = x + draw("noise", 0, config.noise) * _tensor((draws / "values").normal(*x.shape[1:]), x.device)
        return x.clamp(0, 1) * present.to(x.device).view(-1, *[1] * (x.ndim - 1))


class _Geometry:
    """Hold one drawn geometry for each sample of a batch, in coordinates in which the longest side goes from -1 to 1.

    `flips[axis]` bool `(B,)`, `matrix` `(B, axes, axes)`, `shift` `(B, axes)`, `field` `(B, axes, knots, ...)`.
    """

    def __init__(self, config: AugmentConfig, draws: Draws, axes: int, device: torch.device):
        self._device = device
        self._warps = any((config.rotate, config.scale, config.shift, config.elastic))
        flips = torch.from_numpy((draws / "flip").integers(2, (axes,)) > 0).to(device)
        self._flips = {axis: flips[:, axis] for axis in config.flip}
        if not self._warps:
            return
        limit = np.deg2rad(config.rotate)
        angles = (draws / "rotate").uniform(-limit, limit, (1 if axes == 2 else 3,))
        scale = (draws / "scale").uniform(1 - config.scale, 1 + config.scale)
        self._matrix = _tensor(_rotations(angles) / scale[:, None, None], device)
        self._shift = _tensor((draws / "shift").uniform(-2 * config.shift, 2 * config.shift, (axes,)), device)
        knots = (draws / "elastic").normal(axes, *[_KNOTS] * axes) if config.elastic else None
        self._field = None if knots is None else _tensor(2 * config.elastic * knots, device)
        self._places: dict[tuple[int, ...], Tensor] = {}  # by size: most modalities have the same

    def move(self, x: Tensor, mode: Literal["bilinear", "nearest"]) -> Tensor:
        """Return images `(B, C, *size)` as this geometry shows them."""
        for axis, flip in self._flips.items():
            x = torch.where(flip.view(-1, *[1] * (x.ndim - 1)), x.flip(axis + 2), x)
        if not self._warps:
            return x
        size = tuple(x.shape[2:])
        if size not in self._places:
            self._places[size] = self._place(size)
        return grid_sample(x, self._places[size], mode, "border", align_corners=False)

    def _place(self, size: tuple[int, ...]) -> Tensor:
        """Return where every pixel is looked up, `(B, *size, axes)` from -1 to 1, the last axis first."""
        side = torch.tensor(size, device=self._device) / max(size)
        centres = [(torch.arange(n, device=self._device) + 0.5) * 2 / n - 1 for n in size]
        base = torch.stack(torch.meshgrid(*centres, indexing="ij"), -1).expand(len(self._matrix), *size, -1)
        place = (base.flatten(1, -2) * side - self._shift[:, None]) @ self._matrix.mT
        place = (place / side).view_as(base)
        if self._field is not None:
            smooth = "bicubic" if len(size) == 2 else "bilinear"
            field = grid_sample(self._field, base.flip(-1), smooth, "border", align_corners=True)
            place = place + field.movedim(1, -1) / side
        return place.flip(-1)

    def move_mask(self, mask: np.ndarray) -> np.ndarray:
        """Return masks `(B, *size)` of any number type as this geometry shows them."""
        values = torch.from_numpy(mask.astype(np.float32)).to(self._device)
        return self.move(values[:, None], "nearest")[:, 0].cpu().numpy().astype(mask.dtype)


def _check_geometry(config: AugmentConfig, modalities: Sequence[Modality]) -> None:
    """Raise `MandorlaError` unless all modalities are images, or volumes, of the same proportions."""
    first = modalities[0]
    for modality in modalities:
        axes = len(modality.size)
        if axes not in (2, 3) or axes != len(first.size):
            raise MandorlaError(
                f"data.augment: {modality.name} with {axes} axes in space cannot be moved as {first.name} with "
                f"{len(first.size)}; set flip, rotate, scale, shift and elastic to zero"
            )
        ratios = {one / other for one, other in zip(modality.size, first.size, strict=True)}
        if len(ratios) > 1:
            raise MandorlaError(
                f"data.augment: {modality.name} {list(modality.size)} and {first.name} {list(first.size)} have other "
                "proportions; set flip, rotate, scale, shift and elastic to zero, or bring them to one data.size"
            )
    if wrong := [axis for axis in config.flip if axis not in range(len(first.size))]:
        raise MandorlaError(f"data.augment.flip: no axis {wrong[0]}; images here have 0 to {len(first.size) - 1}")


def _rotations(angles: np.ndarray) -> np.ndarray:
    """Return rotations `(B, axes, axes)` by `angles` `(B, 1)` in the plane, or `(B, 3)` about each axis of space."""
    axes = 2 if angles.shape[1] == 1 else 3
    whole = np.tile(np.eye(axes), (len(angles), 1, 1))
    for (i, j), angle in zip([(0, 1), (0, 2), (1, 2)], angles.T, strict=False):
        turn = np.tile(np.eye(axes), (len(angles), 1, 1))
        turn[:, i, i] = turn[:, j, j] = np.cos(angle)
        turn[:, i, j], turn[:, j, i] = -np.sin(angle), np.sin(angle)
        whole = whole @ turn
    return whole


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(device)
