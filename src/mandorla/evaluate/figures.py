"""The figures themselves: from codes, verdicts and generated images to records beside chance, ceiling and control.

Every function takes the `Subject`, or its `Codes` alone, and returns records; the first word of a record's name is the
section of the report that shows it. What the data cannot answer (no class label, no lesion) is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import permutations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from mandorla.data.dataset import Batch
from mandorla.evaluate.audit import Neighbours, flatten_tuples, nearest, suspicious
from mandorla.evaluate.coherence import (
    agreement,
    chance_agreement,
    conditional_coherence,
    histogram_distance,
    independent_views,
    judge_all,
    swapped,
)
from mandorla.evaluate.gather import Gathered
from mandorla.evaluate.images import foreground, mae, psnr, ssim
from mandorla.evaluate.judges import Judge
from mandorla.evaluate.lesions import contrast_share
from mandorla.evaluate.probes import Kind, auc, chance_share, features, hits, probe
from mandorla.evaluate.record import Record, bootstrap_error, standard_error
from mandorla.evaluate.settings import EvaluateConfig

if TYPE_CHECKING:
    from mandorla.model import Mandorla, Samples

Images = dict[str, Tensor]
Route = tuple[str, str]  # given, wanted
LIKENESS = {"psnr": (psnr, "dB", "higher"), "ssim": (ssim, "", "higher"), "mae": (mae, "", "lower")}


@dataclass(frozen=True)
class Codes:
    """Hold what is measured of codes: the model, its judges, the gathered training and test samples."""

    model: "Mandorla"
    settings: EvaluateConfig
    seed: int
    judges: Mapping[str, Judge]
    train: Gathered
    test: Gathered

    @property
    def names(self) -> list[str]:
        """Return the names of the modalities."""
        return [modality.name for modality in self.model.modalities]

    @property
    def views(self) -> list[str]:
        """Return the modalities whose class is judged: all of them or, where the data has no class, none."""
        return [name for name, judge in self.judges.items() if self.settings.label in judge.heads]

    def record(
        self,
        name: str,
        scores: np.ndarray,
        definition: str,
        better: Literal["higher", "lower"] = "higher",
        chance: float | None = None,
        ceiling: float | None = None,
        control: float | None = None,
        unit: str = "",
    ) -> Record:
        """Return the mean of `scores` `(N,)` and its standard error as a record."""
        value, error, seed = float(np.mean(scores)), standard_error(scores), self.seed
        return Record(name, value, error, len(scores), definition, better, chance, ceiling, control, unit, seed)

    def probed(self, kind: Kind, code: Tensor, factor: str, view: str, test: Tensor) -> np.ndarray:
        """Return the class probabilities of a probe of `factor`, on the test samples that have `view`, `(B, classes)`.

        `code` are the training samples' codes, `test` the test samples'.
        """
        rows, test_rows = self.train.present[view], self.test.present[view]
        labels = self.train.factors[factor][rows]
        return probe(kind, features(code)[rows], labels, features(test)[test_rows], self.seed)

    def truth(self, factor: str, view: str) -> np.ndarray:
        """Return the true `factor` of the test samples that have `view`."""
        return self.test.factors[factor][self.test.present[view]]

    def read_off(self, kind: Kind, code: Tensor, factor: str, view: str, test: Tensor) -> np.ndarray:
        """Return where a probe is right about `factor`; arguments as of `probed`."""
        guess = self.probed(kind, code, factor, view, test)
        return hits(guess, self.truth(factor, view), self.train.factors[factor][self.train.present[view]])

    def chance(self, factor: str) -> float:
        """Return the accuracy of the best constant answer."""
        return chance_share(self.train.factors[factor], self.test.factors[factor])

    def judged(self, factor: str, view: str) -> np.ndarray:
        """Return where the judge of `view` is right about `factor` on real test images: the ceiling."""
        rows = self.test.present[view]
        return self.test.verdicts[view][factor][rows].argmax(1) == self.test.factors[factor][rows]


@dataclass(frozen=True)
class Subject(Codes):
    """Hold what is measured, and what the model generated.

    `translated` are test samples with `translations[given][wanted]` `(K, B, C, *size)` and their `reconstructions`.
    """

    samples: "Samples"
    translated: Batch
    translations: dict[str, Images]
    reconstructions: Images


def over_views(record_of: dict[str, np.ndarray]) -> np.ndarray:
    """Return the scores averaged over views, per sample where all views have all samples."""
    scores = list(record_of.values())
    if len({len(score) for score in scores}) == 1:
        return np.mean(scores, axis=0)
    return np.concatenate(scores)


def class_figures(subject: Codes) -> list[Record]:
    """Measure what the shared and private parts know of the class and of the private factor."""
    s, views, train, test = subject, subject.views, subject.train, subject.test
    if not views:
        return []
    label, chance = s.settings.label, s.chance(s.settings.label)
    judged = {view: s.judged(label, view) for view in views}
    ceiling = float(np.mean(over_views(judged)))
    records = [
        s.record(
            "ceiling/class",
            over_views(judged),
            f"Accuracy of '{label}' by a supervised classifier per view on real test images, mean over views.",
            chance=chance,
        )
    ]
    shared = {v: s.read_off("linear", train.alone[v], label, v, test.alone[v]) for v in views}
    linear, mlp = (
        {v: s.read_off(kind, train.latents.private[v], label, v, test.latents.private[v]) for v in views}
        for kind in ("linear", "mlp")
    )
    probes = {
        "shared/class": (shared, "Logistic regression of '{}' on the shared part read from one view alone", "higher"),
        "private/class linear": (linear, "Leak: logistic regression of '{}' on the private part", "lower"),
        "private/class mlp": (mlp, "Leak: a probe with 256 hidden units for '{}' on the private part", "lower"),
    }
    for name, (scores, text, better) in probes.items():
        reference = {"chance": chance, "ceiling": ceiling, "better": better}
        text = text.format(label)
        records.append(s.record(name, over_views(scores), f"{text}, mean over views.", **reference))
        for view, right in scores.items():
            reference["ceiling"] = float(judged[view].mean())
            records.append(s.record(f"{name}/{view}", right, f"{text}, {view}.", **reference))
    if all(present.all() for part in (train, test) for present in part.present.values()):
        votes = sum(np.log(test.verdicts[view][label] + 1e-9) for view in views).argmax(1) == test.factors[label]
        right = s.read_off("linear", train.latents.shared, label, views[0], test.latents.shared)
        text = f"Logistic regression of '{label}' on the shared part read from all views; ceiling: all judges together."
        records.append(s.record("shared/class/all", right, text, chance=chance, ceiling=float(votes.mean())))
    reference = {"chance": chance, "ceiling": ceiling}
    return records + _residual_figures(subject, reference) + _private_factor_figures(subject)


def _residual_figures(subject: Codes, reference: dict[str, float]) -> list[Record]:
    """Measure what the residual private parts know of the class, beside the private parts of the same few samples."""
    s, num = subject, subject.settings.num_residual
    if not num or s.model.recipe.diffusion.mode == "private":
        return []
    few = replace(s, train=s.train.thinned(num), test=s.test.thinned(num))
    plain = few.train.latents, few.test.latents
    codes = {"plain": plain, "residual": [s.model.to_residual(latents) for latents in plain]}
    records = []
    for kind, text in (("linear", "logistic regression"), ("mlp", "a probe with 256 hidden units")):
        scores = {
            name: over_views({v: few.read_off(kind, a.private[v], s.settings.label, v, b.private[v]) for v in s.views})
            for name, (a, b) in codes.items()
        }
        text = (
            f"Leak: {text} of '{s.settings.label}' on the residual private part, fitted on {len(plain[0])} samples,"
            " mean over views; control: the private part itself, on the same samples."
        )
        control = float(scores["plain"].mean())
        records.append(
            s.record(f"private/residual/class {kind}", scores["residual"], text, "lower", control=control, **reference)
        )
    return records


def _private_factor_figures(subject: Codes) -> list[Record]:
    s, kind = subject, subject.settings.private_label
    factors = {view: f"{kind}_{view}" for view in s.views if f"{kind}_{view}" in s.judges[view].heads}
    if not factors:
        return []
    reference = {
        "chance": float(np.mean([s.chance(factor) for factor in factors.values()])),
        "ceiling": float(np.mean([s.judged(factor, view).mean() for view, factor in factors.items()])),
    }
    private = {
        v: s.read_off("linear", s.train.latents.private[v], f, v, s.test.latents.private[v]) for v, f in factors.items()
    }
    shared = {v: s.read_off("linear", s.train.alone[v], f, v, s.test.alone[v]) for v, f in factors.items()}
    text = f"ogistic regression of each view's own '{kind}' on its"
    return [
        s.record(f"private/{kind}", over_views(private), f"L{text} private part, mean over views.", **reference),
        s.record(
            f"shared/{kind}",
            over_views(shared),
            f"Leak: l{text} shared part, mean over views.",
            better="lower",
            **reference,
        ),
    ]


def coherence_figures(subject: Subject) -> list[Record]:
    """Measure whether generated views belong together: given one view, after a swap, and out of nothing."""
    s, views, label = subject, subject.views, subject.settings.label
    if not views:
        return []
    judges = {view: s.judges[view] for view in views}
    ceiling = float(np.mean(over_views({view: s.judged(label, view) for view in views})))
    reference = {"chance": s.chance(label), "ceiling": ceiling}
    rows = np.flatnonzero(np.all(list(s.test.present.values()), axis=0))[: s.settings.num_generated]
    truth = s.test.factors[label][rows]
    alone = {view: s.test.alone[view][rows] for view in views}
    own, cross = conditional_coherence(s.model, judges, label, alone, truth, s.seed)
    latents = s.test.latents[rows]
    swaps, donor = swapped(s.model, latents, s.seed)
    swapped_classes = judge_all(judges, swaps, label)
    kept = (swapped_classes == truth).mean(0)
    real = np.stack([s.test.verdicts[view][label][rows].argmax(1) for view in judges])
    drawn = "with its private part drawn from p(private | shared), is judged to show the source's class"
    records = [
        s.record(
            "coherence/self", own, f"Share in which a view, decoded from its own shared part {drawn}.", **reference
        ),
        s.record(
            "coherence/cross",
            cross,
            f"Share in which a view, decoded from another view's shared part {drawn}.",
            **reference,
        ),
        s.record(
            "swap/class",
            kept,
            "Share in which a view, decoded with the private part of another sample, keeps its class, mean over views.",
            **reference,
        ),
        s.record(
            "swap/agreement",
            agreement(swapped_classes),
            "Share of such swapped tuples in which the judges of all views name one class; ceiling: real test tuples.",
            chance=chance_agreement(truth, len(judges)),
            ceiling=float(agreement(real).mean()),
        ),
    ]
    few = min(s.settings.num_residual, len(rows))
    if few and s.model.recipe.diffusion.mode != "private":
        swaps_of_residual, _ = swapped(s.model, latents[:few], s.seed, residual=True)
        records.append(
            s.record(
                "swap/class residual",
                (judge_all(judges, swaps_of_residual, label) == truth[:few]).mean(0),
                "As swap/class, with the residual private part of the other sample: its manner under this shared part.",
                **reference,
            )
        )
    kind = s.settings.private_label
    if all(f"{kind}_{view}" in s.judges[view].heads for view in views):
        factors = {view: f"{kind}_{view}" for view in views}
        moved = [s.judges[v].classes(swaps[v], f) == s.test.factors[f][rows][donor] for v, f in factors.items()]
        records.append(
            s.record(
                f"swap/{kind}",
                np.mean(moved, axis=0),
                f"Share in which a view, decoded with the private part of another sample, takes over its '{kind}'.",
                chance=float(np.mean([s.chance(factor) for factor in factors.values()])),
                ceiling=float(np.mean([s.judged(factor, view).mean() for view, factor in factors.items()])),
            )
        )
    return records + _joint_figures(subject, judges, truth, real)


def _joint_figures(subject: Subject, judges: dict[str, Judge], truth: np.ndarray, real: np.ndarray) -> list[Record]:
    s, label, kind = subject, subject.settings.label, subject.settings.private_label
    classes = judge_all(judges, s.samples.x, label)
    mixed = judge_all(judges, independent_views(s.model, s.samples.latents, s.seed), label)
    records = [
        s.record(
            "joint/agreement",
            agreement(classes),
            "Share of jointly generated tuples in which the judges of all views name one class; control: every view"
            " decoded with the shared part of another tuple; ceiling: real test tuples.",
            chance=chance_agreement(truth, len(judges)),
            ceiling=float(agreement(real).mean()),
            control=float(agreement(mixed).mean()),
        )
    ]
    factors = {"class": {view: label for view in judges}}
    if all(f"{kind}_{view}" in judge.heads for view, judge in judges.items()):
        factors[kind] = {view: f"{kind}_{view}" for view in judges}
    for name, of_view in factors.items():
        records.append(_histogram_figure(subject, name, of_view))
    return records


def _histogram_figure(subject: Subject, name: str, factor_of: dict[str, str]) -> Record:
    """Compare how often each class of a factor is generated with how often it is real, mean over views."""
    s = subject
    rng = np.random.default_rng(s.seed)
    distances, errors, floors = [], [], []
    for view, factor in factor_of.items():
        num = s.judges[view].heads[factor].out_features
        seen = s.test.verdicts[view][factor][s.test.present[view]].argmax(1)
        made = s.judges[view].classes(s.samples.x[view], factor)
        distances.append(histogram_distance(made, seen, num))
        errors.append(bootstrap_error(lambda a, b=seen, n=num: histogram_distance(a, b, n), (made,), s.seed))
        floors += [histogram_distance(rng.choice(seen, size=len(made)), seen, num) for _ in range(20)]
    return Record(
        f"joint/{name} histogram",
        float(np.mean(distances)),
        float(np.mean(errors)),
        len(made),
        f"Total variation between the {name} shares of generated and real images as judged, mean over views; ceiling:"
        " as many real images drawn anew.",
        "lower",
        ceiling=float(np.mean(floors)),
        seed=s.seed,
    )


def routes(settings: EvaluateConfig, names: list[str]) -> list[Route]:
    """Return the translations to measure: those asked for or all ordered pairs."""
    return list(settings.routes or permutations(names, 2))


def translation_figures(subject: Subject) -> list[Record]:
    """Measure the likeness of translations to the truth, beside the mean image, the input and the reconstruction."""
    s, x = subject, subject.translated.x
    records: list[Record] = []
    scores: dict[str, list[np.ndarray]] = {}
    for given, wanted in routes(s.settings, s.names):
        both = s.translated.present[given] & s.translated.present[wanted]
        if not both.any():
            continue
        samples = s.translations[given][wanted][:, both]
        truth, copy = x[wanted][both], x[given][both]
        images = {"mean": samples.mean(0), "single": samples[0]}
        baselines = {"chance": s.train.means[wanted].expand_as(truth), "ceiling": s.reconstructions[wanted][both]}
        if copy.shape == truth.shape:
            baselines["control"] = copy
        group = s.translated.factors.get("group", np.arange(len(both)))[both.numpy()]
        route = f"translation/{given} to {wanted}"
        for name, (measure, unit, better) in LIKENESS.items():
            if name == "ssim" and (truth.ndim not in (4, 5) or min(truth.shape[2:]) < 11):
                continue
            reference = {key: float(_by_group(measure(b, truth), group).mean()) for key, b in baselines.items()}
            for kind, image in images.items():
                values = _by_group(measure(image, truth), group)
                scores.setdefault(f"{name} {kind}", []).append(values)
                text = f"{name.upper()} of {_described(kind, len(samples))} {_ROUTE}"
                records.append(s.record(f"{route}/{name} {kind}", values, text, unit=unit, better=better, **reference))
        mask = foreground(truth)
        values, *others = (_by_group(psnr(b, truth, mask), group) for b in (images["mean"], *baselines.values()))
        reference = {key: float(other.mean()) for key, other in zip(baselines, others, strict=True)}
        text = f"PSNR of {_described('mean', len(samples))} where the truth is above .05, {_ROUTE}"
        records.append(s.record(f"{route}/psnr mean foreground", values, text, unit="dB", **reference))
        if f"clean_{wanted}" in s.translated.factors:
            clean = torch.as_tensor(s.translated.factors[f"clean_{wanted}"])[both]
            reference = {"chance": float(psnr(s.train.means[f"clean_{wanted}"].expand_as(clean), clean).mean())}
            if copy.shape == truth.shape:
                reference["control"] = float(psnr(copy, clean).mean())
            values = psnr(images["mean"], clean)
            text = (
                f"PSNR of {_described('mean', len(samples))} against the shared anatomy rendered without the private"
                " parts; chance: the mean of these over the training set; control: copying the input."
            )
            records.append(s.record(f"{route}/anatomy psnr", values, text, unit="dB", **reference))
    return [*_overall(subject, records), *records, *_reconstruction_figures(subject)]


_ROUTE = "against the truth; chance: the mean training image; control: copying the input; ceiling: the reconstruction."


def _described(kind: str, num: int) -> str:
    return f"the mean of {num} samples" if kind == "mean" else "a single sample"


def _by_group(scores: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return the mean score of each group (patient): samples of one patient are not independent."""
    _, index = np.unique(group, return_inverse=True)
    return np.bincount(index, scores) / np.bincount(index)


def _overall(subject: Subject, records: list[Record]) -> list[Record]:
    """Return the mean over routes of every figure that all routes have."""
    by_kind: dict[str, list[Record]] = {}
    for record in records:
        by_kind.setdefault(record.name.rsplit("/", 1)[1], []).append(record)
    num_routes = max((len(of_kind) for of_kind in by_kind.values()), default=0)
    overall = []
    for kind, of_kind in by_kind.items():
        if len(of_kind) == num_routes > 1:
            reference = {}
            for key in ("chance", "ceiling", "control"):
                values = [getattr(record, key) for record in of_kind]
                reference[key] = None if None in values else float(np.mean(values))
            first = of_kind[0]
            overall.append(
                Record(
                    f"translation/{kind}",
                    float(np.mean([record.value for record in of_kind])),
                    float(np.mean([record.error for record in of_kind])),
                    first.n,
                    f"Mean over all {num_routes} routes. {first.definition}",
                    better=first.better,
                    unit=first.unit,
                    seed=subject.seed,
                    **reference,
                )
            )
    return overall


def _reconstruction_figures(subject: Subject) -> list[Record]:
    s, records = subject, []
    for name, image in s.reconstructions.items():
        rows = s.translated.present[name]
        truth = s.translated.x[name][rows]
        chance = float(psnr(s.train.means[name].expand_as(truth), truth).mean())
        text = "PSNR of the reconstruction from the shared part of all views and the own private part; chance: the mean"
        records.append(
            s.record(
                f"reconstruction/{name}", psnr(image[rows], truth), f"{text} training image.", unit="dB", chance=chance
            )
        )
    return records


def lesion_figures(subject: Subject) -> list[Record]:
    """Measure whether a lesion that one modality shows stays in its private part, unknown to the other modalities."""
    s, factor, shown = subject, subject.settings.lesion, subject.settings.lesion_modality
    if shown not in s.judges or factor not in s.judges[shown].heads:
        return []
    truth = s.truth(factor, shown)
    seen = auc(s.test.verdicts[shown][factor][s.test.present[shown]][:, 1], truth)
    others = [name for name in s.names if name != shown]
    records = []

    def add(name: str, scores: np.ndarray, truth: np.ndarray, definition: str, **reference: Any) -> None:
        error = bootstrap_error(auc, (scores, truth), s.seed)
        reference |= {"chance": 0.5, "ceiling": seen, "seed": s.seed}
        text = f"{definition} (area under the ROC curve); ceiling: a supervised classifier on real {shown}."
        records.append(Record(name, auc(scores, truth), error, len(truth), text, **reference))

    for name in others:
        scores = s.probed("linear", s.train.alone[name], factor, name, s.test.alone[name])[:, 1]
        blind = auc(s.test.verdicts[name][factor][s.test.present[name]][:, 1], s.truth(factor, name))
        text = f"Logistic regression of the lesion on the shared part of {name}; control: a classifier on real {name}"
        add(f"lesion/known from {name}", scores, s.truth(factor, name), text, better="lower", control=blind)
    scores = s.probed("linear", s.train.latents.private[shown], factor, shown, s.test.latents.private[shown])[:, 1]
    add(
        f"lesion/known from private {shown}",
        scores,
        truth,
        f"Logistic regression of the lesion on {shown}'s private part",
    )

    batch, judge = s.translated, s.judges[shown]
    for name in others:
        rows = (batch.present[name] & batch.present[shown]).numpy()
        made = s.translations[name][shown][:, rows]
        scores = np.stack([judge.probabilities(x, factor)[:, 1] for x in made])
        present = batch.factors[factor][rows]
        text = f"Lesion seen by the judge in a {shown} generated from {name}, against the {shown} that belongs to it"
        add(f"lesion/foretold from {name}", scores.mean(0), present, text, better="lower")
        real = judge.probabilities(batch.x[shown][rows], factor)[:, 1] > 0.5
        records.append(
            s.record(
                f"lesion/rate from {name}",
                (scores > 0.5).mean(0),
                f"Share of {shown} images generated from {name} that show a lesion to the judge; ceiling: real ones.",
                ceiling=float(real.mean()),
            )
        )
    if "lesion_mask" in batch.factors and len(batch.x[shown][0]) == 1:
        rows = batch.present[shown].numpy()
        x, mask = batch.x[shown][rows], batch.factors["lesion_mask"][rows]
        healthy = s.train.means[shown].expand_as(x)
        if f"clean_{shown}" in batch.factors:
            healthy = torch.as_tensor(batch.factors[f"clean_{shown}"])[rows]
        text = (
            f"Contrast of the lesion in the reconstructed {shown}, as a share of the real one; chance: the same place"
            " without a lesion (of the mean image, where the data does not tell)."
        )
        share, chance = (contrast_share(image, x, mask) for image in (s.reconstructions[shown][rows], healthy))
        records.append(s.record("lesion/contrast kept", share, text, chance=float(chance.mean()), ceiling=1.0))
    return records


def copy_figures(subject: Subject) -> tuple[list[Record], Neighbours]:
    """Measure whether generated tuples are copies of training tuples; return also their nearest ones."""
    s, num = subject, subject.settings.num_generated
    found, real = (nearest(v, s.train.vectors) for v in (flatten_tuples(s.samples.x), s.test.vectors[:num]))
    texts = {
        "distance": "whose distance to the nearest training tuple",
        "ratio": "whose distance to the nearest training tuple, divided by that to the next ten,",
    }
    return [
        s.record(
            f"copies/{name}",
            suspicious(getattr(found, name), getattr(real, name)),
            f"Share of generated tuples {text} is below the first percentile of real test ones; ceiling: that share.",
            better="lower",
            ceiling=0.01,
        )
        for name, text in texts.items()
    ], found
