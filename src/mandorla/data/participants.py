"""What a table knows of each subject: labels for sources whose file names tell no more than whose they are.

    participant_id  age  sex
    sub-01          54   f

Its rows are subjects, in the column `participant_id` or `subject`, with or without `sub-` before the name. A column
`split` says train, val or test for each; all others are labels. Subjects that have no files are passed over, those that
have no row have no labels.
"""

from dataclasses import replace
from pathlib import Path

from mandorla.data.pairing import Pairs, to_part, to_values
from mandorla.data.samples import FilesConfig
from mandorla.data.table import SPLIT, read_table, to_label_name
from mandorla.errors import MandorlaError

SUBJECTS = ("participant_id", "subject")


class ParticipantsConfig(FilesConfig):
    """Name the table of subjects, and what to take of it."""

    participants: str | None = None
    """CSV or TSV file with a row per subject, whose name is in the column `participant_id` or `subject`."""
    labels: list[str] | None = None
    """Columns of that table to take as labels; null takes all."""


def add_labels(pairs: Pairs, config: ParticipantsConfig, default: Path | None = None) -> Pairs:
    """Return `pairs` with the labels and the division that the table of subjects gives.

    `default` is looked at where no table is named.

    Raises `MandorlaError` for a missing or broken table, a column that it lacks, two rows of one subject, and a table
    that knows none of the subjects.
    """
    path = config.locate(config.participants) if config.participants else default
    if config.participants is None and not config.labels and not (path and path.exists()):
        return pairs
    if path is None:
        raise MandorlaError(f"data.labels: no table to take {', '.join(config.labels)} from; name data.participants")
    columns, lines = read_table(path)
    subject = next((name for name in SUBJECTS if name in columns), SUBJECTS[0])
    for name in (subject, *(config.labels or ())):
        if name not in columns:
            raise MandorlaError(f"{path}: no column {name!r}; it has {', '.join(columns)}")
    rows: dict[str, int] = {}
    for index, (name, line) in enumerate(zip(columns[subject], lines, strict=True)):
        if rows.setdefault(name.removeprefix("sub-"), index) != index:
            raise MandorlaError(f"{path}:{line}: {name} is there twice; remove one row")
    found = [rows.get(group.removeprefix("sub-")) for group in pairs.groups]
    if all(row is None for row in found):
        raise MandorlaError(f"{path}: no row for any subject, such as {pairs.groups[0]!r}; mend the names there")
    labels = {}
    others = [name for name in columns if name not in (subject, SPLIT)]
    for name in others if config.labels is None else config.labels:
        values = to_values([columns[name][row] if row is not None else "" for row in found])
        if config.labels is not None or any(value is not None for value in values):
            labels[to_label_name(name)] = values
    if SPLIT in columns:
        parts = [to_part(columns[SPLIT][row]) if row is not None else None for row in found]
        return replace(pairs, labels=labels, parts=parts)
    return replace(pairs, labels=labels)
