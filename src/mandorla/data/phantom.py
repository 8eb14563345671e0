"""A paired "T1"/"T2" phantom of the head, whose every factor is known.

The anatomy is shared: scalp, skull, cerebrospinal fluid, folded grey matter, white matter, ventricles and deep grey
nuclei, each an ellipse (2D) or ellipsoid (3D) seen through a smooth random displacement, with a partial volume w_k in
[0, 1] per pixel and tissue k. The modalities `t1` and `t2` are rendered from it by the spin-echo equation

    S = sum_k w_k PD_k (1 - exp(-TR / T1_k)) exp(-TE / T2_k),        x = |gain field S + noise|,

and these are private to each image: repetition time TR, echo time TE, a smooth multiplicative bias `field`, and Rician
noise (the magnitude of a complex signal with Gaussian noise in both parts). Half of the samples carry a lesion in the
white matter that prolongs T2. It is rendered in `t2` alone, so that nothing in `t1` tells of it. (A real one is
faint in T1, not absent; here the absence is the point: a private factor with a place.)

`gain` is a fixed number per modality that brings x into [0, 1]; the little that exceeds 1 is cut. Coordinates run from
-1 to 1 along each axis, in the order of the array: (row, column) or (slice, row, column), downwards to the back of the
head. Sample i of a part depends on (part, i) alone.

References: Kwan, Evans, Pike: MRI simulation-based evaluation of image-processing and classification methods (1999),
https://doi.org/10.1109/42.816072, and BrainWeb's table of tissue parameters at 1.5 T, https://brainweb.bic.mni.mcgill.ca;
Gudbjartsson, Patz: The Rician distribution of noisy MRI data (1995), https://doi.org/10.1002/mrm.1910340618.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from mandorla.config import Settings
from mandorla.data.composed import Composed, compose_parts
from mandorla.data.dataset import Modality, Splits
from mandorla.data.random import Draws


class Tissue(NamedTuple):
    """Hold the relaxation times `t1` and `t2` in ms and the relative `proton_density` of a tissue."""

    t1: float
    t2: float
    proton_density: float


TISSUES = {
    "fat": Tissue(350, 70, 1.00),  # of the scalp; air and cortical bone give no signal
    "fluid": Tissue(2569, 329, 1.00),
    "grey": Tissue(833, 83, 0.86),
    "white": Tissue(500, 70, 0.77),
    "lesion": Tissue(752, 237, 0.76),
}


@dataclass(frozen=True)
class Contrast:
    """Hold the ranges in ms from which an image draws its TR and TE, and the `gain` into [0, 1]."""

    tr: tuple[float, float]
    te: tuple[float, float]
    gain: float


CONTRASTS = {
    "t1": Contrast(tr=(300, 600), te=(8, 20), gain=1.5),
    "t2": Contrast(tr=(2500, 5500), te=(75, 115), gain=1.45),
}

ANATOMY = {  # what is drawn uniformly for each head, with its range; lengths in units of half an image
    "centre_row": (-0.04, 0.04),
    "centre_column": (-0.04, 0.04),
    "angle": (-0.2, 0.2),
    "length": (0.84, 0.93),
    "width": (0.68, 0.78),
    "cortex": (0.12, 0.17),
    "atrophy": (0.02, 0.06),
    "ventricle_length": (0.28, 0.40),
    "ventricle_width": (0.045, 0.095),
    "ventricle_distance": (0.10, 0.14),
    "ventricle_bend": (0.7, 1.7),
    "nucleus_radius": (0.11, 0.16),
}
HEIGHT = 0.85  # half the extent of a volume's head along the slice axis
DISPLACEMENT = 0.03  # standard deviation of the smooth warp
FOLDING = 0.07  # standard deviation of the depth of the cortex's folds
BIAS = 0.12  # largest coefficient of the bias field's exponent
NOISE = 0.02  # standard deviation of each part of the complex noise, on the scale of [0, 1]
LESION_RADIUS = (0.08, 0.16)


class PhantomConfig(Settings):
    """Choose the image size and the number of samples of `phantom`."""

    kind: Literal["phantom"] = "phantom"
    size: tuple[int, ...] = (48, 48)
    """Pixels per axis: two numbers make slices, three make volumes."""
    num_train: int = Field(20_000, ge=1)
    """Training samples."""
    num_val: int = Field(1_000, ge=1)
    """Validation samples."""
    num_test: int = Field(1_000, ge=1)
    """Test samples."""

    @model_validator(mode="after")
    def _size_is_2d_or_3d(self):
        if len(self.size) not in (2, 3) or min(self.size) < 16:
            raise ValueError(f"size {list(self.size)} must be two or three numbers of at least 16")
        return self


class Phantom(Composed):
    """Compose samples of one part ("train", "val" or "test") of the phantom.

    Factors that are shared: `anatomy` (B, K) in the order of `ANATOMY`; `clean_t1`, `clean_t2` (B, 1, *size), the
    anatomy at the middle of the TR and TE ranges without bias, noise and lesion. Private ones: `tr_t1`, `te_t1` in ms,
    `bias_t1` (coefficients of `bias_basis`), and the same of t2; `lesion_present` (B,), `lesion_mask` (B, *size), both
    bool; `lesion_position` (B, axes) and `lesion_radius` (B,), which are drawn for every sample, present or not.
    """

    def __init__(self, config: PhantomConfig, part: str, num: int, seed: int):
        super().__init__(config.kind, part, num, seed, [Modality(name, 1, config.size) for name in CONTRASTS])
        self.size = config.size
        self._axes = [np.linspace(-1, 1, 2 * n + 1, dtype=np.float32)[1::2] for n in config.size]  # pixel centres
        self._grid = [_along(axis, j, len(config.size)) for j, axis in enumerate(self._axes)]
        self._pixels = float(np.prod(config.size)) ** (1 / len(config.size)) / 2  # per unit of length
        self._bias_basis = bias_basis(self._grid)

    def compose(self, draws: Draws) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
        """Return both images, float32 `(B, 1, *size)` in [0, 1], and the factors."""
        anatomy = {name: (draws / name).uniform(*limits).astype(np.float32) for name, limits in ANATOMY.items()}
        volumes = self._tissues(draws / "warp", anatomy)
        factors = {"anatomy": np.stack(list(anatomy.values()), axis=1)}
        lesion = self._lesion(draws / "lesion", volumes["white"], factors)
        with_lesion = volumes | {"white": volumes["white"] - lesion, "lesion": lesion}
        x = {}
        for name, contrast in CONTRASTS.items():
            image = self._scan(name, with_lesion if name == "t2" else volumes, draws / name, factors)
            x[name] = torch.from_numpy(image[:, None])
            tr, te = (np.full(len(image), np.mean(limits)) for limits in (contrast.tr, contrast.te))
            factors[f"clean_{name}"] = (contrast.gain * spin_echo(volumes, tr, te)).clip(0, 1)[:, None]
        return x, factors

    def _tissues(self, draws: Draws, anatomy: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the partial volume of each tissue, float32 `(B, *size)` in [0, 1]; they sum to at most 1."""
        a = {name: self._per_sample(value) for name, value in anatomy.items()}
        q = [
            axis + DISPLACEMENT * self._smooth_field(draws / f"axis{j}", 4, (0.2, 0.7))
            for j, axis in enumerate(self._grid)
        ]
        row, column = q[-2] - a["centre_row"], q[-1] - a["centre_column"]
        cos, sin = np.cos(a["angle"]), np.sin(a["angle"])
        row, column = cos * row - sin * column, np.abs(sin * row + cos * column)  # the two halves mirror each other
        height = q[0] if len(q) == 3 else np.float32(0)

        def inside(level: np.ndarray, limit: float | np.ndarray, scale: float | np.ndarray) -> np.ndarray:
            """Return 1 where `level < limit`, 0 where above, and a ramp one pixel wide; `scale` is length per level."""
            return np.clip(0.5 + (limit - level) * (scale * self._pixels), 0, 1)

        def ellipse(*terms: np.ndarray) -> np.ndarray:
            return np.sqrt(sum(term * term for term in terms))

        level = ellipse(row / a["length"], column / a["width"], height / HEIGHT)
        scale = np.sqrt(a["length"] * a["width"])
        fold = FOLDING * self._smooth_field(draws / "fold", 12, (1.8, 3.2))
        surface = 0.86 - a["atrophy"] - 0.6 * np.maximum(fold, 0)
        scalp, skull, cavity = (inside(level, limit, scale) for limit in (1.0, 0.93, 0.86))
        brain = inside(level, surface, scale)
        core = inside(level, 0.86 - a["atrophy"] - a["cortex"] - fold, scale)

        deep = inside(level, 0.45, scale)
        fissure = inside(column, 0.015, 1) * (1 - deep)
        sheath = inside(column, 0.08, 1) * (1 - deep)
        offset = column - a["ventricle_distance"] - a["ventricle_bend"] * row * row
        ventricle = ellipse(row / a["ventricle_length"], offset / a["ventricle_width"], height / 0.35)
        tissue = 1 - inside(ventricle, 1, np.sqrt(a["ventricle_length"] * a["ventricle_width"]))
        radius = a["nucleus_radius"]
        offset = column - a["ventricle_distance"] - a["ventricle_width"] - 0.8 * radius
        nucleus = inside(ellipse(offset / radius, row / (1.6 * radius), height / (1.6 * radius)), 1, radius)

        white = core * (1 - sheath) * (1 - nucleus) * tissue
        nervous = brain * (1 - fissure) * tissue
        return {"fat": scalp - skull, "fluid": cavity - nervous, "grey": nervous - white, "white": white}

    def _lesion(self, draws: Draws, white: np.ndarray, factors: dict[str, np.ndarray]) -> np.ndarray:
        """Return the lesion's partial volume `(B, *size)`: a ball about a place in the white matter, cut to it."""
        chance = np.cumsum(white.reshape(len(white), -1) ** 8, axis=1, dtype=np.float64)
        pixel = (chance > (draws / "place").uniform(shape=(1,)) * chance[:, -1:]).argmax(axis=1)
        steps = np.unravel_index(pixel, self.size)
        position = np.stack([axis[step] for axis, step in zip(self._axes, steps, strict=True)], axis=1)
        radius = (draws / "radius").uniform(*LESION_RADIUS).astype(np.float32)
        present = (draws / "present").integers(2).astype(bool)
        distance = np.sqrt(
            sum((axis - self._per_sample(centre)) ** 2 for axis, centre in zip(self._grid, position.T, strict=True))
        )
        ball = np.clip(0.5 + (self._per_sample(radius) - distance) * np.float32(self._pixels), 0, 1)
        lesion = white * ball * self._per_sample(present.astype(np.float32))
        factors |= {
            "lesion_present": present,
            "lesion_mask": lesion > 0.5,
            "lesion_position": position,
            "lesion_radius": radius,
        }
        return lesion

    def _scan(
        self, name: str, volumes: dict[str, np.ndarray], draws: Draws, factors: dict[str, np.ndarray]
    ) -> np.ndarray:
        """Return the image `(B, *size)` of modality `name`, and note its private factors."""
        contrast = CONTRASTS[name]
        tr, te = (draws / "tr").uniform(*contrast.tr), (draws / "te").uniform(*contrast.te)
        bias = (draws / "bias").uniform(-BIAS, BIAS, shape=(len(self._bias_basis),)).astype(np.float32)
        factors |= {f"tr_{name}": tr, f"te_{name}": te, f"bias_{name}": bias}
        field = np.exp(np.tensordot(bias, self._bias_basis, axes=1))
        noise = NOISE * (draws / "noise").normal(2, *self.size)
        signal = contrast.gain * field * spin_echo(volumes, tr, te) + noise[:, 0]
        return np.minimum(np.sqrt(signal**2 + noise[:, 1] ** 2), 1)

    def _smooth_field(self, draws: Draws, num: int, frequency: tuple[float, float]) -> np.ndarray:
        """Return a random field `(B, *size)` of mean 0 and variance 1: `num` plane waves of random direction and phase.

        `frequency` is the range of their cycles per unit of length. A plane wave is the real part of a product of one
        complex wave per axis, so a matrix product sums them all.
        """
        direction = (draws / "direction").normal(num, len(self.size))
        direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        cycles = direction * (draws / "frequency").uniform(*frequency, shape=(num, 1)).astype(np.float32)
        phase = (draws / "phase").uniform(0, 2 * np.pi, shape=(num, 1)).astype(np.float32)
        angles = [2 * np.float32(np.pi) * cycles[..., j, None] * axis for j, axis in enumerate(self._axes)]
        angles[0] += phase
        waves = np.exp(1j * angles[0])
        for angle in angles[1:-1]:
            waves = (waves[..., None] * np.exp(1j * angle)[..., None, :]).reshape(len(waves), num, -1)
        left = np.concatenate([waves.real, -waves.imag], axis=1).transpose(0, 2, 1)
        right = np.concatenate([np.cos(angles[-1]), np.sin(angles[-1])], axis=1)
        return np.float32(np.sqrt(2 / num)) * (left @ right).reshape(-1, *self.size)

    def _per_sample(self, value: np.ndarray) -> np.ndarray:
        """Return `value` (B,) with axes of length 1 for the pixels."""
        return value.reshape(-1, *(1 for _ in self.size))


def spin_echo(volumes: dict[str, np.ndarray], tr: np.ndarray, te: np.ndarray) -> np.ndarray:
    """Return the spin-echo signal float32 `(B, *size)` of partial volumes, for `tr` and `te` (B,) in ms."""
    signal = 0
    for name, volume in volumes.items():
        tissue = TISSUES[name]
        strength = tissue.proton_density * (1 - np.exp(-tr / tissue.t1)) * np.exp(-te / tissue.t2)
        signal = signal + strength.astype(np.float32).reshape(-1, *(1 for _ in volume.shape[1:])) * volume
    return signal


def bias_basis(grid: Sequence[np.ndarray]) -> np.ndarray:
    """Return the monomials of degree 1 and 2 in the coordinates `grid`, `(K, *size)`."""
    linear = list(np.broadcast_arrays(*grid))
    return np.stack(linear + [a * b for i, a in enumerate(linear) for b in linear[i:]])


def load_phantom(config: PhantomConfig, seed: int) -> Splits:
    """Return the three parts; `seed` chooses the training samples, val and test are the same for every seed."""
    return compose_parts(config, seed, partial(Phantom, config))


def _along(axis: np.ndarray, j: int, num: int) -> np.ndarray:
    """Return `axis` as dimension `j` of `num`."""
    return axis.reshape([-1 if k == j else 1 for k in range(num)])
