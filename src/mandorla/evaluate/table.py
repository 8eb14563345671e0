"""Figures of several models, or of one, over several runs each, as a table in Markdown."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mandorla.evaluate.record import Record
from mandorla.tables import markdown_head, markdown_row

_REFERENCES = ("chance", "control", "ceiling")

Runs = Sequence[Sequence[Record]]  # of one model: the figures of each run


def side_by_side(columns: Mapping[str, Runs]) -> list[tuple[str, dict[str, list[Record]]]]:
    """Return each figure's name and its records, one of each run, by model; none where not all its runs have it."""
    found = {name: [{record.name: record for record in run} for run in runs] for name, runs in columns.items()}
    rows = []
    for figure in dict.fromkeys(record.name for runs in columns.values() for run in runs for record in run):
        cells = {name: [run[figure] for run in runs if figure in run] for name, runs in found.items()}
        cells = {name: of if len(of) == len(found[name]) else [] for name, of in cells.items()}
        rows += [(figure, cells)] if any(cells.values()) else []
    return rows


def figures_table(columns: Mapping[str, Runs]) -> str:
    """Return a table of mean ± standard deviation of each figure, a column per model, `columns[name]` its runs.

    A figure that not all runs of a model measured leaves a cell empty. Of several models the best are in bold, as far
    as the digits shown tell. References (chance, control, ceiling) are averages over whoever has them.
    """
    rows = side_by_side(columns)
    beside = [{key: _average(sum(cells.values(), []), key) for key in _REFERENCES} for _, cells in rows]
    used = [key for key in _REFERENCES if any(references[key] for references in beside)]
    lines = markdown_head(["figure", *columns, *used, "better"])
    for (figure, cells), references in zip(rows, beside, strict=True):
        best = best_of(cells)
        shown = [f"**{_spread(of)}**" if name in best else _spread(of) for name, of in cells.items()]
        better = next(of[0].better for of in cells.values() if of)
        lines.append(markdown_row([figure, *shown, *(references[key] for key in used), better]))
    return "\n".join(lines) + "\n"


def best_of(cells: Mapping[str, Sequence[Record]]) -> list[str]:
    """Return which of several models have the best mean of a figure, as shown; none where all have the same."""
    means = {name: float(_average(of, "value")) for name, of in cells.items() if of}
    if len(set(means.values())) < 2:
        return []
    ceilings = {name: _average(cells[name], "ceiling") for name in means}
    merits = {
        name: replace(cells[name][0], value=mean, ceiling=float(ceilings[name]) if ceilings[name] else None).merit
        for name, mean in means.items()
    }
    best = [name for name, merit in merits.items() if merit == max(merits.values())]
    return best if len(best) < len(merits) else []


def _spread(records: Sequence[Record]) -> str:
    if not records:
        return ""
    deviation = f" ± {statistics.stdev(r.value for r in records):.{_digits(records)}f}" if len(records) > 1 else ""
    return f"{_average(records, 'value')}{deviation} {records[0].unit}".strip()


def _average(records: Sequence[Record], key: str) -> str:
    """Return the mean of `key` as text, empty where it does not apply."""
    values = [value for record in records if (value := getattr(record, key)) is not None]
    return f"{statistics.mean(values):.{_digits(records)}f}" if values else ""


def _digits(records: Sequence[Record]) -> int:
    """Return how many decimals are shown: more of small figures, so that two say something."""
    if records[0].unit == "dB":
        return 1
    size = abs(statistics.mean(record.value for record in records))
    return 3 if size >= 0.01 or size == 0 else min(6, 1 - math.floor(math.log10(size)))
