"""Files and folders that are there whole or not at all, and small files of a run, read with a clear error."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mandorla.errors import MandorlaError

try:
    import fcntl
except ImportError:
    fcntl = None

SPLITS, INTENSITY = "splits.json", "intensity.json"  # what a run keeps of its data


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a run, by what it keeps of its data."""
    return (folder / SPLITS).is_file() and (folder / INTENSITY).is_file()


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; rename it into place if all goes well, else remove it.

    Raises MandorlaError where it cannot be written, as on a full disk.
    """
    part = path.with_name(path.name + ".part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())  # before the name: else a power cut may leave the name and nothing behind it
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        raise MandorlaError(f"{path} cannot be written ({error}): make room, or choose another folder") from error
    finally:
        with suppress(OSError):  # of a disk that may only be read, which the error above says
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write the file `path` whole or not at all."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write the file `path` whole or not at all."""
    with whole(path) as part:
        part.write_bytes(content)


def partial(target: Path) -> Path:
    """Return the folder beside `target` in which `whole_folder` lets it be written."""
    return target.with_name(f".{target.name}.partial")


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder beside `target` to write to; it takes the place of `target` if all goes well, else it goes.

    At no moment is there half of a folder under the target's name; what a killed command left beside it is removed.
    Raises MandorlaError if another command is writing there.
    """
    folder, old = partial(target), target.with_name(f".{target.name}.old")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield folder
            shutil.rmtree(old, ignore_errors=True)
            if target.exists():
                target.rename(old)
            folder.rename(target)
        finally:
            if old.exists() and not target.exists():
                old.rename(target)
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Return what the JSON file at `path` holds, a mapping with `keys`. Raises MandorlaError if it does not."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise MandorlaError(f"{path} cannot be read ({error}): restore it, or delete {path.parent}") from error
    if not isinstance(content, dict) or not content.keys() >= set(keys):
        raise MandorlaError(f"{path} does not hold {', '.join(keys)}: restore it, or delete {path.parent}")
    return content


@contextmanager
def locked(place: Path, wait: bool = False) -> Iterator[None]:
    """Keep other commands from writing at `place` at the same time; the system lets go of it if this one is killed.

    `place` is a folder, which is kept from commands on this machine, or the path of a file that is made for it, which
    is kept from those on other machines too. If another command is at it, waits for it or raises MandorlaError. On
    Windows nothing is noticed.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(place, os.O_RDONLY if place.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    except BlockingIOError as error:
        raise MandorlaError(f"{place}: another command is writing here; wait for it, or stop it") from error
    finally:
        os.close(handle)
