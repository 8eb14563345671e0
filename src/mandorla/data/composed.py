"""Composed data: samples that are made when asked for, of random numbers that depend on (seed, part, index) alone.

Nothing is stored, and an index gives the same sample in whatever batch it is asked for. The seed of a run chooses its
training samples; val and test are the same for every seed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256

import numpy as np
from torch import Tensor

from mandorla.config import Settings
from mandorla.data.dataset import Batch, Modality, Splits, all_present
from mandorla.data.intensity import UNIT
from mandorla.data.random import Draws
from mandorla.data.splits import PARTS


class Composed(ABC):
    """Answer batches of `num` samples of one part; a source writes `compose`, whose draws are of `kind` and `part`."""

    def __init__(self, kind: str, part: str, num: int, seed: int, modalities: Iterable[Modality]):
        self.stream, self.seed, self.modalities = f"{kind}/{part}", seed, tuple(modalities)
        self.ids = [f"{part}-{index}" for index in range(num)]

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Return the samples at `indices`: each modality float32 `(B, C, *size)` in [0, 1]."""
        x, factors = self.compose(Draws(self.seed, indices, self.stream))
        return Batch(x, all_present(x), factors, [self.ids[index] for index in indices])

    @abstractmethod
    def compose(self, draws: Draws) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
        """Return the images by modality, float32 `(B, C, *size)` in [0, 1], and the factors `(B, ...)` of samples."""


def compose_parts(
    config: Settings, seed: int, make: Callable[[str, int, int], Composed], of: Iterable[np.ndarray] = ()
) -> Splits:
    """Return the three parts, each as `make(part, num, seed)` gives it; their samples are made of the arrays `of`."""
    contents = sha256(f"{config.model_dump_json(exclude={'root'})} {seed}".encode())  # wherever files lie
    for array in of:
        contents.update(np.ascontiguousarray(array))
    parts = {part: make(part, getattr(config, f"num_{part}"), seed if part == "train" else 0) for part in PARTS}
    intensity = {modality.name: UNIT for modality in parts["train"].modalities}
    return Splits(**parts, intensity=intensity, contents=contents.hexdigest())
