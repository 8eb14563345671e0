"""Paired files as a table lists them: one row per sample, one column per modality, and what else is known.

    subject,session,t1,t2,lesion_mask,split,age,sex
    p01,first,p01/t1.nii.gz,p01/t2.nii.gz,p01/lesion.nii.gz,train,54,f
    p02,first,p02/t1.nii.gz,,,test,61,

Places are relative to the table, or to `data.root` for what does not lie beside it. An empty cell stands for a missing
modality, mask or label. The columns are those of the first line, divided by commas, semicolons or tabs.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from mandorla.data.pairing import NOTHING, Pairs, Row, Unpairable, is_mask, pair_rows, to_modality, to_part, to_values
from mandorla.data.places import check_text, split_place, suffix
from mandorla.data.root import comes_from
from mandorla.data.samples import FilesConfig
from mandorla.errors import MandorlaError

KEYS = ("session", "slice")  # columns that, beside the subject, tell samples apart
SPLIT = "split"
GROUP = "group"  # a column of this name becomes a label of another: `group` is what a sample's subject is called


class TableConfig(FilesConfig):
    """Name the table of `table` and what its columns are."""

    kind: Literal["table"] = "table"
    table: str
    """CSV or TSV file with a row per sample and the names of its columns in the first line."""
    modalities: list[str] | None = None
    """Columns that hold the modalities' places; null takes those in which all cells end like files that can be read."""
    masks: list[str] | None = None
    """Columns that hold places of masks; null takes, of those found, the ones called mask, seg, label or lesion."""
    labels: list[str] | None = None
    """Columns that hold labels; null takes all that are nothing else."""
    subject: str = "subject"
    """Column that names the subject (patient)."""
    key: list[str] | None = None
    """Columns that, beside the subject, tell samples apart; null takes `session` and `slice` where there are any."""
    split: str | None = None
    """Column that says train, val or test; null takes `split` if there is one, else subjects are divided by shares."""


def pair_table(config: TableConfig) -> Pairs:
    """Return the samples in the table.

    Raises `MandorlaError` for a missing or broken table, a column that it lacks, a file that is missing, and as
    `pair_rows` does.
    """
    path = config.locate(config.table)
    columns, lines = read_table(path, config.source)
    named = [*(config.modalities or ()), *(config.masks or ()), *(config.labels or ()), *(config.key or ())]
    for name in [config.subject, *named, *filter(None, [config.split])]:
        if name not in columns:
            raise MandorlaError(f"{path}: no column {name!r}; it has {', '.join(columns)}")
    keys = [name for name in KEYS if name in columns] if config.key is None else config.key
    split = config.split or (SPLIT if SPLIT in columns else None)
    taken = {config.subject, *keys, split, *(config.labels or ())}
    files = [name for name in columns if name not in taken and holds_places(columns[name])]
    masks = [name for name in files if _is_mask(name)] if config.masks is None else config.masks
    modalities = [name for name in files if name not in masks] if config.modalities is None else config.modalities
    taken |= {*modalities, *masks, *files}
    labels = [name for name in columns if name not in taken] if config.labels is None else config.labels
    values = {to_label_name(name): to_values(columns[name]) for name in labels}

    def given(names: Sequence[str], index: int) -> Iterator[tuple[str, str]]:
        return ((name, cell) for name in names if (cell := columns[name][index]).lower() not in NOTHING)

    def rows() -> Iterator[Row | Unpairable]:
        for index, line in enumerate(lines):
            where = f"{path}:{line}"
            subject, *rest = (columns[name][index] for name in (config.subject, *keys))
            if not subject:
                yield Unpairable(where, f"no {config.subject} in this row")
                continue
            yield Row(
                where,
                "/".join([subject, *rest]).rstrip("/"),
                subject,
                {name: find_place(config, path.parent, cell, where) for name, cell in given(modalities, index)},
                {name: find_place(config, path.parent, cell, where) for name, cell in given(masks, index)},
                {name: column[index] for name, column in values.items()},
                to_part(columns[split][index]) or None if split else None,
            )

    pairs = pair_rows(rows(), modalities, config, str(path))
    if split and pairs.parts is None:
        raise MandorlaError(f"{path}: the column {split!r} is empty; say train, val or test, or remove it")
    return pairs


def read_table(path: Path, source: str = "") -> tuple[dict[str, list[str]], list[int]]:
    """Return the columns of a CSV or TSV file, cells stripped, and the line of the file that each row begins on.

    Raises `MandorlaError` if it is missing (`source` says where it can be had), no table in UTF-8, empty, or has two
    columns of one name, or rows of other length than the first line.
    """
    try:
        if path.exists():
            check_text(path)
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=first.count), strict=True)
            lines, rows, start = [], [], 1
            for row in reader:
                if any(cell.strip() for cell in row):
                    rows.append([cell.strip() for cell in row])
                    lines.append(start)
                start = reader.line_num + 1
    except FileNotFoundError as error:
        source = comes_from(source)
        raise MandorlaError(
            f"{path}: no such table{source}; put it there, or set data.root or MANDORLA_DATA"
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MandorlaError(f"{path}: cannot be read as a table in UTF-8 ({error}); save it as UTF-8") from error
    if len(rows) < 2:
        raise MandorlaError(f"{path}: an empty table; it needs a line of names and a row per sample")
    names = rows[0]
    if wrong := [name for name in names if not name or names.count(name) > 1]:
        raise MandorlaError(f"{path}:{lines[0]}: the column {wrong[0]!r} is there {names.count(wrong[0])} times")
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(names):
            raise MandorlaError(f"{path}:{line}: {len(row)} cells in a table of {len(names)} columns")
    return {name: [row[index] for row in rows[1:]] for index, name in enumerate(names)}, lines[1:]


def to_label_name(column: str) -> str:
    """Return the label that a column becomes."""
    return "group_label" if column == GROUP else column


def find_place(config: FilesConfig, folder: Path, text: str, where: str) -> str:
    """Return the place that `text` names in `folder`, or under `data.root` for what is not there.

    Raises `MandorlaError`, which begins with `where`, if it is in neither.
    """
    for place in (str(folder / text), str(config.locate(text))):
        if split_place(place)[0].exists():
            return place
    raise MandorlaError(
        f"{where}: no file {text!r} in {folder} or {config.locate('')}{comes_from(config.source)}; put it "
        "there, or mend the entry"
    )


def holds_places(cells: Sequence[str]) -> bool:
    """Return whether the cells of a column are places of files, but for those that stand for none."""
    given = [cell for cell in cells if cell.lower() not in NOTHING]
    return bool(given) and all(suffix(split_place(cell)[0]) for cell in given)


def _is_mask(name: str) -> bool:
    return is_mask(to_modality(name) or name) or name.lower().endswith(("mask", "_seg"))
