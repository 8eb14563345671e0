"""What lies in a folder: the files that can be read, and folders that are a DICOM series."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mandorla.data.dicom import are_series, is_dicom
from mandorla.data.places import suffix
from mandorla.errors import MandorlaError
from mandorla.storage import is_run


def find(folder: Path, pattern: str = "**/*") -> list[Path]:
    """Return the files in `folder` that `read` understands and whose path in it matches `pattern`, sorted.

    A folder that holds a DICOM series counts as one file. `*` stands for any part of a name, `**/` for any folders.
    Links are followed; what begins with a dot, or was written by a run, is left out. Raises `MandorlaError` for a link
    that leads back to a folder above it or nowhere, and for names with line breaks or that are not Unicode: they would
    not fit into a list of names.
    """
    matches = to_regex(pattern).fullmatch
    found = [path for path in _walk(folder) if matches(path.relative_to(folder).as_posix())]
    for path in found:
        if not str(path.relative_to(folder)).isprintable():
            raise MandorlaError(f"{str(path)!r}: unprintable characters in the name; rename the file")
    return sorted(found)


def to_regex(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern as `find` takes it, with a group for each wildcard."""
    parts = {"**/": "(.*/)?", "**": "(.*)", "*": "([^/]*)", "?": "([^/])"}
    split = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return re.compile("".join(parts.get(part, re.escape(part)) for part in split), re.DOTALL)


def _walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield the files in `folder` and below that can be read, and folders that hold one DICOM series."""
    real = os.path.realpath(folder)
    if real in above:
        raise MandorlaError(f"{folder}: a link that leads back to a folder above it; remove it")
    slices = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if not is_run(path):  # which holds no data
                yield from _walk(path, (*above, real))
        elif is_dicom(path):
            slices.append(path)
        elif suffix(path):  # also what is no file: whether it is wanted is not known here
            yield path
    if above and are_series(slices):
        yield folder
    else:
        yield from slices
