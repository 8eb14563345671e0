"""Random numbers that depend on a seed, a stream and an index alone.

A composed data set must give the same sample at the same index, whatever batch it is asked for in, and must do so
for a whole batch at once. A generator with a state cannot; a *counter-based* one can: number k of sample i is a hash,

    key_i = mix(hash(seed, stream) + g i),        bits_ik = mix(key_i + g k),

where `mix` is the finaliser of SplitMix64, g its odd constant, and `stream` any name ("train/position"). Streams of
different names are independent.

References: Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators (2014), https://doi.org/10.1145/2660193.2660195;
Salmon et al.: Parallel Random Numbers: As Easy as 1, 2, 3 (2011), https://doi.org/10.1145/2063384.2063405.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Draws:
    """Draw random numbers for the samples `indices`, the same ones each time.

    `stream / "name"` opens a stream of its own for every quantity that is drawn:

        draws = Draws(seed=0, indices=[3, 4], stream="train")
        angle = (draws / "angle").uniform(0, 2 * np.pi)  # (2,)
    """

    seed: int
    indices: Sequence[int] | np.ndarray
    stream: str = ""

    def __truediv__(self, name: str) -> "Draws":
        """Return the draws of the stream `name` below this one."""
        return Draws(self.seed, self.indices, f"{self.stream}/{name}")

    def bits(self, *shape: int) -> np.ndarray:
        """Return uniform random uint64 `(B, *shape)`."""
        digest = blake2b(f"{self.seed}{self.stream}".encode(), digest_size=8).digest()
        start = np.uint64(int.from_bytes(digest, "little"))
        keys = _mix(start + GOLDEN * np.asarray(self.indices).astype(np.uint64))
        counters = GOLDEN * np.arange(1, 1 + int(np.prod(shape)), dtype=np.uint64)
        return _mix(keys[:, None] + counters).reshape(len(keys), *shape)

    def uniform(self, low: float = 0.0, high: float = 1.0, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Return float64 `(B, *shape)`, uniform in [low, high)."""
        return low + (high - low) * ((self.bits(*shape) >> np.uint64(11)) * 2.0**-53)

    def integers(self, high: int | np.ndarray, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Return int64 `(B, *shape)`, uniform in [0, high); `high` broadcasts against the result."""
        return (self.uniform(shape=shape) * high).astype(np.int64)

    def normal(self, *shape: int) -> np.ndarray:
        """Return standard normal float32 `(B, *shape)`; half the numbers come from the sine, half from the cosine.

        The Box-Muller transform, z = sqrt(-2 log a) (cos, sin)(2 pi b), with a in (0, 1] and b in [0, 1) the halves of
        one hash.
        """
        num = int(np.prod(shape))
        halves = self.bits((num + 1) // 2).view(np.uint32).reshape(-1, (num + 1) // 2, 2).astype(np.float32)
        radius = np.sqrt(-2 * np.log((halves[..., 0] + np.float32(0.5)) * np.float32(2.0**-32)))
        angle = halves[..., 1] * np.float32(2 * np.pi * 2.0**-32)
        pair = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        return pair[:, :num].reshape(-1, *shape)


def _mix(z: np.ndarray) -> np.ndarray:
    """Scramble 64 bits (the finaliser of SplitMix64)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
