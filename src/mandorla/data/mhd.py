"""Three truly different kinds of data on one digit: its image, its spoken name, and the movement of a pen.

A sample has the modalities

- `image` (1, 28, 28): a handwritten digit of MNIST;
- `sound` (1, num_mel, frames): a recording of the Free Spoken Digit Dataset as log-mel spectrogram, from `floor` to
  0 dB brought to [0, 1];
- `trajectory` (2, 8): x and y of the eight points of a pen drawing of UCI's Pendigits.

They have nothing in common but the digit: each is drawn on its own among its instances of that class. The speaker, the
hands and the loudness are private. Nothing is downloaded: every set lies in a folder of its own under the root,

    mnist/        as `mandorla.data.mnist` says
    fsdd/         as `mandorla.data.fsdd` says
    pendigits/    as `mandorla.data.pendigits` says

References: Vasco et al.: Leveraging Hierarchy in Multimodal Generative Models for Effective Cross-Modality Inference
(2022), https://doi.org/10.1016/j.neunet.2021.11.019 (the pairing).
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mandorla.data.composed import Composed, compose_parts
from mandorla.data.dataset import Modality, Splits, pieces
from mandorla.data.fsdd import RATE, load_fsdd
from mandorla.data.instances import Instances
from mandorla.data.mnist import load_mnist
from mandorla.data.pendigits import LARGEST, load_pendigits
from mandorla.data.random import Draws
from mandorla.data.root import RootedConfig
from mandorla.data.spectrogram import SpectrogramConfig, log_mel
from mandorla.data.splits import PARTS
from mandorla.errors import MandorlaError

_CHUNK = 256  # sounds that are transformed at once


class MhdConfig(RootedConfig):
    """Choose the spectrograms and the number of samples of `mhd`."""

    kind: Literal["mhd"] = "mhd"
    spectrogram: SpectrogramConfig = SpectrogramConfig()
    """How sounds become images."""
    num_train: int = Field(50_000, ge=1)
    """Training samples."""
    num_val: int = Field(5_000, ge=1)
    """Validation samples."""
    num_test: int = Field(10_000, ge=1)
    """Test samples."""


@dataclass(frozen=True)
class Kind:
    """Hold what one modality may show in one part: `values` `(N, C, *size)`, divided by `scale` in [0, 1], of `digits`.

    `factors[name]` `(N,)` is what else is known of an instance.
    """

    values: np.ndarray
    scale: float
    digits: np.ndarray
    factors: dict[str, np.ndarray] = field(default_factory=dict)


class Mhd(Composed):
    """Compose samples of one part ("train", "val" or "test") of `mhd` from its `kinds` by modality.

    Factors: `digit`, `instance_image`, `instance_sound`, `instance_trajectory` (rows of `kinds`), `speaker_sound`.
    """

    def __init__(self, part: str, num: int, seed: int, kinds: dict[str, Kind]):
        shapes = {name: kind.values.shape[1:] for name, kind in kinds.items()}
        modalities = [Modality(name, shape[0], shape[1:]) for name, shape in shapes.items()]
        super().__init__("mhd", part, num, seed, modalities)
        self.kinds = kinds
        self._instances = {name: Instances(kind.digits, np.arange(len(kind.digits))) for name, kind in kinds.items()}

    def compose(self, draws: Draws) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
        """Return the modalities, each float32 `(B, C, *size)` in [0, 1], and the factors."""
        digit = (draws / "digit").integers(10)
        x, factors = {}, {"digit": digit}
        for name, kind in self.kinds.items():
            (rows,) = self._instances[name].draw(draws, digit, [name])
            x[name] = torch.from_numpy(kind.values[rows].astype(np.float32) / np.float32(kind.scale))
            factors[f"instance_{name}"] = rows
            factors |= {f"{key}_{name}": values[rows] for key, values in kind.factors.items()}
        return x, factors


def load_mhd(config: MhdConfig, seed: int) -> Splits:
    """Return the three parts; `seed` chooses the training samples, val and test are the same for every seed.

    Raises `MandorlaError` if files are missing, damaged or hold something else.
    """
    images, sounds, drawings = load_mnist(config), load_fsdd(config), load_pendigits(config)

    def part_of(part: str, num: int, seed: int) -> Mhd:
        (image, image_digit), (sound, sound_digit, speaker) = images[part], sounds[part]
        drawing, drawing_digit = drawings[part]
        kinds = {
            "image": Kind(image[:, None], 255, image_digit),
            "sound": Kind(_to_unit(sound, config.spectrogram), 1, sound_digit, {"speaker": speaker}),
            "trajectory": Kind(drawing.transpose(0, 2, 1), LARGEST, drawing_digit),
        }
        for name, kind in kinds.items():
            if not np.array_equal(np.unique(kind.digits), np.arange(10)):
                raise MandorlaError(
                    f"{config.locate('')}: not every digit 0 to 9 has a {name} for {part}; fetch it anew"
                )
        return Mhd(part, num, seed, kinds)

    arrays = (array for part in PARTS for of in (images, sounds, drawings) for array in of[part])
    return compose_parts(config, seed, part_of, arrays)


def _to_unit(sounds: np.ndarray, settings: SpectrogramConfig) -> np.ndarray:
    """Return the spectrograms `(N, 1, num_mel, frames)` of int16 sounds `(N, T)`, the floor as 0 and 0 dB as 1."""
    decibels = np.concatenate([log_mel(piece / 2**15, RATE, settings) for piece in pieces(sounds, _CHUNK)])
    return 1 - np.minimum(decibels, 0) / np.float32(settings.floor)
