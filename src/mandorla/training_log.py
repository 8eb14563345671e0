"""What a training says while it runs: figures in `metrics.jsonl` and to the trackers, a line on the terminal."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text
from torch import Tensor

from mandorla.errors import MandorlaError
from mandorla.parallel import is_first
from mandorla.storage import write_text
from mandorla.track import Name, blamed, open_trackers

LOG = "metrics.jsonl"
_WITH_BAR, _WITH_TIME = 76, 56  # characters that a terminal must have to show these beside step and loss


class Log:
    """Average named figures between two writes; the first process appends them to `metrics.jsonl`, and tells the
    trackers.
    """

    def __init__(self, folder: Path, track: Sequence[Name], step: int, waiting: list[dict[str, float]]):
        self.waiting: list[dict[str, Tensor | float]] = list(waiting)
        self.trackers = []
        if not is_first():
            return
        self.path = folder / LOG
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        kept = [line for line in lines if _step_of(line) <= step]
        write_text(self.path, "".join(line + "\n" for line in kept))
        self.trackers = open_trackers(track, folder, step)

    def waiting_numbers(self) -> list[dict[str, float]]:
        """Return what was not written yet, as plain numbers: a resumed training writes the same means."""
        return [{name: float(value) for name, value in figures.items()} for figures in self.waiting]

    def not_finite_since(self) -> int | None:
        """Return how many steps ago a figure first was not finite; None if all are."""
        for index, figures in enumerate(self.waiting_numbers()):
            if not all(map(math.isfinite, figures.values())):
                return len(self.waiting) - 1 - index
        return None

    def add(self, figures: dict[str, Tensor] | dict[str, float]) -> None:
        """Take the figures of a step into the next mean."""
        self.waiting.append(figures)

    def write(self, part: str, step: int) -> dict[str, float]:
        """Write the means since the last time as figures of `part`, `train` or `val`, and return them.

        Raises MandorlaError where they cannot be written, as on a full disk.
        """
        names = {name: None for figures in self.waiting for name in figures}
        values = {n: [float(figures[n]) for figures in self.waiting if n in figures] for n in names}
        means = {name: sum(v) / len(v) for name, v in values.items()}
        self.waiting = []
        if not is_first():
            return means
        for tracker in self.trackers:
            with blamed(type(tracker).__name__):
                tracker.write(step, {f"{part}/{name}": value for name, value in means.items()})
        try:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, "part": part} | means) + "\n")
        except OSError as error:
            raise MandorlaError(f"{self.path} cannot be written ({error}): make room, then type the same") from error
        return means

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *error: object) -> None:
        for tracker in self.trackers:
            with blamed(type(tracker).__name__):
                tracker.close()


def _step_of(line: str) -> float:
    """Return the step of a line of figures, infinity where it is damaged: a killed training leaves half a line."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def in_short(figures: dict[str, float], width: int) -> str:
    """Return the loss and as many other figures as `width` characters hold."""
    text = f"loss {figures['loss']:.3g}"
    for name, value in figures.items():
        longer = f"{text}  {name} {value:.3g}"
        if name != "loss" and len(longer) <= width:
            text = longer
    return text


class _Rate(ProgressColumn):
    """Show steps per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.1f}/s")


def progress_line() -> Progress:
    """Return a line that shows, however narrow the terminal is, how far a training is and its loss."""
    width, whole = get_console().width, Column(no_wrap=True)
    return Progress(
        TextColumn("{task.description}", table_column=whole),
        *[BarColumn(20)] * (width >= _WITH_BAR),
        MofNCompleteColumn(table_column=whole),
        *[_Rate(table_column=whole), TimeRemainingColumn(table_column=whole)] * (width >= _WITH_TIME),
        TextColumn("{task.fields[figures]}"),
    )
