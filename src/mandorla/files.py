"""Files in, files out: the work of `mandorla sample`, `translate` and `swap` over a `Mandorla`.

Arrays are float32 `(N, C, *size)` in [0, 1], one per modality, in an `.npz`. Pictures and volumes are on the scale of
the training's files, pictures also of the same type; where no picture can hold it, they show [0, 1] with 8 bits. Input
is checked before the model runs. A folder appears under its name only when everything in it has been written.
"""

import difflib
import re
import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from mandorla.data import source_of
from mandorla.data.dataset import Modality
from mandorla.data.export import plain_grid, write_volume
from mandorla.data.folders import FoldersConfig
from mandorla.data.images import TIFF, can_hold, write_image, write_pixels
from mandorla.data.intensity import Fitted
from mandorla.data.readers import SUFFIXES, find, is_series, library, split_place, stem
from mandorla.data.samples import FilesConfig, GeometryConfig, Slices, read_slices
from mandorla.data.stored import StoredConfig
from mandorla.diffusion.labels import Given
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.model import Mandorla
from mandorla.pictures import grid
from mandorla.storage import locked

Arrays = dict[str, np.ndarray]


def sample(
    model: Mandorla, out: Path | None, *, num: int, seed: int, steps: int | None, labels: Given | None = None
) -> Path:
    """Write `num` generated tuples: `<modality>/0000.png`, `grid.png` (a row per modality), `samples.npz`.

    Volumes are `<modality>/0000.nii.gz`, with voxels of 1 mm, signals and vectors `<modality>/0000.csv`. `out` must be
    new or empty; None stands for `samples` in the run folder, which is replaced. Returns the folder.
    """
    with _new_folder(out or model.run / "samples", replace=out is None) as folder:
        x = model.sample(num, seed=seed, steps=steps, labels=labels).x
        _write_generated(folder, "samples.npz", x, model)
        if shown := [name for name in x if x[name].ndim > 3]:
            (folder / "grid.png").write_bytes(grid([x[name][:16] for name in shown], shown))
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
) -> Path:
    """Write the modalities `wanted` for every input in `source`, which holds the modalities `given`.

    - `source`: an `.npz`; a folder with one sub-folder of files per given modality, paired by file stem; or, where one
      modality is given, a folder of files, or one place: a file, a part of it (`case.nii.gz:0`), a folder with a DICOM
      series. Files are read as those of the training were
    - `out` must be new or empty. It gets `<wanted>/<stem>.png` (`.tif` for TIFF, `.csv` of signals and vectors), the
      mean of the samples, `<wanted>_std/<stem>.png`, their standard deviation on the same scale (where there is more
      than one), `samples.npz` with all samples `(num_samples, N, C, *size)`, and `names.txt` with the stem of each of
      the N inputs
    - for volumes that know where they lie (NIfTI, DICOM) it gets, instead of pictures and arrays,
      `<wanted>/<stem>.nii.gz` and `<wanted>_std/<stem>.nii.gz` on the grid of the input; slices without foreground are
      not looked at and become background

    Returns `out`. Raises `MandorlaError` for whatever in `source` does not fit the model.
    """
    modalities = {modality.name: modality for modality in model.modalities}
    for name in [*given, *wanted]:
        if name not in modalities:
            raise MandorlaError(
                f"unknown modality {name!r}{_nearest(name, modalities)}; this model has {_list(modalities)}"
            )
    asked, suffix = [modalities[name] for name in given], ".png"
    path, part = split_place(str(source))
    if part is None and (path.suffix.lower() == ".npz" or not path.exists()):
        x, names = _read_arrays(source, asked)
    else:
        config = _reading(model)
        stems, files = _find_inputs(source, asked, config)
        inputs = [_read_one({name: paths[stems[0]] for name, paths in files.items()}, asked, config)]
        if inputs[0].way:
            return _translate_volumes(model, stems, files, config, out, asked, wanted, num_samples, seed)
        inputs += [_read_one({name: paths[one] for name, paths in files.items()}, asked, config) for one in stems[1:]]
        subjects = [_subject(source_of(model.recipe.data), one) for one in stems]
        x = _to_unit(model, {name: [read.values[name] for read in inputs] for name in given}, subjects)
        names = [
            one if number is None else f"{one}_s{number:03d}"
            for one, read in zip(stems, inputs, strict=True)
            for number in read.numbers or [None]
        ]
        if any(split_place(str(place))[0].suffix.lower() in TIFF for place in files[given[0]].values()):
            suffix = ".tif"
    with _new_folder(out) as folder:
        samples = _arrays(model.translate(x, list(wanted), num_samples=num_samples, seed=seed))
        np.savez(folder / "samples.npz", **samples)
        (folder / "names.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        for name, images in samples.items():
            fitted = model.intensity[name]
            _write_files(folder / name, names, images.mean(0), fitted, suffix)
            if num_samples > 1:
                _write_files(folder / f"{name}_std", names, images.std(0, ddof=1), fitted, suffix, spread=True)
    return out


def _translate_volumes(
    model: Mandorla,
    stems: Sequence[str],
    files: Mapping[str, Mapping[str, Path]],
    config: FilesConfig,
    out: Path,
    given: Sequence[Modality],
    wanted: Sequence[str],
    num_samples: int,
    seed: int,
) -> Path:
    """Write the `wanted` volumes one input after another, for all together may not fit into memory."""
    for modality in model.modalities:
        if modality.name in wanted and len(modality.size) != len(given[0].size):
            raise MandorlaError(f"modality {modality.name!r} is no volume, it has no place on the grid of {stems[0]}")
    with _new_folder(out) as folder:
        (folder / "names.txt").write_text("".join(f"{name}\n" for name in stems), encoding="utf-8")
        for name in wanted:
            (folder / name).mkdir()
            if num_samples > 1:
                (folder / f"{name}_std").mkdir()
        for one in stems:
            places = {name: paths[one] for name, paths in files.items()}
            read = _read_one(places, given, config)
            x = _to_unit(model, {name: [read.values[name]] for name in places}, [one])
            samples = _arrays(model.translate(x, list(wanted), num_samples=num_samples, seed=seed))
            like, _ = split_place(str(places[given[0].name]))
            for name, images in samples.items():
                scale = model.intensity[name].usual
                mean = scale.invert(read.way.back(images.mean(0)))
                write_volume(folder / name / f"{one}.nii.gz", mean, read.way.grid, like, scale)
                if num_samples > 1:
                    spread = read.way.back(images.std(0, ddof=1)) * scale.width
                    write_volume(folder / f"{name}_std" / f"{one}.nii.gz", spread, read.way.grid, like)
    return out


def swap(model: Mandorla, shared_from: str, private_from: str, out: Path | None) -> Path:
    """Write samples with the shared part of one input and the private parts of another.

    - each input: an index into the run's test split, or an `.npz` with arrays of all or some modalities
    - `out` as in `sample`, by default `swap` in the run folder. It gets the joined samples as `sample` writes its own,
      the arrays as `swap.npz`, and `grid.png` (top to bottom: shared from, private from, joined; left to right: the
      modalities)

    Returns the folder.
    """
    shared, private = _read_sample(model, shared_from), _read_sample(model, private_from)
    counts = [len(next(iter(x.values()))) for x in (shared, private)]
    if counts[0] != counts[1]:
        raise MandorlaError(f"{shared_from} holds {counts[0]} samples, {private_from} holds {counts[1]}: give as many")
    with _new_folder(out or model.run / "swap", replace=out is None) as folder:
        joined = model.swap(shared_from=shared, private_from=private)
        _write_generated(folder, "swap.npz", joined, model)
        if shown := [name for name in joined if joined[name].ndim > 3]:
            columns = [(name, index) for index in range(min(counts[0], 8)) for name in shown]
            rows = [
                [torch.as_tensor(x[name][index]) if name in x else None for name, index in columns]
                for x in (shared, private, joined)
            ]
            names = ["shared from", "private from", "joined"]
            bands = range(len(shown), len(columns), len(shown))
            (folder / "grid.png").write_bytes(grid(rows, names, [name for name, _ in columns], ((), bands)))
    return out or model.run / "swap"


# -------------------------------------------------------------------------------------------------------------- input


def _read_arrays(source: Path, given: Sequence[Modality]) -> tuple[Arrays, list[str]]:
    """Return the arrays of the modalities `given` in an `.npz`, and a name for each sample."""
    x = _read_npz(source, given)
    if missing := [modality.name for modality in given if modality.name not in x]:
        raise MandorlaError(f"{source}: no array for {_list(missing)}; add it, or leave it out of what is given")
    return x, _numbers(len(next(iter(x.values()))))


def _read_npz(path: Path, modalities: Sequence[Modality]) -> Arrays:
    """Return the arrays in `path` that are named like one of `modalities`, checked."""
    if not path.exists():
        raise MandorlaError(f"{path}: no such file or folder; mend the path")
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: np.asarray(archive[name]) for name in archive.files}
    except (AttributeError, EOFError, MemoryError, OSError, TypeError, ValueError, BadZipFile, zlib.error) as error:
        raise MandorlaError(f"{path}: not a whole .npz file of plain arrays; write it anew with numpy.savez") from error
    x = {
        modality.name: _checked(found[modality.name], modality, f"{path}: array {modality.name!r}")
        for modality in modalities
        if modality.name in found
    }
    names = [modality.name for modality in modalities]
    if not x:
        raise MandorlaError(f"{path}: expected arrays named {_list(names)}, got {_list(found) or 'none'}")
    if len({len(array) for array in x.values()}) > 1:
        counts = ", ".join(f"{name} {len(array)}" for name, array in x.items())
        raise MandorlaError(f"{path}: arrays of different length ({counts}): a sample has the same index in each")
    return x


def _find_inputs(
    source: Path, given: Sequence[Modality], config: FilesConfig
) -> tuple[list[str], dict[str, dict[str, Path]]]:
    """Return the stems of the inputs under `source`, sorted, and by modality the place of each."""
    if not source.is_dir():
        if len(given) > 1:
            raise MandorlaError(f"{source}: one file, but several given modalities: give a folder with one folder each")
        name = stem(split_place(str(source))[0])
        return [name], {given[0].name: {name: source}}
    files = {}
    for modality in given:
        folder = source / modality.name
        if not folder.is_dir() and len(given) > 1:
            found = [path.name for path in source.iterdir() if path.is_dir()]
            raise MandorlaError(
                f"{folder}: no such folder{_nearest(modality.name, found)}; several given modalities need one each"
            )
        folder = folder if folder.is_dir() else source
        volumes = config.slices or len(modality.size) == 3
        alone = {source.resolve().name: folder}
        files[modality.name] = alone if volumes and is_series(folder) else _by_stem(folder)
    stems = sorted(set().union(*files.values()))
    for name, by_stem in files.items():
        if unpaired := [one for one in stems if one not in by_stem]:
            raise MandorlaError(
                f"{source / name}: no file for {_list(unpaired)}, which another given modality has; add it"
            )
    return stems, files


def _by_stem(folder: Path) -> dict[str, Path]:
    """Return the files in `folder` that can be read, by stem."""
    files: dict[str, Path] = {}
    for path in find(folder, "*"):
        if stem(path) in files:
            raise MandorlaError(
                f"{path}: {files[stem(path)].name} has the same stem; files are paired by stem: rename one"
            )
        files[stem(path)] = path
    if not files:
        raise MandorlaError(f"{folder}: no file in this folder that can be read (looked for {', '.join(SUFFIXES)})")
    return files


def _reading(model: Mandorla) -> FilesConfig:
    """Return how the files of the training were read; of a volume every slice is wanted."""
    data = source_of(model.recipe.data)
    if not isinstance(data, FilesConfig):
        return FilesConfig(size=data.size if isinstance(data, StoredConfig) else None)
    slices = data.slices and data.slices.model_copy(update={"step": 1})
    return data.model_copy(update={"slices": slices})


def read_sample(model: Mandorla, places: Mapping[str, Path]) -> tuple[Arrays, list[int] | None]:
    """Return one sample whose modalities lie in the files `places[name]`, read as those of the training were.

    Gives `x[name]` `(S, C, *size)` in [0, 1] and, of a volume that is cut, the numbers of its S slices, else None.
    Raises `MandorlaError` for whatever does not fit the model.
    """
    asked = [modality for modality in model.modalities if modality.name in places]
    read = _read_one(places, asked, _reading(model))
    return _to_unit(model, {name: [read.values[name]] for name in places}, ["sample"]), read.numbers


def _read_one(places: Mapping[str, Path], given: Sequence[Modality], config: FilesConfig) -> Slices:
    """Return one input, as stored, of the shape that the model has."""
    read = read_slices({name: str(place) for name, place in places.items()}, {}, config)
    for modality in given:
        place = str(places[modality.name])
        if not len(read.values[modality.name]):
            raise MandorlaError(f"{place}: no slice holds as much foreground as those of the training; remove it")
        _check_shape(read.values[modality.name], modality, place)
    return read


def _to_unit(model: Mandorla, values: Mapping[str, Sequence[np.ndarray]], subjects: Sequence[str]) -> Arrays:
    """Return the inputs `values[modality]`, one array `(S, C, *size)` each, as float32 in [0, 1], all in one array.

    `subjects` names the subject of each: where subjects have their own range, all that one has is looked at together.
    """
    x = {}
    for name, inputs in values.items():
        of_subject: dict[str, list[int]] = {}
        for index, subject in enumerate(subjects):
            of_subject.setdefault(subject if model.intensity[name].subjects else str(index), []).append(index)
        parts = list(inputs)
        for subject, indices in of_subject.items():
            here = np.concatenate([inputs[index] for index in indices])
            unit = model.to_unit({name: here}, [subject] * len(here))[name]
            for index, part in zip(indices, np.split(unit, np.cumsum([len(inputs[i]) for i in indices])), strict=False):
                parts[index] = part
        x[name] = np.concatenate(parts)
    return x


def _subject(data: object, name: str) -> str:
    """Return the subject that `data.key` reads off a file's stem, else the stem."""
    match = re.search(data.key, name) if isinstance(data, FoldersConfig) else None
    return (match and match.groupdict().get("subject")) or name


def _read_sample(model: Mandorla, text: str) -> Arrays:
    """Return arrays of all or some modalities: of one sample of the test split, or from an `.npz`."""
    if not text.isdecimal():
        return _read_npz(Path(text), model.modalities)
    test = model.data().test
    if len(text) > 18 or int(text) >= len(test):
        raise MandorlaError(f"no sample {_short(text)} in the test split: it has {len(test)}, counted from 0")
    batch = test.batch([int(text)])
    return {name: value.numpy() for name, value in batch.x.items() if batch.present[name][0]}


def _checked(array: np.ndarray, modality: Modality, place: str) -> np.ndarray:
    """Return `array` as float32 if it is `(N, C, *size)` of `modality` in [0, 1]; `place` says where it comes from."""
    _check_shape(array, modality, place)
    if not len(array):
        raise MandorlaError(f"{place}: no samples; give at least one")
    if not np.issubdtype(array.dtype, np.floating):
        raise MandorlaError(f"{place}: {array.dtype} values, expected floating-point numbers in [0, 1]: rescale them")
    if not np.isfinite(array).all():
        raise MandorlaError(f"{place}: NaN or infinite values; remove or fill them")
    if array.min() < 0 or array.max() > 1:
        raise MandorlaError(
            f"{place}: values from {array.min():.6g} to {array.max():.6g}, expected [0, 1]: rescale them"
        )
    return array.astype(np.float32)


def _check_shape(array: np.ndarray, modality: Modality, place: str) -> None:
    (_, *shape), wanted = array.shape or (0,), modality.shape
    expected = f"modality {modality.name!r} of this model has"
    if len(shape) != len(wanted):
        raise MandorlaError(f"{place}: shape {array.shape}, expected (N, {', '.join(map(str, wanted))})")
    if shape[0] != wanted[0]:
        raise MandorlaError(f"{place}: channels: {shape[0]}, but {expected} {wanted[0]}")
    if tuple(shape) != wanted:
        raise MandorlaError(f"{place}: size {_size(shape[1:])}, but {expected} {_size(wanted[1:])}: resize the input")


# ------------------------------------------------------------------------------------------------------------- output


@contextmanager
def _new_folder(target: Path, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside `target`; rename it to `target` if all goes well, else remove it.

    What a killed command left there is removed; folders above `target` that are made for it go again if it fails.
    """
    target = target.resolve()
    if target.exists() and not (target.is_dir() and (replace or not any(target.iterdir()))):
        raise MandorlaError(f"{target}: exists already; name a new folder, or remove this one")
    folder, old = (target.with_name(f".{target.name}.{what}") for what in ("partial", "old"))
    new = [parent for parent in target.parents if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            for left in folder.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            try:
                yield folder
                shutil.rmtree(old, ignore_errors=True)
                if target.exists():
                    target.rename(old)  # at no moment is there half of a folder under the target's name
                folder.rename(target)
            finally:
                if old.exists() and not target.exists():
                    old.rename(target)
                shutil.rmtree(folder, ignore_errors=True)
                shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise MandorlaError(f"{target} cannot be written ({error}): make room, or choose another folder") from error
    finally:
        for parent in new:
            with suppress(OSError):  # not empty: something was written
                parent.rmdir()


def _arrays(x: Mapping) -> Arrays:
    return {name: value.detach().cpu().numpy() for name, value in x.items()}


def _write_generated(folder: Path, arrays: str, x: Mapping, model: Mandorla) -> None:
    """Write generated samples `x`: all as `arrays`, an `.npz`, and a file for each picture and volume, numbered."""
    np.savez(folder / arrays, **_arrays(x))
    for name, images in _arrays(x).items():
        _write_files(folder / name, _numbers(len(images)), images, model.intensity[name])
        if images.ndim == 5:
            _write_volumes(folder / name, images, model, name)


def _write_files(
    folder: Path,
    names: Sequence[str],
    images: np.ndarray,
    fitted: Fitted,
    suffix: str = ".png",
    spread: bool = False,
) -> None:
    """Write one file per image `(C, H, W)` with one or three channels, and per signal `(C, T)` or vector `(C,)` as CSV.

    Nothing is written of other shapes. `images` are in [0, 1], or with `spread` their standard deviations.
    """
    if images.ndim < 4:
        folder.mkdir()
        columns = ",".join(f"channel{number}" for number in range(images.shape[1]))
        for name, image in zip(names, images, strict=True):
            rows = np.atleast_2d(fitted.restore(image, spread).T)
            np.savetxt(folder / f"{name}.csv", rows, "%.9g", ",", header=columns, comments="")
    elif images.ndim == 4 and images.shape[1] in (1, 3):
        folder.mkdir()
        as_stored = can_hold(suffix, fitted.dtype, images.shape[1])
        for name, image in zip(names, images, strict=True):
            if as_stored:
                write_pixels(folder / f"{name}{suffix}", fitted.restore(image, spread))
            else:
                write_image(folder / f"{name}{suffix}", image)


def _write_volumes(folder: Path, volumes: np.ndarray, model: Mandorla, name: str) -> None:
    """Write one NIfTI file per volume `(C, D, H, W)` in [0, 1] of a modality."""
    data = source_of(model.recipe.data)
    axes = (isinstance(data, FilesConfig) and data.geometry.axes) or GeometryConfig().axes
    try:
        library("nibabel", "medical")
    except MandorlaError as error:
        warnings.warn(f"{name}: the volumes are in the .npz alone; {error}", MandorlaWarning, stacklevel=3)
        return
    folder.mkdir()
    for number, volume in zip(_numbers(len(volumes)), model.intensity[name].invert(volumes), strict=True):
        write_volume(folder / f"{number}.nii.gz", volume, plain_grid(volume.shape[1:], axes))


def _numbers(count: int) -> list[str]:
    return [f"{index:04d}" for index in range(count)]


def _nearest(name: str, names: Sequence[str] | Mapping) -> str:
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else ""


def _list(names: Sequence[str] | Mapping) -> str:
    shown = list(names)[:5]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _short(text: str) -> str:
    return text if len(text) <= 20 else f"{text[:9]}...{text[-8:]}"


def _size(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
