"""The data check on one page: as HTML that needs nothing but itself, and in the terminal."""

from dataclasses import dataclass

import numpy as np
import torch

from mandorla.check.advice import Change, Problem, show
from mandorla.check.facts import PERCENTILES, Facts, LabelFacts, ModalityFacts
from mandorla.pages import fill
from mandorla.pictures import grid
from mandorla.tables import print_table

MOST = 20  # examples of a problem, classes of a label
FEW, SOME = 3, 8  # the same in the terminal
NUM_LINES = 2  # signals drawn per modality


@dataclass(frozen=True)
class Findings:
    """Hold all that the page says.

    - `title`: what was checked; `taken`: what it was taken for, in words
    - `facts`: None if the samples could not even be listed
    - `config`: the suggested recipe as YAML; `changes`: what of it the facts ask for; `advice`: what to do with it
    """

    title: str
    taken: list[str]
    facts: Facts | None
    problems: list[Problem]
    changes: list[Change]
    config: str
    advice: str

    @property
    def num_mend(self) -> int:
        """Return how many problems must be mended before a training."""
        return sum(problem.level == "mend" for problem in self.problems)

    @property
    def verdict(self) -> str:
        """Return in a sentence whether the data can be trained on."""
        notes = len(self.problems) - self.num_mend
        look = f" {notes} thing{'s are' if notes > 1 else ' is'} worth a look." if notes else ""
        if self.num_mend:
            return f"{self.num_mend} thing{'s' if self.num_mend > 1 else ''} to mend before a training.{look}"
        return f"Nothing stands against a training.{look}"


def render(findings: Findings) -> str:
    """Return the page as HTML."""
    facts = findings.facts
    return fill(
        "check/page.html.jinja",
        {
            "title": findings.title,
            "taken": findings.taken,
            "facts": facts,
            "cards": _cards(facts) if facts else [],
            "num_mend": findings.num_mend,
            "verdict": findings.verdict,
            "problems": findings.problems,
            "most": MOST,
            "percentiles": PERCENTILES,
            "whole": facts and not facts.sampled,
            "gallery": _gallery(facts) if facts else None,
            "plots": [_plot(modality) for modality in facts.modalities] if facts else [],
            "changes": findings.changes,
            "config": findings.config,
            "advice": findings.advice,
        },
    )


def print_page(findings: Findings) -> None:
    """Print the page in the terminal."""
    from rich.console import Console
    from rich.text import Text

    console, facts = Console(highlight=False), findings.facts
    console.print(Text(findings.title, "bold"))
    for text in findings.taken:
        console.print(Text(text, "dim"))
    if facts:
        counts = (f"{name} {number}" + (f" ({more})" if more else "") for name, number, more in _cards(facts))
        console.print(Text(" · ".join(counts)))
        told = [dict(_rows(modality)) for modality in facts.modalities]
        rows = [
            [name, *(of.get(name, "") for of in told)] for name in dict.fromkeys(name for of in told for name in of)
        ]
        console.print()
        print_table(["modality", *(modality.name for modality in facts.modalities)], rows)
        console.print()
        if not facts.division:
            counted = ["samples"] if facts.composed else ["samples", "subjects"]
            parts = [[part, *(f"{n:,}" for n in counts[: len(counted)])] for part, counts in facts.parts.items()]
            print_table(["part", *counted], parts)
        for label in facts.labels:
            console.print(Text.assemble((f"label {label.name}", "bold"), f" {_say(label)}"))
    console.print()
    console.print(Text(findings.verdict, "bold red" if findings.num_mend else "bold green"))
    for problem in findings.problems:
        console.print(
            Text.assemble((f"{problem.level}: ", "red" if problem.level == "mend" else "yellow"), problem.what)
        )
        for text in problem.where[:FEW]:
            console.print(Text(f"      {text}", "dim"))
        if len(problem.where) > FEW:
            console.print(Text(f"      and {len(problem.where) - FEW} more", "dim"))
        if problem.remedy:
            console.print(Text(f"      -> {problem.remedy}"))
    if findings.config:
        console.print()
        console.print(Text(findings.advice, "bold"))
        for change in findings.changes:
            console.print(Text(f"# {change.key}: {change.why}", "dim"))
        print(findings.config, end="")  # as it is, to be copied


def _cards(facts: Facts) -> list[tuple[str, str, str]]:
    """Return the counts that come first: name, number and what else there is to say."""
    some = f"{facts.looked_at:,} looked at" if facts.looked_at < facts.num_samples else ""
    partly = facts.looked_at - facts.paired
    cards = [("samples", f"{facts.num_samples:,}", some)]
    if not facts.composed:
        cards.append(("subjects", f"{facts.num_subjects:,}", ""))
    cards.append(("fully paired", f"{facts.paired:,}", f"{partly:,} partly" if partly else ""))
    if facts.num_slices:
        cards.append(
            ("slices in the files", f"{facts.num_slices:,}", f"{facts.num_samples / facts.num_slices:.0%} kept")
        )
    for name, counts in (("voxel in mm", facts.spacings), ("axes in the files", facts.axes)):
        for text, _ in counts.most_common(1):
            cards.append((name, text, f"and {len(counts) - 1} other(s)" if len(counts) > 1 else ""))
    if facts.skipped:
        cards.append(("unpairable files", f"{len(facts.skipped):,}", ""))
    return cards


def _rows(modality: ModalityFacts) -> list[tuple[str, str]]:
    """Return the facts about one modality as names and words."""
    rows = [("samples", f"{modality.num:,}")]
    if not modality.shapes:
        return [*rows, ("readable", "none")]
    more = f" and {len(modality.shapes) - 1} other(s)" if len(modality.shapes) > 1 else ""
    rows += [("shape", show(modality.shape) + more), ("type", ", ".join(modality.dtypes))]
    rows.append(("range", f"{modality.low:.4g} to {modality.high:.4g}"))
    if modality.background:
        rows.append(("background", f"{modality.background:.0%} of the values"))
    if modality.foreground:
        rows.append(
            (
                "foreground" if modality.background else "percentiles",
                " · ".join(f"{value:.4g}" for value in modality.foreground.values()),
            )
        )
    if modality.blank or modality.dark:
        rows.append(("blank · nearly blank", f"{len(modality.blank):,} · {len(modality.dark):,}"))
    if modality.blank_slices[1]:
        rows.append(("blank slices", "{:,} of {:,}".format(*modality.blank_slices)))
    return rows


def _say(label: LabelFacts) -> str:
    if label.error:
        return label.error
    if label.kind == "number":
        return f"number, {label.num:,} samples, {label.low:.4g} to {label.high:.4g}"
    if not label.counts:
        return f"{label.kind}, {label.num:,} samples"
    shown = ", ".join(f"{name} {count:,}" for name, count in list(label.counts.items())[:SOME])
    more = f" and {len(label.counts) - SOME} more" if len(label.counts) > SOME else ""
    return f"{label.kind}, {label.num:,} samples: {shown}{more}"


def _gallery(facts: Facts) -> bytes | None:
    """Return the pictured samples of all modalities that can be shown, one row for each; None if there are none."""
    rows, names = [], []
    for modality in facts.modalities:
        images = [image if image is not None and image.ndim == 3 else None for image in modality.pictures]
        if any(image is not None for image in images):
            low, high = modality.percentiles[0.5], modality.percentiles[99.5]
            rows.append([None if image is None else _to_unit(image, low, high) for image in images])
            names.append(modality.name)
    return grid(rows, names) if rows else None


def _to_unit(image: np.ndarray, low: float, high: float) -> torch.Tensor:
    return torch.from_numpy((image - low) / ((high - low) or 1)).clamp(0, 1)


def _plot(modality: ModalityFacts) -> dict:
    """Return what is drawn of one modality: bars of its histogram, in percent, and lines of some signals."""
    counts = np.sqrt(modality.counts)
    bars = (100 * counts / counts.max()).round(1).tolist() if counts.size and counts.max() > 0 else []
    edges = modality.edges
    return {
        "name": modality.name,
        "bars": bars,
        "low": f"{edges[0]:.4g}" if bars else "",
        "high": f"{edges[-1]:.4g}" if bars else "",
        "lines": [_lines(x) for x in modality.pictures if x is not None and x.ndim == 2][:NUM_LINES],
        "rows": _rows(modality),
    }


def _lines(signal: np.ndarray) -> list[str]:
    """Return the channels of a signal `(C, T)` as points of a line in a box of 100 by 100."""
    low, high = signal.min(), signal.max()
    x = np.linspace(0, 100, signal.shape[1])
    y = 95 - 90 * (signal - low) / ((high - low) or 1)
    return [" ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, channel, strict=True)) for channel in y]
