"""Files in, files out: the work of `mandorla sample`, `translate` and `encode` over a `Mandorla`.

Arrays are float32 `(N, C, *size)` in [0, 1], one per modality, in an `.npz`; how pictures and volumes are written is
said in `mandorla.outputs`. Memory is bounded, however much there is to be made. Processes that work together divide the
work by whole batches: what goes through the model at once, and so every byte, is as with one process.
"""

import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mandorla.data import source_of
from mandorla.data.dataset import Modality
from mandorla.data.geometry import across
from mandorla.data.images import TIFF
from mandorla.data.intensity import Fitted
from mandorla.data.nifti import plain_grid, write_volume
from mandorla.data.places import split_place
from mandorla.data.samples import FilesConfig, GeometryConfig, Slices, to_id
from mandorla.diffusion.labels import Value, to_labels
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.inputs import Input, count, find_inputs, in_unit, read_input, take
from mandorla.model import Mandorla
from mandorla.optional import library
from mandorla.outputs import (
    DESCRIPTION,
    SYNTHETIC,
    arrays_in,
    channels_of,
    continued_folder,
    describe,
    new_folder,
    note_of,
    origin,
    write_note,
    write_on_grid,
    write_sample,
    write_table,
)
from mandorla.parallel import alike, gather_texts, is_first, turns, wait, world
from mandorla.pictures import grid, tile
from mandorla.progress import progress_bar
from mandorla.rows import Arrays, SampleRows, by_subset, listed, numbered, read_rows
from mandorla.storage import write_text

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
    `<modality>/0000.csv`, all vectors of a modality one table `<modality>.csv`, with the numbers of the samples in the
    column `sample`. Beside each is a note of how it was made. With a `format` nothing else is
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
            if format is None and is_first():
                write_vectors(folder, arrays, model, numbered(range(num)), made)
            shown = {name: np.array(x[:_SHOWN]) for name, x in arrays.items()}
        if format in (None, "npz") and is_first():
            write_note(folder / "samples", made)
        if shown and format is None and is_first():
            columns = {name: fitted.columns for name, fitted in model.intensity.items()}
            rows = [[tile(torch.from_numpy(x), columns[name]) for x in images] for name, images in shown.items()]
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
    complete: bool = False,
) -> Path:
    """Write the modalities `wanted` for every input in `source`, made of those of the modalities `given` that it has.

    - `source`: what `mandorla.rows.read_rows` reads, an `.npz` or a table with a row per sample; or where
      `mandorla.inputs.find_inputs` finds inputs: files, folders, a BIDS dataset, a DICOM series. Files are read as
      those of the training were
    - `complete`: whether inputs that lack a given modality are passed over; else a warning says how many have which
    - `write`: of the draws for an input their mean, `<wanted>/<stem>.png` (`.tif` for TIFF), their standard deviation
      on the same scale, `<wanted>_std/<stem>.png`, each of them, `<wanted>_draw0/<stem>.png` and so on
    - volumes that know where they lie (NIfTI, DICOM) become `<stem>.nii.gz` on the grid of the input; slices without
      foreground are not looked at and become background. Of a BIDS dataset `out` is a derivative dataset:
      `sub-01/anat/sub-01_desc-synthetic_T2w.nii.gz`
    - `num_samples`: 0 for one guess without a draw, see `Mandorla.translate`
    - `labels`: what the inputs have beside their images, of those that stage 2 was trained with
    - beside each is a note of how it was made. An `.npz` or a table gives besides `samples.npz`, with all draws
      `(num_samples, N, C, *size)`, and of vectors a table with a row per sample, `<wanted>.csv`, `<wanted>_std.csv`

    `out` must be new or empty, or one that the same call began: then it goes on with what is missing. Inputs that
    cannot be read are passed over. Draws depend on (seed, name of the input, number of the slice) alone.

    Returns `out`. Raises `MandorlaError` for whatever in `source` does not fit the model; if some inputs did, in the
    end.
    """
    model.arguments.translation(given, wanted, num_samples, labels, steps)
    if "std" in write and num_samples < 2:
        raise MandorlaError("a standard deviation needs two samples at least: raise --num-samples, or leave std out")
    told = checked_labels(model, labels)
    samples = read_rows(model, source, given)
    inputs = [] if samples else find_inputs(model, source, given)
    settings = {"given": list(given), "wanted": list(wanted), "num_samples": num_samples, "seed": seed}
    drawn = {**sampling_of(model, steps), "labels": told} if num_samples else {}
    made = origin(model.hashes if num_samples else {"vae": model.weights}, settings | drawn)
    job = _Job(model, list(wanted), num_samples, max(num_samples, 1), seed, steps, tuple(write), labels, made)
    if samples:
        samples = samples.take(source, complete)
        with new_folder(out) as folder:
            _translate_rows(job, samples, folder, source.name)
        return out
    inputs = take(inputs, source, complete)
    few = math.ceil(model.at_once / (job.num_made * count(_read_first(model, inputs, wanted))))
    what = {"write": list(write), "Source": os.path.relpath(source, out)}
    description = describe(f"{', '.join(wanted)} from {', '.join(given)}", made | what)
    with continued_folder(out, description) as folder:
        failed = gather_texts(_translate_inputs(job, inputs, few, folder, source))
    _raise_failed(failed, len(inputs), "the others are there, the same command goes on with these")
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
        self, x: Arrays, present: Arrays, keys: Sequence[tuple[int, ...]], where: str, which: slice = slice(None)
    ) -> Iterator[tuple[list[int], Arrays]]:
        """Yield the draws `(num_made, B, C, *size)` of each wanted modality for a few rows of `x` at a time.

        Each is made of what is `present[name]` `(N,)` of it. `which` of these times are wanted: all, or those of one
        process. `where` names what is drawn for in a warning that it looks like nothing that the model was trained on.
        """
        if found := self.model.strange({name: values[present[name]] for name, values in x.items()}):
            warnings.warn(f"{where}: {found}", MandorlaWarning, stacklevel=3)
        few = max(1, self.model.at_once // self.num_made)
        subsets = by_subset(present).items()
        parts = [(names, rows[start : start + few]) for names, rows in subsets for start in range(0, len(rows), few)]
        for names, rows in parts[which]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", MandorlaWarning)  # of strange inputs: that was said of all together
                drawn = self.model.translate(
                    {name: x[name][rows] for name in names},
                    self.wanted,
                    self.num_samples,
                    self.seed,
                    self.steps,
                    keys=[keys[row] for row in rows],
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


def _translate_rows(job: _Job, samples: SampleRows, folder: Path, source: str) -> None:
    """Write what is wanted of samples that were read whole into `folder`, and all draws as `samples.npz`."""
    num, shapes = len(samples.numbers), {m.name: m.shape for m in job.model.modalities}
    made = job.made | {"Sources": [source]}
    keys = [(number,) for number in samples.numbers]
    with arrays_in(folder / "samples.npz", {n: (job.num_made, num, *shapes[n]) for n in job.wanted}) as arrays:
        for rows, drawn in job.draw(samples.x, samples.present, keys, source, turns()):
            given = [name for name, present in samples.present.items() if present[rows[0]]]
            for name, draws in drawn.items():
                arrays[name][:, rows] = draws
                for statistic, values in job.statistics(draws).items():
                    for row, image in zip(rows, values, strict=True):
                        target = folder / Input(f"{samples.numbers[row]:04d}", "", {}).target(name, statistic)
                        if image.ndim == 3 and len(image) in (1, 3):  # all else is in the arrays, or in a table
                            write_sample(target, image, job.model.intensity[name], spread=statistic == "std")
                            write_note(target, made | {"given": given, "modality": name, "statistic": statistic})
        wait()
        if is_first():
            for name in (name for name in arrays if len(shapes[name]) == 1):
                for statistic, values in job.statistics(np.array(arrays[name])).items():
                    write_vectors(folder, {name: values}, job.model, samples.ids, made, statistic)
    if is_first():
        write_note(folder / "samples", made)


def _translate_inputs(job: _Job, inputs: Sequence[Input], few: int, folder: Path, source: Path) -> list[str]:
    """Write what is wanted of the own share of the inputs, `few` at a time, that are not done yet.

    Return what was wrong with those that failed.
    """
    failed: list[str] = []
    with _progress(len(inputs)) as advance:
        for batch in _batches(job.model, inputs, few, partial(_is_done, job, folder), failed, advance, turns()):
            x, present = in_unit(job.model, batch)
            counts = [count(read) for _, read in batch]
            keys = [(one.number, number) for one, read in batch for number in read.numbers or [0]]
            results: dict[tuple[str, str], np.ndarray] = {}
            where = " to ".join(dict.fromkeys((batch[0][0].name, batch[-1][0].name)))
            for rows, drawn in job.draw(x, present, keys, where):
                for name, draws in drawn.items():
                    for statistic, values in job.statistics(draws).items():
                        if (name, statistic) not in results:
                            results[name, statistic] = np.empty((len(keys), *values.shape[1:]), np.float32)
                        results[name, statistic][rows] = values
                advance(len(batch) * len(rows) / len(keys))
            for (one, read), stop, num in zip(batch, np.cumsum(counts), counts, strict=True):
                own = {key: values[stop - num : stop] for key, values in results.items()}
                _write_input(job, one, read, own, folder, source)
    return failed


def _batches(
    model: Mandorla,
    inputs: Sequence[Input],
    few: int,
    is_done: Callable[[Input], bool],
    failed: list[str],
    advance: Callable[[float], None],
    which: slice = slice(None),
) -> Iterator[list[tuple[Input, Slices]]]:
    """Yield inputs that are not done, read, `few` at a time or more; of a subject that has a range, all at once.

    `which` of these times are wanted. What is wrong with those that cannot be read goes to `failed`.
    """
    together = any(model.intensity[name].subjects for one in inputs for name in one.places)
    ordered = sorted(inputs, key=lambda one: one.subject) if together else inputs
    batches: list[list[list[Input]]] = []
    for _, group in groupby(ordered, key=lambda one: one.subject if together else one.name):
        if not batches or sum(map(len, batches[-1])) >= few:
            batches.append([])
        batches[-1].append(list(group))
    for groups in batches[which]:
        batch: list[tuple[Input, Slices]] = []
        for group in groups:
            if all(map(is_done, group)):
                advance(len(group))
                continue
            for one in group:
                try:
                    batch.append((one, read_input(model, one.places)))
                except MandorlaError as error:
                    failed.append(str(error))
                    advance(1)
        if batch:
            yield batch


def _is_done(job: _Job, folder: Path, one: Input) -> bool:
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
        own = {"given": list(one.places), "Sources": sources, "modality": name, "statistic": statistic}
        write_note(target, job.made | own)


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


def _read_first(model: Mandorla, inputs: Sequence[Input], wanted: Sequence[str]) -> Slices:
    """Return the first input that can be read.

    Raises `MandorlaError` if none can, or it is a volume, on whose grid what is `wanted` has no place.
    """
    mistakes: list[MandorlaError] = []
    for one in inputs:
        try:
            read = read_input(model, one.places)
            break
        except MandorlaError as error:
            mistakes.append(error)
    else:
        raise mistakes[0]
    sizes = {modality.name: modality.size for modality in model.modalities}
    for name in wanted:
        if read.way and len(sizes[name]) != len(sizes[next(iter(one.places))]):
            raise MandorlaError(f"modality {name!r} is no volume, it has no place on the grid of {one.name}")
    return read


@contextmanager
def _progress(num: int) -> Iterator[Callable[[float], None]]:
    """Show how many of `num` inputs are done, if there is someone to look; give what counts them, also in parts.

    Of several processes the first shows how far all are, if they are as far as it is.
    """
    with progress_bar() as bar:
        task = bar.add_task(f"{num} input{'s' * (num > 1)}", total=num)
        yield lambda part: bar.advance(task, part * world())


# ------------------------------------------------------------------------------------------------------------- encode


def encode(
    model: Mandorla,
    source: Path,
    out: Path,
    given: Sequence[str] = (),
    *,
    residual: bool = False,
    complete: bool = False,
) -> Path:
    """Write the latents of every sample in `source`: of its modalities `given`, or without any, of all that are there.

    `source` and `complete` are those of `translate`. The new folder `out` has

    - `latents.npz`: row by row `shared` `(N, *shape)`, read from all that a sample has, `shared_from_<modality>`, read
      from it alone, `private_<modality>`, the mean of its posterior, and, if wanted, `residual_<modality>`, see
      `Mandorla.to_residual`; in the scale of stage 1, NaN where a sample lacks the modality. `id_sample` `(N,)` is the
      name of the file, with the number of the slice; of a table each column beside the modalities is `id_<column>`
    - of codes that are vectors a table with a row per sample as well: `shared.csv`, `private_<modality>.csv`
    - `dataset_description.json`, of what they were made

    All codes are in memory at once. Returns `out`. Raises `MandorlaError` for whatever in `source` does not fit the
    model; if some inputs did, in the end.
    """
    model.arguments.names(given)
    samples = read_rows(model, source, given)
    samples = samples and samples.take(source, complete)
    inputs = [] if samples else take(find_inputs(model, source, given), source, complete)
    few = 0 if samples else math.ceil(model.at_once / count(_read_first(model, inputs, ())))
    failed: list[str] = []
    with new_folder(out) as folder, alike():
        if samples:
            parts = [(samples.ids, _codes(model, samples.x, samples.present, residual))]
        else:
            parts = list(_codes_of_inputs(model, inputs, few, residual, failed))
        if is_first():
            settings = {"synthetic": False, "Sources": [source.name], "residual": residual}
            _write_codes(folder, parts, origin(model.hashes if residual else {"vae": model.weights}, settings))
    _raise_failed(failed, len(inputs), "the others are there")
    return out


def _codes_of_inputs(
    model: Mandorla, inputs: Sequence[Input], few: int, residual: bool, failed: list[str]
) -> Iterator[tuple[Mapping[str, list[str]], Arrays]]:
    """Yield the ids and the codes of inputs, `few` at a time; what is wrong with some goes to `failed`."""
    with _progress(len(inputs)) as advance:
        for batch in _batches(model, inputs, few, lambda one: False, failed, advance):
            ids = [to_id(one.name, number) for one, read in batch for number in read.numbers or [None]]
            yield {"sample": ids}, _codes(model, *in_unit(model, batch), residual)
            advance(len(batch) / world())


def _codes(model: Mandorla, x: Arrays, present: Arrays, residual: bool) -> Arrays:
    """Return the codes `(N, *shape)` of samples, by name, NaN where one lacks a modality."""

    def spread(rows: np.ndarray, values: Tensor) -> np.ndarray:
        whole = np.full((len(rows), *values.shape[1:]), np.nan, np.float32)
        whole[rows] = values.cpu().numpy()
        return whole

    latents = model.encode(x, {name: torch.from_numpy(rows) for name, rows in present.items()})
    private = {"private": latents.private} | ({"residual": model.to_residual(latents).private} if residual else {})
    codes = to_arrays({"shared": latents.shared})
    for name, rows in present.items():
        if rows.any():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", MandorlaWarning)  # of strange inputs: that was said of all together
                codes[f"shared_from_{name}"] = spread(rows, model.encode({name: x[name][rows]}).shared)
            codes |= {f"{what}_{name}": spread(rows, z[name][torch.from_numpy(rows)]) for what, z in private.items()}
    return codes


def _write_codes(
    folder: Path, parts: Sequence[tuple[Mapping[str, Sequence[str]], Arrays]], made: Mapping[str, object]
) -> None:
    """Write the ids and codes of all samples, part by part, as arrays, and those that are vectors as tables."""
    ids = {name: [cell for own, _ in parts for cell in own[name]] for name in parts[0][0]}
    shapes = {name: z.shape[1:] for _, codes in parts for name, z in codes.items()}
    nothing = {name: np.full((1, *shape), np.nan, np.float32) for name, shape in shapes.items()}
    codes = {
        name: np.concatenate([own.get(name, nothing[name].repeat(len(own["shared"]), 0)) for _, own in parts])
        for name in shapes
    }
    np.savez(folder / "latents.npz", **{f"id_{name}": np.array(cells) for name, cells in ids.items()}, **codes)
    write_text(folder / DESCRIPTION, json.dumps(describe("latents", made), indent=1))
    for name, z in codes.items():
        if z.ndim == 2:
            write_table(folder / name, ids, [f"{name}_{number}" for number in range(z.shape[1])], z)


# ------------------------------------------------------------------------------------------------------------ inside


def _raise_failed(failed: Sequence[str], num: int, others: str) -> None:
    """Raise MandorlaError with what was wrong with the first that `failed` of `num` inputs, if any did."""
    if failed:
        counted = f" ({len(failed)} of {num} inputs failed; {others})" if num > 1 else ""
        raise MandorlaError(f"{failed[0]}{counted}")


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
        return "csv" if modality.size and not format else None
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
    """Write a file and a note for each generated sample of each modality but vectors, numbered from `first`."""
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


def write_vectors(
    folder: Path,
    x: Arrays,
    model: Mandorla,
    ids: Mapping[str, Sequence[str]],
    made: Mapping[str, object],
    statistic: str = "",
) -> None:
    """Write of each modality in `x` that is a vector, `(N, C)` in [0, 1], a table with a row per sample, and a note.

    Each row begins with the sample's `ids`; `statistic` says what of draws they are, if they are.
    """
    for name in (modality.name for modality in model.modalities if modality.name in x and not modality.size):
        target, fitted = folder / Input("", "", {}).target(name, statistic or "mean"), model.intensity[name]
        columns = channels_of(fitted, x[name].shape[1])
        write_table(target, ids, columns, fitted.restore(x[name], spread=statistic == "std"))
        write_note(target, {**made, "modality": name} | ({"statistic": statistic} if statistic else {}))


def _has_nibabel(name: str) -> bool:
    try:
        library("nibabel", "medical")
    except MandorlaError as error:
        warnings.warn(f"{name}: the volumes are in the .npz alone; {error}", MandorlaWarning, stacklevel=4)
        return False
    return True
