"""Whether a lesion that one modality shows stays in its private part, unknown to the other modalities."""

import numpy as np
import torch

from mandorla.errors import MandorlaError
from mandorla.evaluate.figures.subject import Codes, Subject
from mandorla.evaluate.lesions import contrast, contrast_share
from mandorla.evaluate.probes import auc
from mandorla.evaluate.record import Better, Record, bootstrap_error
from mandorla.evaluate.segmenter import MASK, dice, train_segmenter


def lesion_figures(subject: Subject) -> list[Record]:
    """Measure whether a lesion that one modality shows stays in its private part, unknown to the other modalities."""
    s, factor, shown = subject.codes, subject.settings.lesion, subject.settings.lesion_modality
    if shown not in s.judges or factor not in s.judges[shown].heads:
        return []
    told = [np.unique(s.train.factors[factor][s.train.known(factor, name)]) for name in s.names]
    if min(map(len, told)) < 2 or not all(name in s.judges and factor in s.judges[name].heads for name in s.names):
        return _kept_figures(subject)  # all have a lesion, or none: there is nothing to tell apart
    foretold = _foretold_figures(subject) if s.model.draws else []
    return [*_known_figures(s), *foretold, *_kept_figures(subject)]


def _known_figures(s: Codes) -> list[Record]:
    """Measure what the shared parts of the others, and the private part of the one, know of the lesion."""
    factor, shown, records = s.settings.lesion, s.settings.lesion_modality, []
    for name in (name for name in s.names if name != shown):
        scores = s.probed("linear", s.train.alone[name], factor, name, s.test.alone[name])[:, 1]
        blind = auc(s.test.verdicts[name][factor][s.test.known(factor, name)][:, 1], s.truth(factor, name))
        text = f"Logistic regression of the lesion on the shared part of {name}; control: a classifier on real {name}"
        known = s.truth(factor, name), s.whose(name, factor)
        records.append(_of_auc(s, f"lesion/known from {name}", scores, *known, text, "lower", blind))
    scores = s.probed("linear", s.train.latents.private[shown], factor, shown, s.test.latents.private[shown])[:, 1]
    text = f"Logistic regression of the lesion on {shown}'s private part"
    known = s.truth(factor, shown), s.whose(shown, factor)
    return [*records, _of_auc(s, f"lesion/known from private {shown}", scores, *known, text)]


def _foretold_figures(subject: Subject) -> list[Record]:
    """Measure what translations from the others show of the lesion."""
    s, batch, factor, shown = (
        subject.codes,
        subject.translated,
        subject.settings.lesion,
        subject.settings.lesion_modality,
    )
    judge, records = s.judges[shown], []
    for name in (name for name in s.names if name != shown and (name, shown) in subject.routes):
        rows = (batch.present[name] & batch.present[shown]).numpy() & (batch.factors[factor] >= 0)
        if not rows.any():
            continue
        made = subject.translations[name][shown][:, rows]
        scores = np.stack([judge.probabilities(x, factor)[:, 1] for x in made])
        present, groups = batch.factors[factor][rows], batch.whose[rows]
        text = f"Lesion seen by the judge in a {shown} generated from {name}, against the {shown} that belongs to it"
        records.append(_of_auc(s, f"lesion/foretold from {name}", scores.mean(0), present, groups, text, "lower"))
        real = judge.probabilities(batch.x[shown][rows], factor)[:, 1] > 0.5
        records.append(
            s.record(
                f"lesion/rate from {name}",
                (scores > 0.5).mean(0),
                f"Share of {shown} images generated from {name} that show a lesion to the judge; ceiling: real ones.",
                "nearer ceiling",
                ceiling=float(real.mean()),
                groups=groups,
            )
        )
    return records


def _of_auc(
    s: Codes,
    name: str,
    scores: np.ndarray,
    truth: np.ndarray,
    groups: np.ndarray,
    text: str,
    better: Better = "higher",
    control: float | None = None,
) -> Record:
    """Return how well `scores` `(N,)` tell who has the lesion, beside a classifier on images that show it."""
    factor, shown = s.settings.lesion, s.settings.lesion_modality
    seen = auc(s.test.verdicts[shown][factor][s.test.known(factor, shown)][:, 1], s.truth(factor, shown))
    error = bootstrap_error(auc, (scores, truth), s.seed, groups=groups)
    text = f"{text} (area under the ROC curve); ceiling: a supervised classifier on real {shown}."
    beside = {"chance": 0.5, "ceiling": seen, "control": control, "seed": s.seed}
    return Record(name, auc(scores, truth), error, len(np.unique(groups)), text, better, **beside)


def _kept_figures(subject: Subject) -> list[Record]:
    """Measure how much of a lesion reconstructions keep; nothing without a mask, or for images of several channels.

    Raises MandorlaError where masks do not have the size of the images.
    """
    s, batch, shown = subject.codes, subject.translated, subject.settings.lesion_modality
    if MASK not in batch.factors or len(batch.x[shown][0]) != 1:
        return []
    rows = batch.present[shown].numpy()
    if not rows.any():
        return []
    x, mask = batch.x[shown][rows], batch.factors[MASK][rows]
    if mask.shape[1:] != x.shape[2:]:
        raise MandorlaError(
            f"label {MASK!r} has shape {mask.shape[1:]}, but images of {shown} have {tuple(x.shape[2:])}:"
            " give masks of the size of the images, or leave it out of data.labels"
        )
    again = subject.reconstructions[shown][rows]
    healthy = s.train.means[shown].expand_as(x)
    if f"clean_{shown}" in s.train.means:
        healthy = torch.as_tensor(batch.factors[f"clean_{shown}"])[rows]
    text = (
        f"Contrast of the lesion in the reconstructed {shown}, as a share of the real one; chance: the same place"
        " without a lesion (of the mean image, where the data does not tell)."
    )
    share, chance = (contrast_share(image, x, mask) for image in (again, healthy))
    groups = batch.whose[rows][~np.isnan(contrast(x, mask))]
    more = {"chance": float(chance.mean()), "ceiling": 1.0, "groups": groups if len(groups) else None}
    records = [s.record("lesion/contrast kept", share, text, "nearer ceiling", **more)]
    has, train = (mask > 0.5).reshape(len(mask), -1).any(1), subject.data.train
    steps = subject.settings.segmenter_steps if MASK in train.batch([0]).factors and has.any() else 0
    if steps:
        segmenter = train_segmenter(train, shown, steps, seed=s.seed, device=subject.model.device)
        found, known, guessed = (dice(segmenter.outline(image), mask) for image in (again, x, healthy))
        text = (
            f"Dice coefficient of the lesions that a U-Net, trained for {steps} steps on real {shown}, outlines in"
            f" reconstructed {shown}, mean over images with a lesion; ceiling: in real ones; chance: where there is"
            " none (in the mean image, where the data does not tell)."
        )
        more = {"chance": float(guessed[has].mean()), "ceiling": float(known[has].mean())}
        more |= {"groups": batch.whose[rows][has]}
        records.append(s.record("lesion/dice", found[has], text, "nearer ceiling", **more))
    return records
