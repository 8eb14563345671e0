"""Whether generated samples look like real ones and are as varied, in named spaces of features.

All sets have the same number of samples, for Fréchet distances fall as that grows: generated tuples, real training
samples (the ceiling: what another draw of real data scores), and the same training samples encoded and decoded (what
the decoder alone costs) are compared with test samples.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mandorla.data.dataset import Dataset
from mandorla.evaluate.distances import density_coverage, frechet_distance, kernel_distance, precision_recall
from mandorla.evaluate.features import Networks
from mandorla.evaluate.figures.subject import Subject
from mandorla.evaluate.gather import choose
from mandorla.evaluate.images import has_ssim, ms_ssim
from mandorla.evaluate.record import Record, averaged, bootstrap_error, standard_error
from mandorla.parallel import divide

ALL = "all together"  # modalities, their features side by side
_CHUNK = 250
_LEAST = 20  # samples of a set
_PAIRS = 200  # pairs of images whose likeness is taken for the variety of a set
_DRAWS = 10  # resamples for the error of a distance

Features = dict[str, Tensor]  # of each modality, and of all together, (N, F)
Measure = Callable[[Tensor, Tensor], np.ndarray | float]  # of real and made features: scores of samples, or a distance
_MEASURES: dict[str, tuple[Measure, str, Literal["higher", "lower"]]] = {
    "frechet": (frechet_distance, "Fréchet distance to real test samples", "lower"),
    "kernel": (kernel_distance, "Squared kernel distance (KID) to real test samples", "lower"),
    "precision": (
        lambda *sets: precision_recall(*sets)[0],
        "Share of samples near a real one (3 neighbours)",
        "higher",
    ),
    "recall": (lambda *sets: precision_recall(*sets)[1], "Share of real ones near a sample (3 neighbours)", "higher"),
    "density": (lambda *sets: density_coverage(*sets)[0], "Real neighbourhoods of 5 around a sample, over 5", "higher"),
    "coverage": (lambda *sets: density_coverage(*sets)[1], "Share of real neighbourhoods of 5 with a sample", "higher"),
}
_DECODED = ("frechet", "kernel")  # what is told of reconstructions too


def fidelity(real: np.ndarray | Tensor, made: np.ndarray | Tensor) -> dict[str, float]:
    """Return how features `made` `(N, F)` compare with `real` `(K, F)`, whoever read them off whatever images.

    By name: `frechet`, `kernel` (lower is better), `precision`, `recall`, `density`, `coverage` (higher is better); see
    `mandorla.evaluate.distances`. Raises MandorlaError for sets that cannot be compared.
    """
    return {name: float(np.mean(measure(real, made))) for name, (measure, *_) in _MEASURES.items()}


def fidelity_figures(subject: Subject) -> list[Record]:
    """Measure samples and reconstructions in every space, and how varied samples are."""
    settings, (spaces, _) = subject.settings, subject.spaces
    num = min(settings.num_generated, settings.num_test, settings.num_train)
    sets = {
        "real": _read(subject, subject.data.test, num, spaces),
        "made": {
            space: _scopes({n: of[n].features(x) for n, x in subject.samples.x.items()}) for space, of in spaces.items()
        },
        "training": _read(subject, subject.data.train, num, spaces),
        "decoded": _read(subject, subject.data.train, num, spaces, decoded=True),
    }
    records = []
    for space in spaces:
        for measure in _MEASURES:
            for kind in ("made", "decoded") if measure in _DECODED else ("made",):
                found = []
                for scope in (*subject.names, ALL):
                    features = [sets[which][space][scope] for which in ("real", kind, "training")]
                    if min(map(len, features)) >= _LEAST:
                        found.append(_compare(subject, space, measure, kind, scope, *features))
                records += [*_over_modalities(found), *found]
    return records + _variety(subject)


def _read(
    subject: Subject, dataset: Dataset, num: int, spaces: Mapping[str, Networks], decoded: bool = False
) -> dict[str, Features]:
    """Return the features of `num` samples of `dataset` by space and scope; `decoded`: encoded and decoded first."""
    rows = choose(dataset, num, subject.seed)

    def read(rows: np.ndarray) -> dict[tuple[str, str], Tensor]:
        batch = dataset.batch(rows)
        images = subject.model.decode(subject.model.encode(batch.x, batch.present)) if decoded else batch.x
        features = {(space, n): of[n].features(images[n]) for space, of in spaces.items() for n in subject.names}
        return features | {("", name): batch.present[name] for name in subject.names}

    found = divide([rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)], read)
    sets = {space: {name: found[space, name] for name in subject.names} for space in ("", *spaces)}
    return {space: _scopes(sets[space], sets[""]) for space in spaces}


def _scopes(features: Features, present: Mapping[str, Tensor] | None = None) -> Features:
    """Return the features of each modality, of the samples that have it, and side by side of those that have all."""
    if present is None:
        return features | {ALL: torch.cat(list(features.values()), dim=1)}
    whole = torch.stack(list(present.values())).all(0)
    return {name: z[present[name]] for name, z in features.items()} | {
        ALL: torch.cat([z[whole] for z in features.values()], dim=1)
    }


def _compare(
    subject: Subject, space: str, measure: str, kind: str, scope: str, real: Tensor, made: Tensor, training: Tensor
) -> Record:
    """Measure one set in one scope, beside real training samples as the ceiling."""
    num = min(len(real), len(made), len(training))
    function, text, better = _MEASURES[measure]
    real, made, training = real[:num], made[:num], training[:num]
    scores = function(real, made)
    if isinstance(scores, float):
        error = bootstrap_error(lambda rows: function(real, rows), (made,), subject.seed, _DRAWS)
    else:
        error = standard_error(scores)
    what = "reconstructions of training samples" if kind == "decoded" else "generated samples"
    return Record(
        f"fidelity/{space} {measure}{' decoded' if kind == 'decoded' else ''}/{scope}",
        float(np.mean(scores)),
        error,
        num,
        f"{text}, of {what}, in the features '{space}', {scope}; ceiling: real training samples.",
        better,
        ceiling=float(np.mean(function(real, training))),
        seed=subject.seed,
    )


def _over_modalities(found: list[Record]) -> list[Record]:
    """Return the mean of what was measured of each modality, all together apart, as a list of at most one."""
    each = [record for record in found if not record.name.endswith(f"/{ALL}")]
    if not each:
        return []
    first, scope = each[0], each[0].name.rsplit("/", 1)[1]
    text = first.definition.replace(f"', {scope};", "', mean over modalities;")
    return [averaged(first.name.rsplit("/", 1)[0], each, text)]


def _variety(subject: Subject) -> list[Record]:
    """Measure how alike two random generated images are, beside two real ones."""
    rng, records = np.random.default_rng(subject.seed), []
    batch = subject.data.test.batch(choose(subject.data.test, 2 * _PAIRS, subject.seed))
    for name, x in subject.samples.x.items():
        real = batch.x[name][batch.present[name]]
        if not has_ssim(x) or min(len(x), len(real)) < _LEAST:
            continue
        made, usual = (_likeness(images, rng) for images in (x, real))
        text = (
            f"Multi-scale structural similarity of {len(made)} random pairs of generated {name}; ceiling: of real test"
            " ones; above it, samples are more alike than real images are."
        )
        records.append(
            Record.of(
                f"fidelity/ms-ssim of pairs/{name}",
                made,
                text,
                "lower",
                ceiling=float(usual.mean()),
                seed=subject.seed,
                sd=float(made.std()),
            )
        )
    return records


def _likeness(images: Tensor, rng: np.random.Generator) -> np.ndarray:
    """Return the likeness of disjoint random pairs of `images` `(B, C, *size)`."""
    order = torch.from_numpy(rng.permutation(len(images))[: 2 * _PAIRS])
    half = len(order) // 2
    return ms_ssim(images[order[:half]], images[order[half : 2 * half]])
