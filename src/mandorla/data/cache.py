"""What was read from files, kept as memory-mapped arrays.

    <folder>/<hash>/manifest.json      what there is
    <folder>/<hash>/0.npy, 1.npy, ...  one array `(N, ...)` for each name

The hash is of all that the arrays follow from. A folder appears under its name when all of it is written; commands that
want the same one at the same time wait for the one that writes it. It may be deleted at any time.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mandorla.errors import MandorlaError
from mandorla.storage import locked, whole_folder

MANIFEST = "manifest.json"
_CHUNK = 2**24  # bytes


@dataclass(frozen=True)
class Kept:
    """Hold arrays by name, memory-mapped, and what else was noted of them."""

    arrays: dict[str, np.ndarray]
    notes: dict


class Column:
    """Write an array to an `.npy` file sample by sample, until its length is known."""

    def __init__(self, path: Path):
        self.path, self.length = path, 0
        self.shape: tuple[int, ...] | None = None
        self.dtype: np.dtype | None = None
        self._file = open(path, "w+b")  # noqa: SIM115 (`close` closes it)

    def add(self, values: np.ndarray) -> None:
        """Append samples `(S, *shape)`. The first ones say what shape and type all have."""
        if self.shape is None:
            self.shape, self.dtype = values.shape[1:], values.dtype
            self._write_header()
            self._skip(self.length)
        self._file.write(np.ascontiguousarray(values, self.dtype))
        self.length += len(values)

    def add_missing(self, num: int) -> None:
        """Append `num` samples of zeros, which take no room on disk."""
        if self.shape is not None:
            self._skip(num)
        self.length += num

    def widen(self, dtype: np.dtype) -> None:
        """Change the type of all samples."""
        narrow, here = self._file, self._file.tell()
        wide = open(self.path.with_suffix(".wide"), "w+b")  # noqa: SIM115
        start, old = self._start, self.dtype
        self._file, self.dtype = wide, np.dtype(dtype)
        self._write_header()
        narrow.seek(start)
        while part := narrow.read(min(_CHUNK, here - narrow.tell())):
            wide.write(np.frombuffer(part, old).astype(dtype))
        narrow.close()
        os.replace(self.path.with_suffix(".wide"), self.path)

    def close(self) -> None:
        """Write the length into the file's head and close it."""
        if self.shape is not None:
            self._file.truncate(self._file.tell())
            self._write_header()
        self._file.close()

    def _skip(self, num: int) -> None:
        self._file.seek(num * int(np.prod(self.shape, dtype=int)) * self.dtype.itemsize, os.SEEK_CUR)
        self._file.truncate(self._file.tell())

    def _write_header(self) -> None:
        """Write the head, which NumPy pads so that the length of the first axis may grow."""
        self._file.seek(0)
        head = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.length, *self.shape)}
        np.lib.format.write_array_header_1_0(self._file, head)
        self._start = self._file.tell()


def keep(folder: Path | None, key: str, write: Callable[[Path], dict]) -> Kept:
    """Return what `write` wrote into a folder: `NUMBER.npy`, and notes of which `names` says what each array is.

    It is kept in `folder` as `key` and written but once; without `folder`, and where that cannot be written to, it is
    kept for as long as this command runs. Raises `MandorlaError` where there is no room, and what `write` raises.
    """
    if folder and (kept := _opened(folder / key)):
        return kept
    try:
        with _place(folder, key) as target:
            if kept := _opened(target):
                return kept
            shutil.rmtree(target, ignore_errors=True)  # damaged
            with whole_folder(target) as part:
                (part / MANIFEST).write_text(json.dumps(write(part)), encoding="utf-8")
            return _opened(target)
    except OSError as error:
        raise MandorlaError(
            f"{error.filename or folder or tempfile.gettempdir()}: what was read cannot be kept ({error.strerror}); "
            "make room, or choose another folder by data.cache"
        ) from error


@contextmanager
def _place(folder: Path | None, key: str) -> Iterator[Path]:
    """Give the path to write to, which no other command writes to meanwhile."""
    if folder and _writable(folder):
        with locked(folder, wait=True):
            yield folder / key
    else:
        with tempfile.TemporaryDirectory(prefix="mandorla-", ignore_cleanup_errors=True) as scratch:
            yield Path(scratch) / key  # mapped files live on until they are let go


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _opened(folder: Path) -> Kept | None:
    """Return what lies in a folder, None if it is not there or damaged."""
    try:
        notes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        paths = {name: folder / f"{number}.npy" for number, name in enumerate(notes["names"])}
        arrays = {name: np.load(path, mmap_mode="r", allow_pickle=False) for name, path in paths.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Kept(arrays, notes)
