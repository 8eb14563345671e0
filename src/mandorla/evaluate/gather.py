"""One pass over a part of the data, keeping what every figure needs: codes, labels, verdicts, small images."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from mandorla.data.dataset import Dataset, evenly, pieces
from mandorla.evaluate.judges import MOST_NUMBERS, Judge
from mandorla.latents import Latents
from mandorla.model import Mandorla
from mandorla.parallel import divide

_CHUNK = 250


@dataclass(frozen=True)
class Gathered:
    """Hold N samples of one part of the data, without their images.

    - `indices` `(N,)` into the data set; `latents` read from all modalities; `alone[name]` the shared part `(N, ...)`
      read from one modality alone; `present[name]` bool `(N,)`
    - `factors[key]` numbers `(N,)`, one for each name, or `(N, D)`; `verdicts[name][factor]` class probabilities
      `(N, classes)` of the judges on images
    - `means[name]` `(C, *size)`: the mean image, also of every image called `clean_<name>`
    - `measured[name][factor]`: what the gauges say of the images, `(N, D)`
    """

    indices: np.ndarray
    latents: Latents
    alone: dict[str, Tensor]
    present: dict[str, np.ndarray]
    factors: dict[str, np.ndarray]
    verdicts: dict[str, dict[str, np.ndarray]]
    means: dict[str, Tensor]
    measured: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    @property
    def whose(self) -> np.ndarray:
        """Return whose (which patient's) each sample is, `(N,)`; each its own where that is not known."""
        return self.factors.get("group", self.indices)

    def known(self, factor: str, view: str | None = None) -> np.ndarray:
        """Return which samples have a class or number of a factor and, where one is named, a modality, bool `(N,)`."""
        values = self.factors[factor]
        there = np.isfinite(values) if values.dtype.kind == "f" else values >= 0
        known = there.reshape(len(there), -1).all(1)
        return known if view is None else known & self.present[view]

    def thinned(self, num: int) -> "Gathered":
        """Return `num` of the samples, evenly spaced, or all if there are no more."""
        rows = evenly(len(self.indices), num)
        return Gathered(
            indices=self.indices[rows],
            latents=self.latents[rows],
            alone={name: z[rows] for name, z in self.alone.items()},
            present={name: here[rows] for name, here in self.present.items()},
            factors={key: values[rows] for key, values in self.factors.items()},
            verdicts={name: {f: p[rows] for f, p in of.items()} for name, of in self.verdicts.items()},
            measured={name: {f: z[rows] for f, z in of.items()} for name, of in self.measured.items()},
            means=self.means,
        )


def choose(dataset: Dataset, num: int, seed: int) -> np.ndarray:
    """Return `num` distinct indices, all if there are no more, in increasing order."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(len(dataset), size=min(num, len(dataset)), replace=False))


def whose(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """Return whose (which patient's) the samples at `rows` are, `(n,)`; each its own where the data does not say."""
    return np.asarray(getattr(dataset, "groups", np.arange(len(dataset))))[rows]


def _numbers(factor: np.ndarray) -> Tensor:
    """Return a factor as numbers; names, such as those of patients, as numbers that are alike where the names are."""
    if factor.dtype.kind in "biuf":
        return torch.as_tensor(factor)
    digests = (sha256(str(name).encode()).digest() for name in factor)
    return torch.tensor([int.from_bytes(digest[:8], "little", signed=True) for digest in digests])


def gather(
    model: Mandorla,
    dataset: Dataset,
    indices: np.ndarray,
    judges: Mapping[str, Judge],
    gauges: Mapping[str, Judge] | None = None,
) -> Gathered:
    """Encode, judge and sum up the samples at `indices`; processes may divide them."""
    names = [modality.name for modality in dataset.modalities]

    def look_at(rows: np.ndarray) -> dict[tuple[str, ...], Tensor]:
        batch = dataset.batch(rows)
        known = {key: _numbers(value) for key, value in batch.factors.items()}
        latents = model.encode(batch.x, batch.present).components
        found = {("latents", key): z.cpu() for key, z in latents.items()}
        found |= {("alone", name): model.encode({name: batch.x[name]}).shared.cpu() for name in names}
        found |= {("present", name): batch.present[name] for name in names}
        named = {f"clean_{name}": x.shape for name, x in batch.x.items()}
        clean = {key: known[key] for key, shape in named.items() if key in known and known[key].shape == shape}
        small = known.keys() - clean.keys()
        found |= {("factors", key): known[key] for key in small if known[key][0].numel() <= MOST_NUMBERS}
        for name, judge in judges.items():
            for factor in judge.heads:
                found["verdicts", name, factor] = torch.from_numpy(judge.probabilities(batch.x[name], factor))
        for name, gauge in (gauges or {}).items():
            said = gauge.numbers(batch.x[name])
            found |= {("measured", name, factor): torch.from_numpy(values) for factor, values in said.items()}
        for key, image in (batch.x | clean).items():
            seen = image[batch.present[key.removeprefix("clean_")]]
            found["sums", key], found["counts", key] = seen.double().sum(0)[None], torch.tensor([len(seen)])
        return found

    found = divide(pieces(indices, _CHUNK), look_at)

    def of(*kind: str) -> dict[str, Tensor]:
        return {key[-1]: z for key, z in found.items() if key[:-1] == kind}

    counts = {key: max(int(count.sum()), 1) for key, count in of("counts").items()}
    return Gathered(
        indices=indices,
        latents=Latents.of(of("latents")),
        alone=of("alone"),
        present={name: here.numpy() for name, here in of("present").items()},
        factors={key: value.numpy() for key, value in of("factors").items()},
        verdicts={name: {f: p.numpy() for f, p in of("verdicts", name).items()} for name in judges},
        measured={name: {f: z.numpy() for f, z in of("measured", name).items()} for name in gauges or {}},
        means={key: (sum(parts) / counts[key]).float() for key, parts in of("sums").items()},
    )
