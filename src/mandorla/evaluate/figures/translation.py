"""Likeness of translations and reconstructions to the truth, and whether the spread of samples tells their error."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from mandorla.evaluate.arrays import Array, numbers
from mandorla.evaluate.figures.subject import Route, Subject
from mandorla.evaluate.images import FOREGROUND, calibration, foreground, has_ssim, mae, psnr, ssim
from mandorla.evaluate.record import Better, Record, deviation

LIKENESS: dict[str, tuple[Callable[..., np.ndarray], str, Better]] = {
    "psnr": (psnr, "dB", "higher"),
    "ssim": (ssim, "", "higher"),
    "mae": (mae, "", "lower"),
}
_BESIDE = {
    "chance": "the mean training image",
    "control": "copying the input",
    "ceiling": "the reconstruction",
}
_SPREAD: dict[str, tuple[str, Better]] = {
    "ratio": (
        "Spread of {num} samples, sqrt(variance (1 + 1/{num})), over the rmse of their mean, in the foreground; below"
        " the ceiling the model is surer than it is right, above less sure; {told}.",
        "nearer ceiling",
    ),
    "coverage": (
        "Share of the foreground's true values that lie between the smallest and the largest of {num} samples; {told}.",
        "nearer ceiling",
    ),
    "correlation": (
        "Correlation, over the pixels of the foreground, of the standard deviation of {num} samples with the absolute"
        " error of their mean; chance: none; {told}.",
        "higher",
    ),
    "correlation whole": (
        "As spread correlation, over all pixels: where nothing is, samples do not differ and are right; chance: none;"
        " {told}.",
        "higher",
    ),
}
_TOLD = "ceiling: what right uncertainty gives, one more sample, each in turn, in the place of the truth"


@dataclass(frozen=True)
class _Measured:
    """Hold one figure of one route: a score of each of the `subjects` `(N,)`, those of references and baseline."""

    kind: str
    subjects: np.ndarray
    scores: np.ndarray
    text: str
    unit: str = ""
    better: Better = "higher"
    references: dict[str, np.ndarray] = field(default_factory=dict)
    baseline: np.ndarray | None = None


def translation_figures(subject: Subject) -> list[Record]:
    """Measure the likeness of translations to the truth, beside the mean image, the input and the reconstruction.

    Figures over all routes come first, then those of each, then the reconstructions.
    """
    measured = {route: found for route in subject.routes if (found := _measure(subject, route))}
    overall, single = [], []
    for (given, wanted), found in measured.items():
        for figure in found:
            single += _records(subject, f"translation/{given} to {wanted}/{figure.kind}", figure)
    for first in next(iter(measured.values()), []):
        same = [figure for found in measured.values() for figure in found if figure.kind == first.kind]
        if len(same) == len(measured) > 1:
            overall += _records(subject, f"translation/{first.kind}", _joined(same))
    return [*overall, *single, *_reconstruction_figures(subject)]


def _measure(subject: Subject, route: Route) -> list[_Measured]:
    """Return all figures of one route, none where no sample has both modalities."""
    (given, wanted), batch, means = route, subject.translated, subject.codes.train.means
    rows = batch.present[given] & batch.present[wanted]
    if not rows.any():
        return []
    samples, truth, copy = subject.translations[given][wanted][:, rows], batch.x[wanted][rows], batch.x[given][rows]
    control = {"control": copy} if copy.shape == truth.shape else {}
    others = {"chance": means[wanted].expand_as(truth), "ceiling": subject.reconstructions[wanted][rows]} | control
    rivals = subject.baseline_translations[given][wanted][:, rows] if subject.baseline else None
    made = _Made(samples, truth, batch.whose[rows.numpy()], others, rivals)
    num, found = len(samples), []
    images = {
        "mean": (lambda x: x.mean(0), f"the mean of {num} samples"),
        "single": (lambda x: x[0], "a single sample"),
    }
    inside = " foreground", f" where the truth is above {FOREGROUND:g},", foreground(truth)
    for measure in (measure for measure in LIKENESS if measure != "ssim" or has_ssim(truth)):
        for place, where, mask in (("", "", None), inside):
            for kind, (image, what) in images.items():
                text = f"{what}{where} against the truth"
                found += made.likeness(f"{measure} {kind}{place}", measure, image, text, mask)
    if f"clean_{wanted}" in means:
        clean = torch.as_tensor(batch.factors[f"clean_{wanted}"])[rows]
        made = replace(made, truth=clean, others={"chance": means[f"clean_{wanted}"].expand_as(clean)} | control)
        text = f"the mean of {num} samples against the shared anatomy rendered without the private parts"
        beside = _BESIDE | {"chance": "the mean of these over the training set"}
        found += made.likeness("anatomy psnr", "psnr", images["mean"][0], text, beside=beside)
    return found + (_spread(samples, truth, made.group) if num > 2 else [])


@dataclass(frozen=True)
class _Made:
    """Hold the `samples` `(K, B, C, *size)` of a route, what they are compared with, and whose each is, `(B,)`."""

    samples: Tensor
    truth: Tensor
    group: np.ndarray
    others: dict[str, Tensor]
    rivals: Tensor | None

    def likeness(
        self,
        kind: str,
        measure: str,
        image: Callable[[Tensor], Tensor],
        text: str,
        mask: Tensor | None = None,
        beside: Mapping[str, str] = _BESIDE,
    ) -> list[_Measured]:
        """Return the likeness of what `image` makes of the samples; nothing where there is nothing in the mask."""
        function, unit, better = LIKENESS[measure]
        here = torch.ones(len(self.truth), dtype=torch.bool) if mask is None else mask.flatten(1).any(1)
        if not here.any():
            return []
        group = self.group[here.numpy()]

        def score(x: Tensor) -> np.ndarray:
            return by_group(function(x[here], self.truth[here], *(() if mask is None else (mask[here],))), group)

        references = {key: score(x) for key, x in self.others.items()}
        known = "; ".join(f"{key}: {what}" for key, what in beside.items() if key in references)
        text = f"{measure.upper()} of {text}; {known}."
        rival = None if self.rivals is None else score(image(self.rivals))
        scores = score(image(self.samples))
        return [_Measured(kind, np.unique(group), scores, text, unit, better, references, rival)]


def _spread(samples: Tensor, truth: Tensor, group: np.ndarray) -> list[_Measured]:
    """Measure whether the spread of the samples `(K, B, C, *size)` says how wrong their mean is."""
    (found, right), (whole, right_whole) = (calibration(samples, truth, above) for above in (FOREGROUND, None))
    found["correlation whole"], right["correlation whole"] = whole["correlation"], right_whole["correlation"]
    measured = []
    for name, scores in found.items():
        here = np.isfinite(scores) & np.isfinite(right[name])
        if here.any():
            references = {"ceiling": by_group(right[name][here], group[here])}
            references |= {"chance": np.zeros(1)} if name.startswith("correlation") else {}
            text, better = _SPREAD[name][0].format(num=len(samples) - 1, told=_TOLD), _SPREAD[name][1]
            subjects, values = np.unique(group[here]), by_group(scores[here], group[here])
            measured.append(_Measured(f"spread {name}", subjects, values, text, better=better, references=references))
    return measured


def by_group(scores: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return the mean score of each group (patient), in their order: samples of one patient are not independent."""
    _, index = np.unique(group, return_inverse=True)
    return np.bincount(index, scores) / np.bincount(index)


def _joined(same: list[_Measured]) -> _Measured:
    """Return one figure over all routes: the mean of each subject over the routes that it has."""
    subjects = np.concatenate([figure.subjects for figure in same])

    def join(parts: list[np.ndarray]) -> np.ndarray:
        whole = [np.broadcast_to(part, len(figure.subjects)) for part, figure in zip(parts, same, strict=True)]
        return by_group(np.concatenate(whole), subjects)

    first = min(same, key=lambda figure: len(figure.references))  # whose text promises no more than all have
    keys = [key for key in first.references if all(key in figure.references for figure in same)]
    return replace(
        first,
        subjects=np.unique(subjects),
        scores=join([figure.scores for figure in same]),
        text=f"Mean over all {len(same)} routes. {first.text}",
        references={key: join([figure.references[key] for figure in same]) for key in keys},
        baseline=None if first.baseline is None else join([figure.baseline for figure in same]),
    )


def _records(subject: Subject, name: str, figure: _Measured) -> list[Record]:
    """Return the record of a figure and, where there is a baseline, that of the difference."""
    references = {key: float(np.mean(scores)) for key, scores in figure.references.items()}
    record, style = subject.codes.record, {"unit": figure.unit, "better": figure.better}
    records = [record(name, figure.scores, figure.text, **style, **references, sd=deviation(figure.scores))]
    if figure.baseline is not None:
        gain = figure.scores - figure.baseline
        rival = subject.baseline.run.resolve().name
        text = (
            f"The figure above minus that of the run '{rival}' on the same {len(gain)} subjects; p: Wilcoxon"
            " signed-rank test, two-sided."
        )
        measured = {"chance": 0.0, "sd": deviation(gain), "p": signed_rank_p(gain)}
        records.append(record(f"{name} against baseline", gain, text, **style, **measured))
    return records


def signed_rank_p(differences: Array) -> float:
    """Return the two-sided p-value of the Wilcoxon signed-rank test of paired `differences` `(N,)`; 1 if all are zero.

    Raises MandorlaError for differences of other shapes, none at all, and NaN.

    Reference: Wilcoxon, "Individual Comparisons by Ranking Methods", 1945, https://doi.org/10.2307/3001968
    """
    from scipy.stats import wilcoxon

    gains = numbers(differences, "differences")
    return float(wilcoxon(gains).pvalue) if gains.any() else 1.0


def _reconstruction_figures(subject: Subject) -> list[Record]:
    s, batch, records = subject.codes, subject.translated, []
    for measure in ("psnr", "ssim"):
        function, unit, better = LIKENESS[measure]
        for name, image in subject.reconstructions.items():
            rows = batch.present[name]
            truth, group = batch.x[name][rows], batch.whose[rows.numpy()]
            if not rows.any() or (measure == "ssim" and not has_ssim(truth)):
                continue
            chance = float(by_group(function(s.train.means[name].expand_as(truth), truth), group).mean())
            text = (
                f"{measure.upper()} of the reconstruction from the shared part of all views and the own private part;"
                " chance: the mean training image."
            )
            scores = by_group(function(image[rows], truth), group)
            style = {"unit": unit, "better": better, "chance": chance, "sd": deviation(scores)}
            records.append(s.record(f"reconstruction/{measure}/{name}", scores, text, **style))
    return records
