"""Columns of tables of numbers, each below a line of names: a sequence of vectors, or of one row a vector."""

import csv
import io
from array import array
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mandorla.data.places import TABLES, Reading, ReadOptions, check_text, split_place, suffix
from mandorla.errors import MandorlaError

_MOST_NAMES = 2**16  # characters of a table in which the names of its columns are looked for


def read_columns(path: Path, key: str | None, options: ReadOptions) -> Reading:
    """Return columns of numbers below one line of names."""
    check_text(path)
    with open(path, encoding="utf-8-sig", newline="") as file:
        lines = ([cell.strip() for cell in line] for line in csv.reader(file, strict=True) if line)
        names = next(lines, [])
        if names and all(map(_is_number, names)):
            raise MandorlaError(f"its first line holds numbers ({', '.join(names[:3])}); put a line of names above it")
        wanted = names if key is None else split_columns(key)
        if "" in wanted:  # as pandas writes the numbers of rows
            number = wanted.index("") + 1
            raise MandorlaError(f"column {number} has no name; remove it, or name those to take, as in {path.name}:a,b")
        counts, place = Counter(names), {name: index for index, name in enumerate(names)}
        for name in wanted:
            if counts[name] != 1:
                raise MandorlaError(f"{counts[name] or 'no'} column(s) {name!r}; it has {', '.join(names[:20])}")
        places = [place[name] for name in wanted]
        values, num = array("d"), 0  # of float64: a clock's seconds have ten digits
        for num, line in enumerate(lines, 1):
            if len(line) != len(names):
                raise MandorlaError(f"row {num} has {len(line)} cells where the first line names {len(names)}")
            for index in places:
                if not _is_number(line[index]) and (line[index] or options.nan is None):
                    raise MandorlaError(f"row {num}, column {names[index]!r}: {line[index]!r} is no number")
                values.append(float(line[index] or "nan"))  # an empty cell is how pandas writes NaN
    if options.dimensions == 0 and num != 1:
        raise MandorlaError(f"{num} rows where a vector has one; data.read.dimensions 1 makes it a sequence")
    rows = np.array(values).reshape(num, len(wanted))
    return Reading(rows[0] if options.dimensions == 0 else rows.T)


def check_columns(places: Iterable[str | None]) -> None:
    """Raise `MandorlaError` if whole tables among the places of one modality differ in their columns, or their order.

    What cannot be read as a table is passed over: `read` says what is wrong with it.
    """
    first: tuple[str, list[str]] | None = None
    for place in filter(None, places):
        if not (names := _first_line(*split_place(place))):
            continue
        first = first or (place, names)
        if names != first[1]:
            raise MandorlaError(
                f"{place}: its columns are {', '.join(names)}, those of {first[0]} are {', '.join(first[1])}; give "
                f"all of a modality the same, or name them as in *.csv:{join_columns(first[1])}"
            )


def columns_of(places: Iterable[str | None]) -> tuple[str, ...]:
    """Return the names of the columns that the first table among `places` gives, in order; none without a table."""
    for path, key in map(split_place, filter(None, places)):
        if names := split_columns(key) if key and suffix(path) in TABLES else _first_line(path, key):
            return tuple(names)
    return ()


def split_columns(key: str) -> list[str]:
    """Return the names of columns in the `key` of a table, as CSV has them: `x,"y,z"` are x and y,z."""
    return [name.strip() for name in next(csv.reader([key]))]


def join_columns(names: Iterable[str]) -> str:
    """Undo `split_columns`: return a line of CSV."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(names)
    return line.getvalue()


def _first_line(path: Path, key: str | None) -> list[str] | None:
    """Return the names of the columns of a whole table; None of what is none, or cannot be read."""
    if key is not None or suffix(path) not in TABLES or not path.is_file():
        return None
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file.read(_MOST_NAMES).splitlines())
        return [cell.strip() for cell in next(line for line in lines if line)]
    except (OSError, ValueError, StopIteration, csv.Error):
        return None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # Python takes 1_0 for 10
