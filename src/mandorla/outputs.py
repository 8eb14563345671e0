"""Files out: pictures, volumes and arrays that a model made, each with a note beside it of how it was made.

The note is a JSON file of the same name, `p01.json` beside `p01.nii.gz`, as in derivatives of the Brain Imaging Data
Structure; `dataset_description.json` says for a whole folder what made it. Every file appears whole or not at all, and
its note last: what has a note is done.

Pictures and volumes are on the scale of the training's files, pictures also of the same type; where no picture can hold
it, they show [0, 1] with 8 bits. They say in their text that they are synthetic. Signals and vectors are tables,
`.csv`, what is none of these an array, `.npy`, all on that scale too.

Processes that work together write into one folder, each its own files; the first one makes and ends the folder.

Reference: BIDS derivatives, https://bids-specification.readthedocs.io/en/stable/derivatives/introduction.html.
"""

import csv
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

import mandorla
from mandorla.data.images import can_hold, write_image, write_pixels
from mandorla.data.intensity import Fitted
from mandorla.data.nifti import write_volume
from mandorla.data.samples import Way
from mandorla.errors import MandorlaError
from mandorla.parallel import in_turn, is_first, led, wait
from mandorla.storage import locked, partial, read_json, whole, whole_folder, write_text

DESCRIPTION = "dataset_description.json"
BIDS = "1.10.0"  # version of the specification
SYNTHETIC = json.dumps({"synthetic": True, "mandorla": mandorla.__version__})  # what is said in a picture
_PART = ".part"  # ending of a file that is being written


def origin(weights: Mapping[str, str], settings: Mapping[str, object]) -> dict[str, object]:
    """Return what a note says of all that one call makes: that it is synthetic, the model's `weights`, the settings."""
    return {"synthetic": True, "mandorla": mandorla.__version__, "weights": dict(weights), **settings}


def describe(name: str, made: Mapping[str, object]) -> dict[str, object]:
    """Return the description of a folder in which all was `made` alike; `name` says in words what it holds."""
    maker = {"Name": "mandorla", "Version": mandorla.__version__}
    return {"Name": name, "BIDSVersion": BIDS, "DatasetType": "derivative", "GeneratedBy": [maker], **made}


def write_note(target: Path, note: Mapping[str, object]) -> None:
    """Write the note on the files called `target`, a path without suffix."""
    write_text(note_of(target), json.dumps(note, indent=1))


def note_of(target: Path) -> Path:
    """Return where the note on the files called `target` lies."""
    return target.with_name(f"{target.name}.json")


def write_sample(target: Path, values: np.ndarray, fitted: Fitted, suffix: str = ".png", spread: bool = False) -> None:
    """Write `values` `(C, *size)` in [0, 1], or with `spread` standard deviations of such, to `target` and a suffix.

    Images of one or three channels become pictures with `suffix`, signals `(C, T)` and vectors `(C,)` tables with a
    column for each channel, called as those of the training were, all else an array.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if values.ndim < 3:
        write_table(target, {}, channels_of(fitted, len(values)), np.atleast_2d(fitted.restore(values, spread).T))
    elif values.ndim != 3 or len(values) not in (1, 3):
        stored = fitted.invert(values) - (np.asarray(fitted.usual.low) if spread else 0)
        with whole(target.with_name(f"{target.name}.npy")) as part, part.open("wb") as file:
            np.save(file, stored.astype(np.float32))
    elif can_hold(suffix, fitted.dtype, len(values)):
        write_pixels(target.with_name(target.name + suffix), fitted.restore(values, spread), SYNTHETIC)
    else:
        write_image(target.with_name(target.name + suffix), values, SYNTHETIC)


def channels_of(fitted: Fitted, num: int) -> Sequence[str]:
    """Return the names of the `num` channels of a modality: those of the training's columns, if it read tables."""
    return fitted.columns or [f"channel{number}" for number in range(num)]


def write_table(target: Path, ids: Mapping[str, Sequence[str]], columns: Sequence[str], rows: np.ndarray) -> None:
    """Write `rows` `(N, C)` to `target` and `.csv`: the columns `ids`, and those of the rows; NaN is an empty cell."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole(target.with_name(f"{target.name}.csv")) as part, part.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow([*ids, *columns])
        for *names, row in zip(*ids.values(), rows, strict=True):
            lines.writerow([*names, *("" if value != value else f"{value:.9g}" for value in row)])


def write_on_grid(target: Path, values: np.ndarray, way: Way, like: Path, fitted: Fitted, spread: bool = False) -> None:
    """Write the samples `values` `(S, C, *size)` of a volume to `target` and `.nii.gz`, on the grid that `way` is from.

    They are in [0, 1], or with `spread` standard deviations of such; numbers are stored as in the file `like`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scale, volume = fitted.usual, way.back(values)
    stored = volume * scale.width if spread else scale.invert(volume)
    write_volume(target.with_name(f"{target.name}.nii.gz"), stored, way.grid, like, None if spread else scale)


@contextmanager
def arrays_in(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[dict[str, np.ndarray]]:
    """Give float32 arrays of these `shapes` to be filled, which are on disk meanwhile; then write them as an `.npz`.

    Raises OSError at once where the disk has no room for them.
    """
    files = {name: path.with_name(f".{number}.npy{_PART}") for number, name in enumerate(shapes)}
    with in_turn():
        mode = "w+" if is_first() else "r+"
        arrays = {name: np.lib.format.open_memmap(files[name], mode, np.float32, shapes[name]) for name in shapes}
        if is_first():
            for file in files.values():
                _take_room(file)
    yield arrays
    for array in arrays.values():
        array.flush()
    wait()
    if is_first():
        np.savez(path, **{name: np.load(file, mmap_mode="r") for name, file in files.items()})
        arrays.clear()
        for file in files.values():
            file.unlink()


def _take_room(path: Path) -> None:
    """Let the disk keep free what a file will fill: where it is full later, writing to memory kills the process."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


@contextmanager
def new_folder(target: Path, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside `target`; rename it to `target` if all goes well, else remove it.

    What a killed command left there is removed; folders above `target` that are made for it go again if it fails.
    """
    target = target.resolve()
    with led(_new_folder(target, replace), partial(target)) as folder:
        yield folder


@contextmanager
def _new_folder(target: Path, replace: bool) -> Iterator[Path]:
    if target.exists() and not (target.is_dir() and (replace or not any(target.iterdir()))):
        raise MandorlaError(f"{target}: exists already; name a new folder, or remove this one")
    with _made_for(partial(target), target), whole_folder(target) as folder:
        yield folder


@contextmanager
def continued_folder(target: Path, description: Mapping[str, object]) -> Iterator[Path]:
    """Give the folder `target` to write to: a new one, or that which an earlier call with this `description` began.

    If nothing is written into it, it goes again. Raises `MandorlaError` if another call began it, or is at it.
    """
    target = target.resolve()
    with led(_continued_folder(target, description), target):
        yield target


@contextmanager
def _continued_folder(target: Path, description: Mapping[str, object]) -> Iterator[Path]:
    if target.exists() and not (target.is_dir() and ((target / DESCRIPTION).is_file() or not any(target.iterdir()))):
        raise MandorlaError(f"{target}: exists already; name a new folder, or remove this one")
    with _made_for(target, target), locked(target):
        if (target / DESCRIPTION).is_file():
            _check_same(target, description)
        else:
            write_text(target / DESCRIPTION, json.dumps(description, indent=1))
        for left in target.rglob(f"*{_PART}"):  # of a file that a killed command was at
            left.unlink()
        try:
            yield target
        finally:
            if not any(path.is_file() for path in target.rglob("*") if path.name != DESCRIPTION):
                shutil.rmtree(target)


@contextmanager
def _made_for(folder: Path, target: Path) -> Iterator[None]:
    """Make `folder`; those above it that were made for it go again if they are empty in the end.

    What cannot be written is said to be `target`.
    """
    new = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise MandorlaError(f"{target} cannot be written ({error}): make room, or choose another folder") from error
    finally:
        for parent in new:
            with suppress(OSError):  # not empty: something was written
                parent.rmdir()


def _check_same(target: Path, description: Mapping[str, object]) -> None:
    begun, now = read_json(target / DESCRIPTION), json.loads(json.dumps(description))
    for key in dict.fromkeys([*now, *begun]):
        if begun.get(key) != now.get(key):
            raise MandorlaError(
                f"{target}: was begun with {key} {json.dumps(begun.get(key))}, not {json.dumps(now.get(key))}; name a"
                " new folder, or remove this one"
            )
