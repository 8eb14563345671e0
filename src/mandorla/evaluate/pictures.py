"""Pictures of what a model makes: grids of enlarged images with labelled rows and columns, and training curves.

A picture is transparent between its tiles and its lettering is mid-grey, so that it suits light and dark pages.
Volumes show their middle slice, signals lines, plain vectors bars.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mandorla.charts import panels
from mandorla.evaluate.figures.subject import Subject
from mandorla.evaluate.settings import Suite
from mandorla.pictures import grid

_TUPLES = 12  # generated tuples that are shown, and most suspicious ones
_TRANSLATED, _DRAWS = 5, 4  # samples that are shown with their translations, and how many of these
_SWAPPED = 6  # samples of which each gets the parts of each
_BETWEEN = 8  # steps of an interpolation
STAGES = {  # folders of trainings, and their titles
    "vae/agreed": "stage 1 before its distillation",
    "vae/distilled": "distillation of stage 1",
    "vae": "stage 1",
    "diffusion": "stage 2",
    "refiner": "refiner",
}


@dataclass(frozen=True)
class Picture:
    """Hold one PNG with its file `name`, the `section` of the report it belongs to, a `caption` and an `alt` text."""

    name: str
    section: str
    title: str
    caption: str
    alt: str
    png: bytes

    @property
    def wide(self) -> bool:
        """Return whether the picture needs the whole width of a page; a PNG holds its width in bytes 16 to 20."""
        return int.from_bytes(self.png[16:20], "big") > 850


def draw_all(subject: Subject) -> list[Picture]:
    """Draw everything that the report shows: what the suites asked for have computed, and the training curves."""
    wanted: list[tuple[set[Suite], Callable[[Subject], list[Picture]]]] = [
        ({"coherence", "fidelity", "audit"}, _samples),
        ({"translation"}, _translations),
        ({"disentanglement", "coherence"}, _swaps),
        ({"disentanglement", "coherence"}, _interpolations),
        ({"audit"}, _neighbours),
    ]
    asked = set(subject.settings.suites)
    pictures = [picture for suites, draw in wanted if suites & asked for picture in draw(subject)]
    logs = {stage: read_log(subject.model.run / stage) for stage in STAGES}
    return pictures + [curves(stage, lines) for stage, lines in logs.items() if lines]


def _samples(subject: Subject) -> list[Picture]:
    made = "generated at once from noise"
    if subject.model.recipe.diffusion.mode != "joint":
        made = "its shared part that of a training sample, its private parts drawn"
    names = subject.names
    rows = [list(subject.samples.x[name][:_TUPLES]) for name in names]
    return [
        Picture(
            "samples",
            "Samples",
            "Jointly generated",
            f"Each column is one tuple, {made}: what is shared must agree, the rest may differ.",
            f"A grid of generated samples, one row for each of {', '.join(names)}; each column belongs together.",
            grid(rows, names),
        )
    ]


def _translations(subject: Subject) -> list[Picture]:
    pictures = []
    batch = subject.translated
    for given, of_wanted in subject.translations.items():
        for wanted, samples in of_wanted.items():
            both = torch.nonzero(batch.present[given] & batch.present[wanted])[:_TRANSLATED, 0]
            if not len(both):
                continue
            mean, std = samples.mean(0), samples.std(0, unbiased=False)
            wrong = (mean - batch.x[wanted]).abs()
            brightest = float(torch.cat([std[both], wrong[both]]).amax().clamp_min(1e-6))
            rows = [
                [
                    *(batch.x[given][i], batch.x[wanted][i], *samples[:_DRAWS, i], mean[i]),
                    *(_grey(z[i]) / brightest for z in (wrong, std)),
                ]
                for i in both
            ]
            drawn = len(samples[:_DRAWS])
            columns = ["given", "truth", *(f"sample {k + 1}" for k in range(drawn)), "mean", "error", "std"]
            pictures.append(
                Picture(
                    f"translation_{given}_to_{wanted}",
                    "Translations",
                    f"{given} to {wanted}",
                    "The truth is one of many answers. Error: the absolute difference of mean and truth; std: the"
                    f" standard deviation of {len(samples)} samples, which should be large where the error is. White,"
                    f" or the top of a plot, is {brightest:.2f} in both.",
                    f"Rows of test samples: the given {given}, the true {wanted}, generated {wanted}, their mean, its"
                    " error, and the samples' standard deviation.",
                    grid(rows, (), columns, ((), (2, 2 + drawn, 3 + drawn))),
                )
            )
    return pictures


def _grey(deviation: torch.Tensor) -> torch.Tensor:
    """Return the largest deviation over the channels, `(1, *size)`: colours would say which channel, not how much.

    Signals and plain vectors keep their channels: they are lines and bars.
    """
    return deviation.amax(0, keepdim=True) if deviation.ndim > 2 else deviation


def _swaps(subject: Subject) -> list[Picture]:
    source = subject.complete(_SWAPPED)
    num = len(source[subject.names[0]])
    if num < 2:
        return []
    latents = subject.model.encode(source)
    across, down = torch.arange(num).repeat(num), torch.arange(num).repeat_interleave(num)
    made = subject.model.swap(shared_from=latents[across], private_from=latents[down])
    pictures = []
    for name in subject.names:
        body = [[source[name][i], *made[name][i * num : (i + 1) * num]] for i in range(num)]
        rows = [[None, *source[name]], *body]
        pictures.append(
            Picture(
                f"swap_{name}",
                "Swaps",
                name,
                "Top row: real samples that give the shared part. Left column: those that give the private part."
                " A column should keep what is shared, a row what is private.",
                f"A table of {name} samples, each with the shared part of its column's head and the private part of its"
                " row's head.",
                grid(rows, bands=((1,), (1,))),
            )
        )
    return pictures


def _interpolations(subject: Subject) -> list[Picture]:
    names, source = subject.names, subject.complete(4)
    if len(source[names[0]]) < 4:
        return []
    latents = subject.model.encode(source)
    texts = {
        "shared": "The shared part moves from one test sample to another while the private parts stay.",
        "private": "The private parts move from one test sample to another while the shared part stays.",
    }
    pictures = []
    for part, text in texts.items():
        made = subject.model.interpolate(latents[:2], latents[2:], num=_BETWEEN, part=part)
        rows = [list(made[name][:, pair]) for pair in range(2) for name in names]
        pictures.append(
            Picture(
                f"interpolation_{part}",
                "Interpolations",
                f"{part} part".capitalize(),
                f"{text} Two pairs, from left to right.",
                f"Rows of samples that change gradually from left to right as the {part} part changes.",
                grid(rows, names * 2, bands=((len(names),), ())),
            )
        )
    return pictures


def _neighbours(subject: Subject) -> list[Picture]:
    if subject.audit is None:
        return []
    names, pictures = subject.names, []
    for space, text in {"pixels": "pixel by pixel", "features": "in the space of features 'random'"}.items():
        found = subject.audit.made[space]
        closest = np.argsort(found.ratio)[:_TUPLES]
        real = subject.data.train.batch(found.index[closest]).x
        rows = [images for name in names for images in (subject.samples.x[name][torch.as_tensor(closest)], real[name])]
        labels = [label for name in names for label in (name, "training")]
        pictures.append(
            Picture(
                f"neighbours_{space}",
                "Nearest training samples",
                f"The most suspicious, {text}",
                "Of all generated tuples those that stand closest to one training tuple beside the next ones, each"
                " above that training tuple, the most suspicious first. Copies would look alike.",
                "Pairs of rows: generated samples and, below, the nearest training samples.",
                grid([list(row) for row in rows], labels, bands=([2 * k for k in range(1, len(names))], ())),
            )
        )
    return pictures


def read_log(stage: Path) -> list[tuple[int, str, dict[str, float]]]:
    """Return what the log `metrics.jsonl` of a stage holds: step, part (train or val) and figures of each line.

    Damaged lines, which a killed training leaves, are passed over.
    """
    lines, path = [], stage / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            figures = json.loads(line)
            step, part = int(figures.pop("step")), figures.pop("part")
            lines.append((step, part, {name: float(value) for name, value in figures.items()}))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return lines


def curves(stage: str, lines: list[tuple[int, str, dict[str, float]]]) -> Picture:
    """Draw every figure of the log of a stage, at least one line, over the steps, training beside validation."""

    def draw(name: str, axes) -> None:
        for part, colour in (("train", "#4c8dd6"), ("val", "#e08b3c")):
            points = [(step, figures[name]) for step, of, figures in lines if of == part and name in figures]
            if points:
                marker = "." if len(points) < 3 else ""
                axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.4, label=part, marker=marker)

    names = list(dict.fromkeys(name for *_, figures in lines for name in figures))
    return Picture(
        f"training_{stage.replace('/', '_')}",
        "Training",
        STAGES[stage].capitalize(),
        "Every logged figure over the training steps.",
        f"Small line charts of {', '.join(names)} over training steps.",
        panels({name: partial(draw, name) for name in names}),
    )
