"""Whether generated views belong together: given some views, after a swap, and out of nothing."""

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from mandorla.data.dataset import evenly
from mandorla.evaluate.coherence import (
    agreement,
    chance_agreement,
    coherence_from,
    conditional_coherence,
    dependence,
    histogram_distance,
    judge_all,
    judge_decoded,
    judge_independent,
    swapped,
)
from mandorla.evaluate.figures.subject import Subject
from mandorla.evaluate.judges import Judge
from mandorla.evaluate.priors import PRIORS
from mandorla.evaluate.record import Record, bootstrap_error
from mandorla.latents import SHARED, Latents, to_sphere


def judged_rows(subject: Subject) -> np.ndarray:
    """Return the places of the test samples that views are generated of: those that lack no view and no class."""
    s = subject.codes
    rows = s.labelled(s.settings.label, *s.private_factors.values()) if s.views else np.empty(0, int)
    return rows[evenly(len(rows), s.settings.num_generated)]


def coherence_figures(subject: Subject) -> list[Record]:
    """Measure whether generated views belong together: given one view or more, after a swap, and out of nothing."""
    s, label, rows = subject.codes, subject.settings.label, judged_rows(subject)
    if len(rows) < 2:
        return []
    judges = {view: s.judges[view] for view in s.views}
    truth = s.test.factors[label][rows]
    real = np.stack([s.test.verdicts[view][label][rows].argmax(1) for view in judges])
    of_tuples = {"chance": chance_agreement(truth, len(judges)), "ceiling": float(agreement(real).mean())}
    return [
        *_from_one(subject, judges, rows),
        *_by_number(subject, judges, rows),
        *_swap_figures(subject, judges, rows, of_tuples),
        *_joint_figures(subject, judges, of_tuples),
        *_prior_figures(subject, judges, of_tuples),
    ]


def _from_one(subject: Subject, judges: dict[str, Judge], rows: np.ndarray) -> list[Record]:
    """Measure coherence given one view: of itself, and of the others."""
    s, label = subject.codes, subject.settings.label
    alone = {view: s.test.alone[view][rows] for view in judges}
    own, cross = conditional_coherence(s.model, judges, label, alone, s.test.factors[label][rows], s.seed)
    text = "Share in which a view, decoded from {} with its private part drawn from p(private | shared), is judged to"
    text += " show the source's class{}."
    asked = {
        "coherence/self": (own.mean(0), "its own shared part", ""),
        "coherence/cross": (cross.mean(0), "another view's shared part", ""),
    }
    for view, of_view in zip(judges, cross, strict=True):
        source = f"the shared part of {view}"
        asked[f"coherence/cross from {view} alone"] = of_view, source, ", mean over all others"
    reference = {**s.reference, "groups": s.whose()[rows]}
    return [
        s.record(name, scores, text.format(source, mean), **reference) for name, (scores, source, mean) in asked.items()
    ]


def _by_number(subject: Subject, judges: dict[str, Judge], rows: np.ndarray) -> list[Record]:
    """Measure coherence from two views upward: of views that are not given, and from all views of each."""
    s, label = subject.codes, subject.settings.label
    reference = {**s.reference, "groups": s.whose()[rows]}
    batch = subject.data.test.batch(s.test.indices[rows])
    truth = s.test.factors[label][rows]
    records = []
    for num in range(2, len(judges) + 1):
        scores = coherence_from(s.model, judges, label, batch.x, truth, num, s.seed)
        told = ("cross", "a view that is not given", f"{num} random views")
        kind, whose, given = told if num < len(judges) else ("self", "each view", f"all {num} views")
        text = (
            f"Share in which {whose}, decoded from the shared part of {given} with its private part drawn from"
            " p(private | shared), is judged to show the source's class."
        )
        records.append(s.record(f"coherence/{kind} from {num}", scores, text, **reference))
    return records


def _swap_figures(
    subject: Subject, judges: dict[str, Judge], rows: np.ndarray, of_tuples: dict[str, float]
) -> list[Record]:
    """Measure what a view shows that is decoded with the private part of another sample, or with its residual."""
    s, label, kind = subject.codes, subject.settings.label, subject.settings.private_label
    groups, truth, latents = s.whose()[rows], s.test.factors[label][rows], s.test.latents[rows]
    swaps, donor = swapped(s.model, latents, groups, s.seed)
    classes = judge_decoded(s.model, judges, swaps, label)
    records = [
        s.record(
            "swap/class",
            (classes == truth).mean(0),
            "Share in which a view, decoded with the private part of another sample, keeps its class, mean over views.",
            **s.reference,
            groups=groups,
        ),
        s.record(
            "swap/agreement",
            agreement(classes),
            "Share of such swapped tuples in which the judges of all views name one class; ceiling: real test tuples.",
            **of_tuples,
            groups=groups,
        ),
    ]
    few = evenly(len(rows), s.settings.num_residual)
    if len(few) and s.model.recipe.diffusion.mode != "private":
        swaps_of_residual, _ = swapped(s.model, latents[few], groups[few], s.seed, residual=True)
        records.append(
            s.record(
                "swap/class residual",
                (judge_decoded(s.model, judges, swaps_of_residual, label) == truth[few]).mean(0),
                "As swap/class, with the residual private part of the other sample: its manner under this shared part.",
                **s.reference,
                groups=groups[few],
            )
        )
    if factors := s.private_factors:
        moved = [
            judge_decoded(s.model, {view: judges[view]}, swaps, factor)[0] == s.test.factors[factor][rows][donor]
            for view, factor in factors.items()
        ]
        records.append(
            s.record(
                f"swap/{kind}",
                np.mean(moved, axis=0),
                f"Share in which a view, decoded with the private part of another sample, takes over its '{kind}'.",
                **s.private_reference,
                groups=groups,
            )
        )
    return records


def _joint_figures(subject: Subject, judges: dict[str, Judge], of_tuples: dict[str, float]) -> list[Record]:
    s, label, kind = subject.codes, subject.settings.label, subject.settings.private_label
    made = subject.samples
    classes = judge_all(judges, made.x, label)
    mixed = judge_independent(s.model, judges, made.latents, label, s.seed)
    records = [
        s.record(
            "joint/agreement",
            agreement(classes),
            "Share of jointly generated tuples in which the judges of all views name one class; control: every view"
            " decoded with the shared part of another tuple; ceiling: real test tuples.",
            **of_tuples,
            control=float(agreement(mixed).mean()),
        )
    ]
    factors = {"class": (dict.fromkeys(judges, label), dict(zip(judges, classes, strict=True)))}
    if shown := {view: judges[view].classes(made.x[view], factor) for view, factor in s.private_factors.items()}:
        factors[kind] = s.private_factors, shown
    if len(shown) > 1:
        records.append(_dependence_figure(subject, shown))
    return records + [_histogram_figure(subject, name, *of) for name, of in factors.items()]


def _prior_figures(subject: Subject, judges: dict[str, Judge], of_tuples: dict[str, float]) -> list[Record]:
    """Measure the agreement of tuples from simpler priors on the same latents: what stage 2 is worth."""
    s = subject.codes
    rows = np.flatnonzero(np.all(list(s.train.present.values()), axis=0))
    if len(rows) < 2:
        return []
    records = []
    for name, draw in PRIORS.items():
        drawn = draw(s.train.latents[rows].components, s.settings.num_generated, s.seed)
        latents = Latents.of(drawn | {SHARED: to_sphere(drawn[SHARED])})
        records.append(
            s.record(
                f"joint/agreement {name}",
                agreement(judge_decoded(s.model, judges, latents, s.settings.label)),
                f"As joint/agreement, of latents drawn {_PRIORS[name]} in place of stage 2 (means of posteriors).",
                **of_tuples,
            )
        )
    return records


_PRIORS = {
    "gaussian": "from one Gaussian over all latents",
    "mixture": "from a mixture of Gaussians over all latents, fitted afterwards,",
    "independent": "as shared and private parts of different training samples",
}


def _histogram_figure(
    subject: Subject, name: str, factor_of: Mapping[str, str], shown: Mapping[str, np.ndarray]
) -> Record:
    """Compare how often a factor's classes are `shown` by generated views and by real ones, mean over views."""
    s = subject.codes
    rng = np.random.default_rng(s.seed)
    distances, errors, floors = [], [], []
    for view, factor in factor_of.items():
        num = s.judges[view].heads[factor].out_features
        seen = s.test.verdicts[view][factor][s.test.present[view]].argmax(1)
        made = shown[view]
        distances.append(histogram_distance(made, seen, num))
        errors.append(bootstrap_error(lambda a, b=seen, n=num: histogram_distance(a, b, n), (made,), s.seed))
        anew = [(rng.choice(seen, size=len(made)), rng.choice(seen, size=len(seen))) for _ in range(20)]
        floors += [histogram_distance(*pair, num) for pair in anew]
    return Record(
        f"joint/{name} histogram",
        float(np.mean(distances)),
        None if None in errors else float(np.mean(errors)),
        len(made),
        f"Total variation between the {name} shares of generated and real images as judged, mean over views; ceiling:"
        " as many real images in the place of both, drawn anew.",
        "lower",
        ceiling=float(np.mean(floors)),
        seed=s.seed,
    )


def _dependence_figure(subject: Subject, shown: Mapping[str, np.ndarray]) -> Record:
    """Measure how far the private factors `shown` by two generated views depend on each other, mean over pairs."""
    s = subject.codes
    nums = {view: s.judges[view].heads[factor].out_features for view, factor in s.private_factors.items()}
    pairs, rng = list(combinations(shown, 2)), np.random.default_rng(s.seed)

    def mean_of(labels: Mapping[str, np.ndarray]) -> float:
        return float(np.mean([dependence(labels[a], labels[b], nums[a], nums[b]) for a, b in pairs]))

    alone = [mean_of({view: rng.permutation(of_view) for view, of_view in shown.items()}) for _ in range(20)]
    num = len(subject.samples.latents)
    return Record(
        f"joint/{subject.settings.private_label} dependence",
        mean_of(shown),
        bootstrap_error(lambda *of: mean_of(dict(zip(shown, of, strict=True))), tuple(shown.values()), s.seed),
        num,
        "Total variation between how often two views of a generated tuple show two private factors together, and how"
        " often they would if they knew nothing of each other, mean over pairs of views; ceiling: views of different"
        " tuples.",
        "lower",
        ceiling=float(np.mean(alone)),
        seed=s.seed,
    )
