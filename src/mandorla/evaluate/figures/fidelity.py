"""Whether generated samples look like real ones and are as varied, in named spaces of features.

All sets have the same number of samples, for Fréchet distances fall as that grows: generated tuples, real training
samples (the ceiling: what another draw of real data scores), and the same training samples encoded and decoded (what
the decoder alone costs) are compared with test samples.
"""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from mandorla.data.dataset import Dataset, evenly, pieces
from mandorla.evaluate.arrays import Array
from mandorla.evaluate.coherence import donors
from mandorla.evaluate.distances import (
    AROUND,
    NEAR,
    density_coverage,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from mandorla.evaluate.features import Networks
from mandorla.evaluate.figures.subject import Subject
from mandorla.evaluate.gather import choose, whose
from mandorla.evaluate.images import edge_overlap, has_ssim, ms_ssim, mutual_information
from mandorla.evaluate.information import shuffled
from mandorla.evaluate.record import Better, Record, averaged, deviation, jackknife_error
from mandorla.parallel import divide

ALL = "all together"  # modalities, their features side by side
_CHUNK = 250
LEAST = 20  # samples of a set
_FEWEST = 6  # rows of a set that all distances are defined for
_PAIRS = 200  # pairs of images whose likeness is taken for the variety of a set
_VALUES = 2**24  # of the images of a modality whose tuples are compared; of volumes there are then fewer
_WHOSE = ""  # stands for a space where it is kept whose (which patient's) each sample is, as a number

Features = dict[str, Tensor]  # of each modality, and of all together, (N, F)
_TEXTS: dict[str, tuple[str, Better]] = {
    "frechet": ("Fréchet distance", "lower"),
    "kernel": ("Squared kernel distance (KID)", "lower"),
    "precision": (f"Share of samples near a real one ({NEAR} neighbours)", "nearer ceiling"),
    "recall": (f"Share of real ones near a sample ({NEAR} neighbours)", "higher"),
    "density": (f"Real neighbourhoods of {AROUND} around a sample, over {AROUND}", "nearer ceiling"),
    "coverage": (f"Share of real neighbourhoods of {AROUND} with a sample", "higher"),
}


def fidelity(real: Array, made: Array) -> dict[str, float]:
    """Return how features `made` `(N, F)` compare with `real` `(K, F)`, whoever read them off whatever images.

    By name: `frechet`, `kernel` (lower is better), `recall`, `coverage` (higher is better), `precision`, `density`
    (better the nearer to what other real ones give: above it samples keep to where real ones are densest); see
    `mandorla.evaluate.distances`. Raises MandorlaError for sets that cannot be compared.
    """
    near, found = precision_recall(real, made)
    density, coverage = density_coverage(real, made)
    parts = {"precision": near, "recall": found, "density": density, "coverage": coverage}
    return _distances(real, made) | {name: float(scores.mean()) for name, scores in parts.items()}


def _distances(real: Array, made: Array) -> dict[str, float]:
    return {"frechet": frechet_distance(real, made), "kernel": kernel_distance(real, made)}


_KINDS = {  # of sets that are compared with real ones: by what, and what they are
    "made": (fidelity, "generated samples"),
    "decoded": (_distances, "reconstructions of training samples"),
}


def num_compared(subject: Subject) -> int:
    """Return how many samples each set has at most."""
    settings, data = subject.settings, subject.data
    return min(settings.num_generated, settings.num_test, settings.num_train, len(data.test), len(data.train))


def fidelity_figures(subject: Subject) -> list[Record]:
    """Measure samples and reconstructions in every space, and how varied samples are."""
    num, (spaces, _) = num_compared(subject), subject.spaces
    made = {space: {n: of[n].features(x) for n, x in subject.samples.x.items()} for space, of in spaces.items()}
    made[_WHOSE] = {name: torch.arange(len(x))[:, None] for name, x in subject.samples.x.items()}
    sets = {
        "real": _read(subject, subject.data.test, num, spaces),
        "made": {space: _scopes(features) for space, features in made.items()},
        "training": _read(subject, subject.data.train, num, spaces),
        "decoded": _read(subject, subject.data.train, num, spaces, decoded=True),
    }
    records = []
    for space in spaces:
        found: dict[str, list[Record]] = {}
        for scope in (*subject.names, ALL):
            for kind in _KINDS:
                for record in _compare(subject, sets, space, kind, scope):
                    found.setdefault(record.name.rpartition("/")[0], []).append(record)
        for same in found.values():
            records += [*_over_modalities(same), *same]
    return records + _variety(subject) + _pairs(subject)


def _read(
    subject: Subject, dataset: Dataset, num: int, spaces: Mapping[str, Networks], decoded: bool = False
) -> dict[str, Features]:
    """Return the features of `num` samples of `dataset` by space and scope; `decoded`: encoded and decoded first."""
    rows = choose(dataset, num, subject.seed)

    def read(rows: np.ndarray) -> dict[tuple[str, str], Tensor]:
        batch = dataset.batch(rows)
        keys = [(int(row),) for row in rows]
        images = subject.model.decode(subject.model.encode(batch.x, batch.present), keys=keys) if decoded else batch.x
        features = {(space, n): of[n].features(images[n]) for space, of in spaces.items() for n in subject.names}
        return features | {("", name): batch.present[name] for name in subject.names}

    found = divide(pieces(rows, _CHUNK), read)
    sets = {space: {name: found[space, name] for name in subject.names} for space in ("", *spaces)}
    number = torch.from_numpy(np.unique(whose(dataset, rows), return_inverse=True)[1])
    present, sets[_WHOSE] = sets.pop(""), dict.fromkeys(subject.names, number[:, None])
    return {space: _scopes(features, present) for space, features in sets.items()}


def _scopes(features: Features, present: Mapping[str, Tensor] | None = None) -> Features:
    """Return the features of each modality, of the samples that have it, and side by side of those that have all."""
    if present is None:
        return features | {ALL: torch.cat(list(features.values()), dim=1)}
    whole = torch.stack(list(present.values())).all(0)
    return {name: z[present[name]] for name, z in features.items()} | {
        ALL: torch.cat([z[whole] for z in features.values()], dim=1)
    }


def _compare(
    subject: Subject, sets: Mapping[str, dict[str, Features]], space: str, kind: str, scope: str
) -> list[Record]:
    """Measure the set `kind` in one scope, beside real training samples as the ceiling; nothing of too few samples."""
    names = ("real", kind, "training")
    num = min(len(sets[which][space][scope]) for which in names)
    if num < LEAST:
        return []

    def some(z: Tensor) -> Tensor:
        return z[evenly(len(z), num)]

    (measure, what), (real, made, training) = _KINDS[kind], (some(sets[which][space][scope]) for which in names)
    groups = tuple(some(sets[which][_WHOSE][scope])[:, 0].numpy() for which in names[:2])
    figures, best = measure(real, made), measure(real, training)
    errors = jackknife_error(
        lambda real, made: np.array(list(measure(real, made).values())), (real, made), groups, _FEWEST, subject.seed
    )
    patients = len(np.unique(groups[0]))
    several = f" of {patients} patients" if patients < num else ""
    return [
        Record(
            f"fidelity/{space} {name}{' decoded' if kind == 'decoded' else ''}/{scope}",
            value,
            None if errors is None else float(errors[place]),
            patients,
            f"{_TEXTS[name][0]}: {num} {what} beside as many real test samples{several}, in the features '{space}',"
            f" {scope}; ceiling: real training samples.",
            _TEXTS[name][1],
            ceiling=best[name],
            seed=subject.seed,
        )
        for place, (name, value) in enumerate(figures.items())
    ]


def _over_modalities(found: list[Record]) -> list[Record]:
    """Return the mean of what was measured of each modality, all together apart, as a list of at most one."""
    each = [record for record in found if not record.name.endswith(f"/{ALL}")]
    if not each:
        return []
    fewest = min(each, key=lambda record: record.n)
    name, _, scope = fewest.name.rpartition("/")
    return [averaged(name, each, fewest.definition.replace(f"', {scope};", "', mean over modalities;"))]


def _variety(subject: Subject) -> list[Record]:
    """Measure how alike two random generated images are, beside two real ones."""
    rng, records = np.random.default_rng(subject.seed), []
    rows = choose(subject.data.test, 2 * _PAIRS, subject.seed)
    batch, groups = subject.data.test.batch(rows), whose(subject.data.test, rows)
    for name, x in subject.samples.x.items():
        real = batch.x[name][batch.present[name]]
        if not has_ssim(x) or min(len(x), len(real)) < LEAST:
            continue
        made, usual = _likeness(x, rng), _likeness(real, rng, groups[batch.present[name].numpy()])
        text = (
            f"Multi-scale structural similarity of {len(made)} random pairs of generated {name}; ceiling: of real test"
            " ones, of two patients where these are known; above it, samples are more alike than real images are, below"
            " it less."
        )
        records.append(
            Record.of(
                f"fidelity/ms-ssim of pairs/{name}",
                made,
                text,
                "nearer ceiling",
                ceiling=float(usual.mean()),
                seed=subject.seed,
                sd=deviation(made),
            )
        )
    return records


def _pairs(subject: Subject) -> list[Record]:
    """Measure how far the modalities of a generated tuple show the same places, beside those of a real one."""
    made = subject.samples.x
    num = min(_PAIRS, max(LEAST, _VALUES // max(x[0].numel() for x in made.values())))
    rows = choose(subject.data.test, num, subject.seed)
    batch, groups = subject.data.test.batch(rows), whose(subject.data.test, rows)
    found: dict[str, list[tuple[np.ndarray, float, float]]] = {name: [] for name in _OF_PAIRS}
    for a, b in combinations(made, 2):
        both = batch.present[a] & batch.present[b]
        if made[a].ndim < 3 or made[a].shape[2:] != made[b].shape[2:] or min(both.sum(), len(made[a])) < LEAST:
            continue
        one, other = batch.x[a][both], batch.x[b][both]
        strange = other[torch.from_numpy(donors(groups[both.numpy()], subject.seed))]
        for name, (measure, _) in _OF_PAIRS.items():
            values = measure(made[a][:num], made[b][:num])
            found[name].append((values, measure(one, other).mean(), measure(one, strange).mean()))
    records = []
    for name, of_pairs in found.items():
        if not of_pairs:
            continue
        values, real, chance = zip(*of_pairs, strict=True)
        text = (
            f"{_OF_PAIRS[name][1]} of two modalities of a generated tuple, mean over pairs; ceiling: of a real test"
            " tuple; chance: of two real test tuples."
        )
        records.append(
            Record.of(
                f"fidelity/pairs {name}",
                np.mean(values, 0),
                text,
                "nearer ceiling",
                chance=float(np.mean(chance)),
                ceiling=float(np.mean(real)),
                seed=subject.seed,
            )
        )
    return records


_OF_PAIRS = {
    "information": (mutual_information, "Normalised mutual information of the intensities"),
    "edges": (edge_overlap, "Correlation of the strength of edges"),
}


def _likeness(images: Tensor, rng: np.random.Generator, groups: np.ndarray | None = None) -> np.ndarray:
    """Return the likeness of disjoint random pairs of `images` `(B, C, *size)`.

    A pair is of two of `groups` `(B,)` (patients), if none has more than half of the images.
    """
    order = torch.from_numpy(shuffled(rng, len(images), groups)[: 2 * _PAIRS])
    half = len(order) // 2
    return ms_ssim(images[order[:half]], images[order[half : 2 * half]])
