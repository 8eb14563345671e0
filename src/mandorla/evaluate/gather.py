"""One pass over a part of the data, keeping what every figure needs: codes, labels, verdicts, small images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mandorla.data.dataset import Dataset
from mandorla.evaluate.judges import Judge
from mandorla.latents import Latents

if TYPE_CHECKING:
    from mandorla.model import Mandorla

_CHUNK = 250
_SMALL = 1  # factors of at most this many dimensions are kept; masks and images are not


@dataclass(frozen=True)
class Gathered:
    """Hold N samples of one part of the data, without their images.

    - `indices` `(N,)` into the data set; `latents` read from all modalities; `alone[name]` the shared part `(N, ...)`
      read from one modality alone; `present[name]` bool `(N,)`
    - `factors[key]` `(N,)`; `verdicts[name][factor]` class probabilities `(N, classes)` of the judges on the images
    - `means[name]` `(C, *size)`: the mean image, also of every factor called `clean_<name>`
    """

    indices: np.ndarray
    latents: Latents
    alone: dict[str, Tensor]
    present: dict[str, np.ndarray]
    factors: dict[str, np.ndarray]
    verdicts: dict[str, dict[str, np.ndarray]]
    means: dict[str, Tensor]

    def thinned(self, num: int) -> "Gathered":
        """Return `num` of the samples, evenly spaced, or all if there are no more."""
        rows = np.linspace(0, len(self.indices) - 1, min(num, len(self.indices))).astype(int)
        return Gathered(
            indices=self.indices[rows],
            latents=self.latents[rows],
            alone={name: z[rows] for name, z in self.alone.items()},
            present={name: here[rows] for name, here in self.present.items()},
            factors={key: values[rows] for key, values in self.factors.items()},
            verdicts={name: {f: p[rows] for f, p in of.items()} for name, of in self.verdicts.items()},
            means=self.means,
        )


def choose(dataset: Dataset, num: int, seed: int) -> np.ndarray:
    """Return `num` distinct indices, all if there are no more, in increasing order."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(len(dataset), size=min(num, len(dataset)), replace=False))


def gather(model: "Mandorla", dataset: Dataset, indices: np.ndarray, judges: Mapping[str, Judge]) -> Gathered:
    """Encode, judge and sum up the samples at `indices`."""
    names = [modality.name for modality in dataset.modalities]
    latents = []
    alone: dict[str, list[Tensor]] = {name: [] for name in names}
    present: dict[str, list[np.ndarray]] = {name: [] for name in names}
    factors: dict[str, list[np.ndarray]] = {}
    verdicts: dict[str, dict[str, list[np.ndarray]]] = {name: {f: [] for f in j.heads} for name, j in judges.items()}
    sums: dict[str, tuple[Tensor, int]] = {}
    for start in range(0, len(indices), _CHUNK):
        batch = dataset.batch(indices[start : start + _CHUNK])
        latents.append(model.encode(batch.x, batch.present).to("cpu"))
        images = dict(batch.x)
        for key, value in batch.factors.items():
            if value.ndim <= _SMALL:
                factors.setdefault(key, []).append(value)
            elif key.startswith("clean_"):
                images[key] = torch.as_tensor(value)
        for name in names:
            alone[name].append(model.encode({name: batch.x[name]}).shared.cpu())
            present[name].append(batch.present[name].numpy())
        for name, of_factor in verdicts.items():
            for factor, parts in of_factor.items():
                parts.append(judges[name].probabilities(batch.x[name], factor))
        for key, image in images.items():
            seen = image[batch.present[key.removeprefix("clean_")]]
            total, count = sums.get(key, (0, 0))
            sums[key] = total + seen.double().sum(0), count + len(seen)
    components = {key: torch.cat([part.components[key] for part in latents]) for key in latents[0].components}
    return Gathered(
        indices=indices,
        latents=Latents.of(components),
        alone={name: torch.cat(parts) for name, parts in alone.items()},
        present={name: np.concatenate(parts) for name, parts in present.items()},
        factors={key: np.concatenate(parts) for key, parts in factors.items()},
        verdicts={name: {f: np.concatenate(p) for f, p in of.items()} for name, of in verdicts.items()},
        means={key: (total / max(count, 1)).float() for key, (total, count) in sums.items()},
    )
