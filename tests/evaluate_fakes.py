"""A data source and a model for it that are right by construction: the evaluation of it has known answers.

An image shows one bright bar on grey: its column is the class (shared), the half it lies in the private factor.
"""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from mandorla.data.dataset import Batch, Modality, Splits, all_present
from mandorla.diffusion.samplers import SamplingConfig
from mandorla.latents import SHARED, Latents, Layout, to_sphere

CLASSES, SIDE = 4, 8
MODALITIES = (Modality("left", 1, (SIDE, SIDE)), Modality("right", 1, (SIDE, SIDE)), Modality("top", 1, (SIDE, SIDE)))


def draw(column: torch.Tensor, half: torch.Tensor) -> torch.Tensor:
    """Draw bars `(B, 1, 8, 8)`: columns 2k and 2k + 1, rows of the upper or lower half."""
    x = torch.full((len(column), 1, SIDE, SIDE), 0.2)
    for b, (k, h) in enumerate(zip(column.tolist(), half.tolist(), strict=True)):
        x[b, 0, 4 * h : 4 * h + 4, 2 * k : 2 * k + 2] = 0.9
    return x


def column(x: torch.Tensor) -> torch.Tensor:
    """Return the brightness of each class's columns `(B, 4)`."""
    return x[:, 0].amax(1)[:, ::2]


def half(x: torch.Tensor) -> torch.Tensor:
    """Return the brightness of both halves `(B, 2)`."""
    return x[:, 0].amax(2)[:, ::4]


class BarVAE:
    """Do what stage 1 does, exactly."""

    layout = Layout({SHARED: (CLASSES,)} | {m.name: (2,) for m in MODALITIES})

    def encode(self, x, present):
        return {name: image[present[name]] for name, image in x.items()}, {
            name: to_sphere(column(image)) for name, image in x.items()
        }

    def posterior(self, name, features, c):
        return half(features), torch.full((len(c), 2), -7.0)

    def decode(self, name, c, u):
        return draw(c.argmax(1), u.argmax(1))


class Bars:
    """Answer bars by index."""

    modalities = MODALITIES

    def __init__(self, num: int, seed: int):
        rng = np.random.default_rng(seed)
        self.bar = rng.integers(CLASSES, size=num)
        self.half = {m.name: rng.integers(2, size=num) for m in MODALITIES}

    def __len__(self) -> int:
        return len(self.bar)

    def batch(self, indices) -> Batch:
        bar = self.bar[indices]
        x = {name: draw(torch.as_tensor(bar), torch.as_tensor(half[indices])) for name, half in self.half.items()}
        halves = {f"half_{name}": half[indices] for name, half in self.half.items()}
        return Batch(x, all_present(x), {"bar": bar} | halves, [str(i) for i in indices])


@dataclass
class BarModel:
    """Encode and decode bars exactly; `coherent=False` gives every view a class of its own when it generates."""

    run: Path = Path()
    coherent: bool = True
    modalities = MODALITIES
    vae = BarVAE()
    device, draws = "cpu", True
    sampling, refiner, hashes = SamplingConfig(), None, {"vae": "0", "diffusion": "0"}
    hashes_of_decoding = {"vae": "0"}
    recipe = SimpleNamespace(
        seed=0,
        run="runs/bars",
        vae=SimpleNamespace(loss=SimpleNamespace(shared_noise=0.1)),
        model_dump=lambda mode="json": {"run": "runs/bars", "data": {"kind": "bars"}},
    )

    def data(self) -> Splits:
        return Splits(Bars(400, 0), Bars(50, 1), Bars(100, 2))

    def encode(self, x, present=None) -> Latents:
        present = present or {name: torch.ones(len(image), dtype=torch.bool) for name, image in x.items()}
        columns = [column(image) * present[name][:, None] for name, image in x.items()]
        count = torch.stack(list(present.values())).sum(0)[:, None]
        return Latents(torch.stack(columns).sum(0) / count, {name: half(image) for name, image in x.items()})

    def decode(self, latents, keys=None, refined=True):
        shared = latents.shared
        return {name: draw(shared.argmax(1), u.argmax(1)) for name, u in latents.private.items()}

    def _private(self, num, seed, wanted):
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.rand(num, 2, generator=generator) for name in wanted}

    def sample_private(self, shared, seed=0, wanted=None) -> Latents:
        if not self.coherent:
            shared = torch.rand(shared.shape, generator=torch.Generator().manual_seed(seed))
        return Latents(shared, self._private(len(shared), seed, wanted or [m.name for m in MODALITIES]))

    def sample(self, num, seed=0, steps=None):
        shared = torch.rand(num, CLASSES, generator=torch.Generator().manual_seed(seed))
        latents = self.sample_private(shared, seed + 1)
        if self.coherent:
            return SimpleNamespace(x=self.decode(latents), latents=latents)
        x = {}
        for k, (name, u) in enumerate(latents.private.items()):
            own = torch.rand(num, CLASSES, generator=torch.Generator().manual_seed(seed + 10 + k))
            x |= self.decode(Latents(own, {name: u}))
        return SimpleNamespace(x=x, latents=latents)

    def translate(self, x, wanted, num_samples=1, seed=0):
        shared = self.encode(x).shared
        draws = [self.decode(self.sample_private(shared, seed + k, wanted)) for k in range(num_samples)]
        return {name: torch.stack([drawn[name] for drawn in draws]) for name in wanted}

    def to_residual(self, latents):
        return latents  # its private parts depend on nothing

    def swap(self, shared_from, private_from, residual=False):
        return self.decode(Latents(shared_from.shared, private_from.private))

    def interpolate(self, a, b, num=8, part="both"):
        a, b = (z if isinstance(z, Latents) else self.encode(z) for z in (a, b))
        steps = []
        for w in torch.linspace(0, 1, num):
            mix = {name: torch.lerp(z, b.components[name], w) for name, z in a.components.items()}
            shared = mix["shared"] if part != "private" else a.shared
            private = {name: mix[name] for name in a.private} if part != "shared" else a.private
            steps.append(self.decode(Latents(shared, private)))
        return {name: torch.stack([step[name] for step in steps]) for name in a.private}
