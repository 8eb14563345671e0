"""Files in, files out: the work of `mandorla sample` and `translate` over a `Mandorla`.

Arrays are float32 `(N, C, *size)` in [0, 1], one per modality, in an `.npz`; how pictures and volumes are written is
said in `mandorla.outputs`. Memory is bounded, however much there is to be made. Processes that work together divide the
work by whole batches: what goes through the model at once, and so every byte, is as with one process.
"""

import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mandorla.arguments import check_drawn
from mandorla.data import source_of
from mandorla.data.dataset import Modality
from mandorla.data.geometry import across
from mandorla.data.images import TIFF
from mandorla.data.intensity import Fitted
from mandorla.data.nifti import plain_grid, write_volume
from mandorla.data.places import split_place
from mandorla.data.samples import FilesConfig, GeometryConfig, Slices
from mandorla.diffusion.labels import Value, to_labels
from mandorla.errors import MandorlaError, MandorlaWarning, did_you_mean
from mandorla.inputs import Arrays, Input, find_inputs, in_unit, listed, read_arrays, read_input
from mandorla.model import Mandorla
from mandorla.optional import library
from mandorla.outputs import (
    SYNTHETIC,
    arrays_in,
    continued_folder,
    describe,
    new_folder,
    note_of,
    origin,
    write_note,
    write_on_grid,
    write_sample,
)
from mandorla.parallel import gather_texts, is_first, turns, wait, world
from mandorla.pictures import grid

Format = Literal["nifti", "png", "npz"]
Statistic = Literal["mean", "std", "draws"]
_SHOWN = 16  # tuples in a grid


def sample(
    model: Mandorla,
    out: Path | None,
    *,
    num: int,
    seed: int,
    steps: int | None,
    format: Format | None = None,
    labels: Mapping[str, Value] | None = None,
    best_of: int = 1,
) -> Path:
    """Write `num` generated tuples: `<modality>/0000.png`, `grid.png` (a row per modality), `samples.npz`.

    Each is the most consistent of `best_of` draws. Volumes are `<modality>/0000.nii.gz`, with voxels of 1 mm, signals
    and vectors `<modality>/0000.csv`. Beside each is a note of how it was made. With a `format` nothing else is
    written: png pictures, nifti pictures and volumes, npz all arrays. `out` must be new or empty; None stands for
    `samples` in the run folder, which is replaced. Returns the folder.
    """
    settings = {"seed": seed, "labels": dict(labels or {}), "best_of": best_of}
    made = origin(model.hashes, sampling_of(model, steps) | settings)
    _check_format(model, format)
    with new_folder(out or model.run / "samples", replace=out is None) as folder:
        shapes = {m.name: (num, *m.shape) for m in model.modalities}
        with arrays_in(folder / "samples.npz", shapes) if format in (None, "npz") else nullcontext({}) as arrays:
            at_once = max(1, model.at_once // best_of)
            for start in range(0, num, at_once)[turns()]:
                here = min(at_once, num - start)
                drawn = model.sample(here, seed=seed, steps=steps, best_of=best_of, first=start, labels=labels)
                x = to_arrays(drawn.x)
                for name in arrays:
                    arrays[name][start : start + len(x[name])] = x[name]
                write_generated(folder, x, model, format, start, made)
            wait()
            shown = {name: np.array(x[:_SHOWN]) for name, x in arrays.items()}
        if format in (None, "npz") and is_first():
            write_note(folder / "samples", made)
        if shown and format is None and is_first():
            rows = [[torch.from_numpy(image) for image in images] for images in shown.values()]
            (folder / "grid.png").write_bytes(grid(rows, list(shown), note=SYNTHETIC))
    return out or model.run / "samples"


def translate(
    model: Mandorla,
    source: Path,
    out: Path,
    given: Sequence[str],
    wanted: Sequence[str],
    *,
    num_samples: int,
    seed: int,
    steps: int | None = None,
    write: Sequence[Statistic] = ("mean",),
    labels: Mapping[str, Value] | None = None,
) -> Path:
    """Write the modalities `wanted` for every input in `source`, which holds the modalities `given`.

    - `source`: an `.npz`, or what `mandorla.inputs.find_inputs` finds inputs in: files, folders, a BIDS dataset, a
      DICOM series. Files are read as those of the training were
    - `write`: of the draws for an input their mean, `<wanted>/<stem>.png` (`.tif` for TIFF), their standard deviation
      on the same scale, `<wanted>_std/<stem>.png`, each of them, `<wanted>_draw0/<stem>.png` and so on
    - volumes that know where they lie (NIfTI, DICOM) become `<stem>.nii.gz` on the grid of the input; slices without
      foreground are not looked at and become background. Of a BIDS dataset `out` is a derivative dataset:
      `sub-01/anat/sub-01_desc-synthetic_T2w.nii.gz`
    - `num_samples`: 0 for one guess without a draw, see `Mandorla.translate`
    - `labels`: what the inputs have beside their images, of those that stage 2 was trained with
    - beside each is a note of how it was made. An `.npz` gives besides `samples.npz`, with all draws
      `(num_samples, N, C, *size)`

    `out` must be new or empty, or one that the same call began: then it goes on with what is missing. Inputs that
    cannot be read are passed over. Draws depend on (seed, name of the input, number of the slice) alone.

    Returns `out`. Raises `MandorlaError` for whatever in `source` does not fit the model; if some inputs did, in the
    end.
    """
    known = [modality.name for modality in model.modalities]
    for name in [*given, *wanted]:
        if name not in known:
            raise MandorlaError(f"unknown modality {name!r}{did_you_mean(name, known)}; this model has {listed(known)}")
    if "std" in write and num_samples < 2:
        raise MandorlaError("a standard deviation needs two samples at least: raise --num-samples, or leave std out")
    check_drawn(num_samples, labels, steps)
    told = checked_labels(model, labels)
    path, part = split_place(str(source))
    is_arrays = part is None and (path.suffix.lower() == ".npz" or not path.exists())
    asked = [modality for modality in model.modalities if modality.name in given]
    x = read_arrays(source, asked, all_of_them=True) if is_arrays else {}
    inputs = [] if is_arrays else find_inputs(model, source, given)
    if both := sorted(set(wanted) & set(given)):
        raise MandorlaError(f"modality {both[0]!r} is both given and wanted: leave it out of one")
    settings = {"given": list(given), "wanted": list(wanted), "num_samples": num_samples, "seed": seed}
    drawn = {**sampling_of(model, steps), "labels": told} if num_samples else {}
    made = origin(model.hashes if num_samples else {"vae": model.weights}, settings | drawn)
    job = _Job(model, list(wanted), num_samples, max(num_samples, 1), seed, steps, tuple(write), labels, made)
    if is_arrays:
        with new_folder(out) as folder:
            _translate_arrays(job, x, folder, source.name)
        return out
    first = _read_first(job, inputs)
    few = math.ceil(model.at_once / (job.num_made * len(next(iter(first.values.values())))))
    what = {"write": list(write), "Source": os.path.relpath(source, out)}
    description = describe(f"{', '.join(wanted)} from {', '.join(given)}", made | what)
    with continued_folder(out, description) as folder:
        failed = gather_texts(_translate_inputs(job, inputs, few, folder, source))
    if failed:
        counted = f" ({len(failed)} of {len(inputs)} inputs failed" if len(inputs) > 1 else ""
        others = "; the others are there, the same command goes on with these)" if counted else ""
        raise MandorlaError(f"{failed[0]}{counted}{others}")
    return out


# ---------------------------------------------------------------------------------------------------------- translate


class _Job(NamedTuple):
    """Hold what is the same for all inputs of a translation."""

    model: Mandorla
    wanted: list[str]
    num_samples: int
    num_made: int  # of an input: what is drawn, or one guess without a draw
    seed: int
    steps: int | None
    write: tuple[Statistic, ...]
    labels: Mapping[str, Value] | None
    made: dict[str, object]

    def draw(
        self, x: Arrays, keys: Sequence[tuple[int, ...]], where: str, which: slice = slice(None)
    ) -> Iterator[tuple[slice, Arrays]]:
        """Yield the draws `(num_made, B, C, *size)` of each wanted modality for a few rows of `x` at a time.

        `which` of these times are wanted: all, or those of one process. `where` names what is drawn for in a warning
        that it looks like nothing that the model was trained on.
        """
        if found := self.model.strange(x):
            warnings.warn(f"{where}: {found}", MandorlaWarning, stacklevel=3)
        at_once = max(1, self.model.at_once // self.num_made)
        for start in range(0, len(keys), at_once)[which]:
            rows = slice(start, start + at_once)
            here = {name: values[rows] for name, values in x.items()}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", MandorlaWarning)  # of strange inputs: that was said of all together
                drawn = self.model.translate(
                    here,
                    self.wanted,
                    self.num_samples,
                    self.seed,
                    self.steps,
                    keys=list(keys[rows]),
                    labels=self.labels,
                )
            yield rows, to_arrays(drawn)

    def statistics(self, draws: np.ndarray) -> dict[str, np.ndarray]:
        """Return what is to be written of `draws` `(num_made, B, C, *size)`, by name."""
        found = {}
        for kind in self.write:
            if kind == "draws":
                found |= {f"draw{number}": values for number, values in enumerate(draws)}
            else:
                found[kind] = draws.mean(0) if kind == "mean" else draws.std(0, ddof=1)
        return found

    def targets(self, one: Input, folder: Path) -> dict[tuple[str, str], Path]:
        """Return the paths, without suffix, of what becomes of an input, by modality and statistic."""
        draws = [f"draw{number}" for number in range(self.num_made)]
        statistics = [each for kind in self.write for each in (draws if kind == "draws" else [kind])]
        return {(name, each): folder / one.target(name, each) for name in self.wanted for each in statistics}


def _translate_arrays(job: _Job, x: Arrays, folder: Path, source: str) -> None:
    """Write what is wanted of the samples `x` into `folder`, and all draws as `samples.npz`."""
    count, shapes = len(next(iter(x.values()))), {m.name: m.shape for m in job.model.modalities}
    made = job.made | {"Sources": [source]}
    with arrays_in(folder / "samples.npz", {n: (job.num_made, count, *shapes[n]) for n in job.wanted}) as arrays:
        for rows, drawn in job.draw(x, [(index,) for index in range(count)], source, turns()):
            for name, draws in drawn.items():
                arrays[name][:, rows] = draws
                for statistic, values in job.statistics(draws).items():
                    for number, image in enumerate(values, rows.start):
                        target = folder / Input(f"{number:04d}", "", {}).target(name, statistic)
                        if image.ndim == 3 and len(image) in (1, 3):  # all else is in the arrays
                            write_sample(target, image, job.model.intensity[name], spread=statistic == "std")
                            write_note(target, made | {"modality": name, "statistic": statistic})
    if is_first():
        write_note(folder / "samples", made)


def _translate_inputs(job: _Job, inputs: Sequence[Input], few: int, folder: Path, source: Path) -> list[str]:
    """Write what is wanted of the own share of the inputs, `few` at a time, that are not done yet.

    Return what was wrong with those that failed.
    """
    failed: list[str] = []
    with _progress(len(inputs)) as advance:
        for batch in _batches(job, inputs, few, folder, failed, advance):
            x = in_unit(
                job.model,
                {name: [read.values[name] for _, read in batch] for name in batch[0][0].places},
                [one.subject for one, _ in batch],
            )
            counts = [len(next(iter(read.values.values()))) for _, read in batch]
            keys = [(one.number, number) for one, read in batch for number in read.numbers or [0]]
            results: dict[tuple[str, str], np.ndarray] = {}
            where = " to ".join(dict.fromkeys((batch[0][0].name, batch[-1][0].name)))
            for rows, drawn in job.draw(x, keys, where):
                for name, draws in drawn.items():
                    for statistic, values in job.statistics(draws).items():
                        if (name, statistic) not in results:
                            results[name, statistic] = np.empty((len(keys), *values.shape[1:]), np.float32)
                        results[name, statistic][rows] = values
                advance(len(batch) * len(keys[rows]) / len(keys))
            for (one, read), stop, count in zip(batch, np.cumsum(counts), counts, strict=True):
                own = {key: values[stop - count : stop] for key, values in results.items()}
                _write_input(job, one, read, own, folder, source)
    return failed


def _batches(
    job: _Job, inputs: Sequence[Input], few: int, folder: Path, failed: list[str], advance: Callable[[float], None]
) -> Iterator[list[tuple[Input, Slices]]]:
    """Yield own inputs that are not done, read, `few` at a time or more; of a subject that has a range, all at once."""
    together = any(job.model.intensity[name].subjects for name in inputs[0].places)
    ordered = sorted(inputs, key=lambda one: one.subject) if together else inputs
    batches: list[list[list[Input]]] = []
    for _, group in groupby(ordered, key=lambda one: one.subject if together else one.name):
        if not batches or sum(map(len, batches[-1])) >= few:
            batches.append([])
        batches[-1].append(list(group))
    for groups in batches[turns()]:
        batch: list[tuple[Input, Slices]] = []
        for group in groups:
            if all(_is_done(job, one, folder) for one in group):
                advance(len(group))
                continue
            for one in group:
                try:
                    batch.append((one, read_input(job.model, one.places)))
                except MandorlaError as error:
                    failed.append(str(error))
                    advance(1)
        if batch:
            yield batch


def _is_done(job: _Job, one: Input, folder: Path) -> bool:
    return all(note_of(target).is_file() for target in job.targets(one, folder).values())


def _write_input(
    job: _Job,
    one: Input,
    read: Slices,
    results: Mapping[tuple[str, str], np.ndarray],
    folder: Path,
    source: Path,
) -> None:
    """Write the `results` `(S, C, *size)` of one input, which was `read` as S slices or whole."""
    places = list(one.places.values())
    start = source if source.is_dir() else source.parent
    sources = [os.path.relpath(place, start) for place in places]
    sources = [source.resolve().name if path == "." else path for path in sources]
    for (name, statistic), target in job.targets(one, folder).items():
        write_as_read(target, results[name, statistic], one, read, job.model.intensity[name], statistic == "std")
        write_note(target, job.made | {"Sources": sources, "modality": name, "statistic": statistic})


def write_as_read(
    target: Path, values: np.ndarray, one: Input, read: Slices, fitted: Fitted, spread: bool = False
) -> None:
    """Write `values` `(S, C, *size)` that were made of an input, which was `read` as S slices or whole, to `target`.

    Where the input knows where it lies that is a volume on its grid, else a file, or one for each slice.
    """
    like, _ = split_place(str(next(iter(one.places.values()))))
    suffix = ".tif" if like.suffix.lower() in TIFF else ".png"
    if read.way:
        write_on_grid(target, values, read.way, like, fitted, spread)
    elif read.numbers is None:
        write_sample(target, values[0], fitted, suffix, spread)
    else:
        for number, image in zip(read.numbers, values, strict=True):
            write_sample(target.with_name(f"{target.name}_s{number:03d}"), image, fitted, suffix, spread)


def _read_first(job: _Job, inputs: Sequence[Input]) -> Slices:
    """Return the first input that can be read.

    Raises `MandorlaError` if none can, or it is a volume, on whose grid what is wanted has no place.
    """
    mistakes: list[MandorlaError] = []
    for one in inputs:
        try:
            read = read_input(job.model, one.places)
            break
        except MandorlaError as error:
            mistakes.append(error)
    else:
        raise mistakes[0]
    sizes = {modality.name: modality.size for modality in job.model.modalities}
    for name in job.wanted:
        if read.way and len(sizes[name]) != len(sizes[next(iter(one.places))]):
            raise MandorlaError(f"modality {name!r} is no volume, it has no place on the grid of {one.name}")
    return read


@contextmanager
def _progress(num: int) -> Iterator[Callable[[float], None]]:
    """Show how many of `num` inputs are done, if there is someone to look; give what counts them, also in parts.

    Of several processes the first shows how far all are, if they are as far as it is.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not (console.is_terminal and is_first())) as progress:
        task = progress.add_task(f"{num} input{'s' * (num > 1)}", total=num)
        yield lambda part: progress.advance(task, part * world())


# ------------------------------------------------------------------------------------------------------------ inside


def checked_labels(model: Mandorla, labels: Mapping[str, Value] | None) -> dict[str, Value]:
    """Return labels that are asked for. Raises MandorlaError for those that stage 2 was not trained with."""
    if labels:
        to_labels(labels, model.diffusion.labels, 1)
    return dict(labels or {})


def sampling_of(model: Mandorla, steps: int | None) -> dict[str, object]:
    """Return what decides how samples are drawn, but the seed."""
    sampling = model.sampling if steps is None else model.sampling.model_copy(update={"steps": steps})
    return sampling.model_dump(mode="json", exclude={"residual_steps"}) | refining_of(model)


def refining_of(model: Mandorla) -> dict[str, object]:
    """Return what decides how detail is drawn, but the seed; nothing where there is no refiner."""
    if not model.refiner:
        return {}
    return {f"refiner_{key}": getattr(model.refining, key) for key in ("steps", "temperature", "guidance")}


def to_arrays(x: Mapping[str, Tensor]) -> Arrays:
    """Return tensors as arrays."""
    return {name: value.detach().cpu().numpy() for name, value in x.items()}


def _file_of(modality: Modality, format: Format | None) -> Literal["png", "nifti", "csv"] | None:
    """Return what a file of one modality is in a `format`, by default as fits it; None if there is none."""
    if len(modality.size) < 2:
        return None if format else "csv"
    if len(modality.size) == 2 and modality.channels in (1, 3):
        return None if format == "npz" else format or "png"
    return "nifti" if len(modality.size) == 3 and format in (None, "nifti") else None


def _check_format(model: Mandorla, format: Format | None) -> None:
    """Raise `MandorlaError` if no modality can be written in a `format`; warn of those that cannot.

    Warn too of volumes of which nobody knows which way is up.
    """
    data, volumes = source_of(model.recipe.data), [m for m in model.modalities if _file_of(m, format) == "nifti"]
    if volumes and isinstance(data, FilesConfig) and data.geometry.axes is None:
        text = "the recipe keeps the axes of the files (data.geometry.axes null), which are not known here"
        warnings.warn(f"volumes are written as if theirs led to IPL: {text}", MandorlaWarning, stacklevel=3)
    lacking = [modality.name for modality in model.modalities if not _file_of(modality, format)]
    if format in (None, "npz") or not lacking:
        return
    if len(lacking) == len(model.modalities):
        raise MandorlaError(f"--format {format}: {listed(lacking)} cannot be written so: use npz, which holds anything")
    text = f"--format {format}: {listed(lacking)} cannot be written so and is left out; npz holds anything"
    warnings.warn(text, MandorlaWarning, stacklevel=3)


def write_generated(
    folder: Path, x: Arrays, model: Mandorla, format: Format | None, first: int, made: Mapping[str, object]
) -> None:
    """Write a file and a note for each generated sample of each modality, numbered from `first`."""
    data = source_of(model.recipe.data)
    config = data if isinstance(data, FilesConfig) else FilesConfig()
    axes = config.geometry.axes or GeometryConfig().axes
    cut = across(config.slices.axis, axes) if config.slices else 0
    for modality in (modality for modality in model.modalities if modality.name in x):
        name, fitted = modality.name, model.intensity[modality.name]
        kind = _file_of(modality, format)
        if kind == "nifti" and format is None and not _has_nibabel(name):
            continue
        for number, values in enumerate(x[name] if kind else (), first):
            target = folder / name / f"{number:04d}"
            if kind != "nifti":
                write_sample(target, values, fitted)
            else:
                volume = fitted.invert(values if values.ndim == 4 else np.expand_dims(values, cut + 1))
                target.parent.mkdir(parents=True, exist_ok=True)
                write_volume(target.with_name(f"{target.name}.nii.gz"), volume, plain_grid(volume.shape[1:], axes))
            write_note(target, {**made, "modality": name, "number": number})


def _has_nibabel(name: str) -> bool:
    try:
        library("nibabel", "medical")
    except MandorlaError as error:
        warnings.warn(f"{name}: the volumes are in the .npz alone; {error}", MandorlaWarning, stacklevel=4)
        return False
    return True
