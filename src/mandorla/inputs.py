"""Files in: what a model is given, found, read as the files of its training were, and checked.

An *input* is one sample to be: a picture, a volume or a table for each given modality that it has. Inputs are read one
by one, so that any number of them takes the memory of a few.
"""

import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mandorla.data import source_of
from mandorla.data.bids import BidsConfig, derivative, entities, find_bids, is_bids
from mandorla.data.columns import join_columns
from mandorla.data.dicom import is_series
from mandorla.data.find import find
from mandorla.data.folders import FoldersConfig
from mandorla.data.pairing import Found, is_mask, read_key, to_modality
from mandorla.data.places import SUFFIXES, TABLES, ReadOptions, split_place, stem, suffix
from mandorla.data.python import PythonConfig
from mandorla.data.samples import FilesConfig, Slices, read_slices
from mandorla.data.scans import endings
from mandorla.data.stored import StoredConfig
from mandorla.errors import MandorlaError, MandorlaWarning, did_you_mean
from mandorla.model import Mandorla
from mandorla.outputs import DESCRIPTION
from mandorla.rows import Arrays, check_shape, listed, rows_to_take


@dataclass(frozen=True)
class Input:
    """Name one input, unique among those of a call, its `subject`, and by modality the place where it lies.

    `folder` is that of its BIDS dataset, None if it is of none.
    """

    name: str
    subject: str
    places: Mapping[str, Path]
    folder: Path | None = None

    @property
    def number(self) -> int:
        """Return a number that follows from the name: what is drawn for an input does not depend on the others."""
        return zlib.crc32(self.name.encode())

    def target(self, modality: str, statistic: str) -> Path:
        """Return where a file that is made of this input belongs, without its suffix.

        Of a BIDS dataset it is named as derivatives are; else it is in a folder of its modality, the mean of draws
        (`statistic`) under its name and others beside it: `t2/p01`, `t2_std/p01`.
        """
        if self.folder:
            paths = [path.relative_to(self.folder) for path in self.places.values()]
            return derivative(paths, modality, "" if statistic == "mean" else statistic)
        return Path(modality if statistic == "mean" else f"{modality}_{statistic}", self.name)


def find_inputs(model: Mandorla, source: Path, given: Sequence[str]) -> list[Input]:
    """Return the inputs in `source`, sorted, each with those of the modalities `given` that it has, one at least.

    Without any that are given, with those that are there. `source` is a BIDS dataset; a folder with one sub-folder of
    files per given modality, paired by their paths in it without suffix; a folder of files called like their
    modalities, as `mandorla.data.scans` reads them; or, where one modality is given, a folder of files, or one place: a
    file, a part of it (`case.nii.gz:0`), a folder with a DICOM series. Names of modalities are read as by
    `mandorla.data.pairing.to_modality`. Folders are searched with their sub-folders, but for those with data of their
    own (`dataset_description.json`).

    Warns of files that are passed over, since they are called otherwise. Raises `MandorlaError` for a given modality
    that no sample has, where no sample has two of several (their names do not pair), and for anything else.
    """
    config = reading(model)
    names = given or [modality.name for modality in model.modalities]
    if not source.is_dir():
        if len(names) > 1:
            several = "but several given modalities: give a folder with one folder each"
            unknown = f"which may be {' or '.join(names)}: say which is given (--given)"
            raise MandorlaError(f"{source}: one file, {several if given else unknown}")
        name = stem(split_place(str(source))[0])
        inputs = [Input(name, name, {names[0]: source})]
    elif is_bids(source):
        inputs = _find_in_bids(source, names, config, bool(given))
    else:
        inputs = _find_in_folder(model, source, names, config, bool(given))
    first = model.modalities[0].name
    if config.geometry.resample and any(first not in one.places for one in inputs):
        text = f"the training resampled all to the grid of {first}, which is not given: what is stays on its own grid"
        warnings.warn(f"{text} (data.geometry.resample)", MandorlaWarning, stacklevel=3)
    return inputs


def take(inputs: Sequence[Input], source: Path, complete: bool) -> list[Input]:
    """Return the inputs in `source`, or the complete ones, as `rows_to_take` says, with its warning and error."""
    names = dict.fromkeys(name for one in inputs for name in one.places)
    present = {name: np.array([name in one.places for one in inputs]) for name in names}
    return [inputs[row] for row in rows_to_take(present, [one.name for one in inputs], source, complete)]


def _find_in_folder(
    model: Mandorla, source: Path, names: Sequence[str], config: FilesConfig, all_of_them: bool
) -> list[Input]:
    """Return the inputs in a folder that is no BIDS dataset, with the modalities `names`, or those of them it has."""
    data = source_of(model.recipe.data)
    volumes = {modality.name for modality in model.modalities if config.slices or len(modality.size) == 3}
    folders = _called(model, (path for path in source.iterdir() if path.is_dir()), names)
    if not folders and not (all_of_them and names[0] in volumes and is_series(source)):
        files = _by_words(model, source, names, all_of_them)
    else:
        files = {}
        for name in names if all_of_them else folders:
            if name not in folders and len(names) > 1:
                raise _no_folder(source, name)
            folder = folders.get(name, source)
            is_one = name in volumes and is_series(folder)
            files[name] = {source.resolve().name: folder} if is_one else _by_stem(folder)
            if not files[name]:
                raise _no_file(folder)
        files = _by_key(files, data)
    stems = sorted(set().union(*files.values()))
    found = {one: {name: by_stem[one] for name, by_stem in files.items() if one in by_stem} for one in stems}
    if len(files) > 1 and all(len(places) == 1 for places in found.values()):
        name, lacking = next((name, sorted(found.keys() - by_stem.keys())) for name, by_stem in files.items())
        place = folders.get(name, f"{source}, {name}")
        text = f"{place}: no file for {listed(lacking)}, which another given modality has; add it"
        raise MandorlaError(f"{text}, or give each modality by itself: no sample has two")
    return [Input(one, _subject(data, one), places) for one, places in found.items()]


def reading(model: Mandorla) -> FilesConfig:
    """Return how the files of the training were read; of a volume every slice is wanted.

    Where the training read no files, axes are those that the model has; those of a user's dataset, channels first.
    """
    data = source_of(model.recipe.data)
    if not isinstance(data, FilesConfig):
        first = "first" if isinstance(data, PythonConfig) else "last"
        axes = {m.name: ReadOptions(dimensions=len(m.size), channels=first) for m in model.modalities}
        return FilesConfig(size=data.size if isinstance(data, StoredConfig) else None, read_of=axes)
    slices = data.slices and data.slices.model_copy(update={"step": 1})
    return data.model_copy(update={"slices": slices})


def read_input(model: Mandorla, places: Mapping[str, Path], masks: Mapping[str, Path] | None = None) -> Slices:
    """Return one input, whose modalities lie in the files `places[name]`, as stored, of the shape that the model has.

    `masks[name]` lie on the same grid as these. Of a whole table the columns are taken that the training had.

    Raises `MandorlaError` for whatever does not fit the model.
    """
    files = {name: _with_columns(str(place), model.intensity[name].columns) for name, place in places.items()}
    marks = {name: str(place) for name, place in (masks or {}).items()}
    read = read_slices(files, marks, reading(model))
    for modality in model.modalities:
        if modality.name in places:
            place = str(places[modality.name])
            if not len(read.values[modality.name]):
                raise MandorlaError(f"{place}: no slice holds as much foreground as those of the training; remove it")
            check_shape(read.values[modality.name], modality, place)
    return read


def read_sample(model: Mandorla, places: Mapping[str, Path]) -> tuple[Arrays, list[int] | None]:
    """Return one sample whose modalities lie in the files `places[name]`, read as those of the training were.

    Gives `x[name]` `(S, C, *size)` in [0, 1] and, of a volume that is cut, the numbers of its S slices, else None.
    Raises `MandorlaError` for whatever does not fit the model.
    """
    read = read_input(model, places)
    return in_unit(model, [(Input("sample", "sample", places), read)])[0], read.numbers


def find_samples(model: Mandorla, source: Path) -> list[Input]:
    """Return the inputs in a folder, each with all modalities that the folder has; what is none is passed over.

    The folder is a BIDS dataset, or has a sub-folder of files for each of its modalities (see `find_inputs`), or a file
    for each. Raises `MandorlaError` for anything else; warns of what is called almost like a modality.
    """
    known = [modality.name for modality in model.modalities]
    if is_bids(source):
        return take(find_inputs(model, source, ()), source, complete=True)
    entries = {*(path for path in source.iterdir() if path.is_dir()), *find(source, "*")}
    own = _called(model, entries, known)
    names, others = [name for name in known if name in own], [stem(path) for path in entries - {*own.values()}]
    for name in known:
        if name not in names and (meant := did_you_mean(name, others)):
            text = f"{source}: no {name}{meant} Nothing is read of what is called otherwise"
            warnings.warn(text, MandorlaWarning, stacklevel=3)
    if not names:
        raise MandorlaError(f"{source}: expected a file or a folder of files called like a modality ({listed(known)})")
    if len({own[name].is_dir() for name in names}) > 1:
        raise MandorlaError(f"{source}: files of some modalities, folders of others ({listed(names)}): make them alike")
    if own[names[0]].is_dir():
        return take(find_inputs(model, source, names), source, complete=True)
    name = source.resolve().name
    return [Input(name, name, {each: own[each] for each in names})]


def count(read: Slices) -> int:
    """Return how many samples an input is that was read: its slices, or one."""
    return len(next(iter(read.values.values())))


def in_unit(model: Mandorla, inputs: Sequence[tuple[Input, Slices]]) -> tuple[Arrays, Arrays]:
    """Return inputs that were read as samples `x[name]` `(N, C, *size)`, float32 in [0, 1], one input after another.

    Returns also which samples have a modality, bool `(N,)`; there are zeros where one lacks it. Where subjects have
    their own range, all that one has is looked at together.
    """
    stops = np.cumsum([count(read) for _, read in inputs])
    shapes = {modality.name: modality.shape for modality in model.modalities}
    x, present = {}, {}
    for name in dict.fromkeys(name for one, _ in inputs for name in one.places):
        x[name], present[name] = np.zeros((stops[-1], *shapes[name]), np.float32), np.zeros(stops[-1], bool)
        of_subject: dict[str, list[int]] = {}
        for index, (one, _) in enumerate(inputs):
            if name in one.places:
                of_subject.setdefault(one.subject if model.intensity[name].subjects else str(index), []).append(index)
        for subject, indices in of_subject.items():
            rows = np.concatenate([np.arange(stops[i] - count(inputs[i][1]), stops[i]) for i in indices])
            values = np.concatenate([inputs[i][1].values[name] for i in indices])
            x[name][rows] = model.to_unit({name: values}, [subject] * len(values))[name]
            present[name][rows] = True
    return x, present


def _find_in_bids(source: Path, given: Sequence[str], config: FilesConfig, all_of_them: bool) -> list[Input]:
    """Return the sessions of a BIDS dataset, with the modalities `given`, or those of them that it has.

    A session with several files of a modality is several inputs, as `_runs` says.
    """
    own = {"folder": str(source.resolve()), "modalities": list(given)}
    bids = config.model_copy(update=own) if isinstance(config, BidsConfig) else BidsConfig(**own)
    sessions: dict[str, dict[str, list[Path]]] = {}
    subjects = {}
    for found in find_bids(bids, each=not bids.entities):
        if isinstance(found, Found) and found.name in given:
            sessions.setdefault(found.key, {}).setdefault(found.name, []).append(Path(found.place))
            subjects[found.key] = found.subject
    runs = [(key, *run) for key, files in sorted(sessions.items()) for run in _runs(key, files)]
    there = set().union(*sessions.values())
    if lacking := [name for name in given if name not in there and (all_of_them or not there)]:
        text = f"{source}: no session of this dataset has {' or '.join(lacking)}"
        raise MandorlaError(f"{text}; add files, or give others")
    inputs = [
        Input(name, subjects[key], {each: places[each] for each in given if each in places}, source.resolve())
        for key, name, places in runs
    ]
    targets: dict[Path, Input] = {}
    for one in inputs:
        if (other := targets.setdefault(one.target(given[0], "mean"), one)) is not one:
            path, like = (next(iter(each.places.values())) for each in (one, other))
            raise MandorlaError(f"{path}: what is made of it would be called as what is made of {like.name}; move one")
    return inputs


def _runs(key: str, files: Mapping[str, Sequence[Path]]) -> list[tuple[str, dict[str, Path]]]:
    """Return the names and the files of the inputs that a session is, of which it has `files` by modality.

    It is one where it has one file of each modality. Else, of one modality, each file is one; of several, what has the
    same entity `run`. Raises `MandorlaError` where a run has several files of one modality.
    """
    if all(len(paths) == 1 for paths in files.values()):
        return [(key, {name: path for name, (path,) in files.items()})]
    if len(files) == 1:
        ((name, paths),) = files.items()
        return [(f"{key}/{stem(path)}" if number else key, {name: path}) for number, path in enumerate(paths)]
    runs: dict[str, dict[str, Path]] = {}
    for name, paths in files.items():
        for path in paths:
            label = entities(path).get("run")
            run = runs.setdefault(f"{key}/run-{label}" if label else key, {})
            if (other := run.setdefault(name, path)) is not path:
                raise MandorlaError(
                    f"{path}: is {name} of the same run as {other.name}; several given modalities belong together by"
                    " run: give a folder with one folder each instead, files of one input named alike"
                )
    return list(runs.items())


def _teller(model: Mandorla) -> Callable[[str], str | None]:
    """Return what tells which modality of the model, or else which mask, a text names, as training reads names."""
    aliases = getattr(source_of(model.recipe.data), "aliases", None)
    known = [modality.name for modality in model.modalities]
    own = {to_modality(name) or name.casefold(): name for name in reversed(known)}

    def tell(text: str) -> str | None:
        name = to_modality(text, aliases) or text.casefold()
        return text if text in known else own.get(name) or (name if is_mask(name) else None)

    return tell


def _called(model: Mandorla, paths: Iterable[Path], names: Sequence[str]) -> dict[str, Path]:
    """Return those of the `paths` that are called like one of the modalities `names`, by its name.

    One that is called exactly so comes before others. Raises `MandorlaError` where several are left.
    """
    tell, found = _teller(model), {}
    for path in sorted(paths):
        found.setdefault(tell(stem(path)), []).append(path)
    called = {}
    for name in (name for name in names if name in found):
        path, *others = [path for path in found[name] if stem(path) == name] or found[name]
        if others:
            raise MandorlaError(f"{others[0]}: {path.name} is {name} too; rename one")
        called[name] = path
    return called


def _find(folder: Path) -> list[Path]:
    """Return the files in `folder` that can be read, but for those in a folder with data of their own."""
    paths = find(folder)
    above = {parent for path in paths for parent in path.relative_to(folder).parents if parent.name}
    others = {parent for parent in above if (folder / parent / DESCRIPTION).is_file()}
    return [path for path in paths if others.isdisjoint(path.relative_to(folder).parents)]


def _by_stem(folder: Path) -> dict[str, Path]:
    """Return the files in `folder` that can be read, by their path in it without suffix."""
    files: dict[str, Path] = {}
    for path in _find(folder):
        name = path.relative_to(folder).with_name(stem(path)).as_posix()
        if (other := files.setdefault(name, path)) is not path:
            raise MandorlaError(f"{path}: {other.name} has the same stem; files are paired by stem: rename one")
    return files


def _by_words(model: Mandorla, source: Path, given: Sequence[str], all_of_them: bool) -> dict[str, dict[str, Path]]:
    """Return by modality the files whose names, or else those of the folders they lie in, end in it.

    Of `given` all of them, or those that there are. Each file is called by what is left of its path without such words,
    or like `source` if nothing is: `PAT-1` are `PAT-1/T1.nii.gz` and `T1/PAT-1.nii.gz`. Where one is given and no file
    is called like it, all are that are called like no other. Warns of files that are passed over.
    """
    tell = _teller(model)
    named = [(*_read_path(path.relative_to(source), tell), path) for path in _find(source)]
    if not named:
        raise _no_file(source)
    is_told = len(given) > 1 or any(told == given[0] for told, _, _ in named)
    files: dict[str, dict[str, Path]] = {name: {} for name in given}
    others = []
    for told, name, path in named:
        told = told or (None if is_told else given[0])
        if told not in files:
            others.append(path.relative_to(source))
        elif (other := files[told].setdefault(name or source.resolve().name, path)) is not path:
            raise MandorlaError(f"{path}: {other.name} has the same stem, {told} aside: rename one")
    if not all_of_them:
        files = {name: by_stem for name, by_stem in files.items() if by_stem}
        if not files:
            raise MandorlaError(
                f"{source}: nothing in it is called like {' or '.join(given)}; say what is given (--given)"
            )
    for name in files:
        if not files[name] and len(given) > 1:
            raise _no_folder(source, name)
        if not files[name]:
            raise MandorlaError(f"{source}: all files are called like others than {name}, such as {others[0]}")
    if others:
        text = f"{source}: {len(others)} file(s) not called like {' or '.join(given)} passed over, such as {others[0]}"
        warnings.warn(text, MandorlaWarning, stacklevel=4)
    return files


def _read_path(path: Path, tell: Callable[[str], str | None]) -> tuple[str | None, str]:
    """Return the modality that the last part of a `path` that names one names, and the path without such words."""
    told, left = None, []
    for part in (*path.parent.parts, stem(path)):
        case, name = next(((case, name) for case, words in endings(part) if (name := tell(words))), (part, None))
        told = name or told
        left.append(case)
    return told, "/".join(filter(None, left))


def _no_file(folder: Path) -> MandorlaError:
    return MandorlaError(f"{folder}: no file in this folder that can be read (looked for {', '.join(SUFFIXES)})")


def _no_folder(source: Path, name: str) -> MandorlaError:
    meant = did_you_mean(name, [path.name for path in source.iterdir() if path.is_dir()])
    text = f"{source / name}: no such folder{meant}; several given modalities need one each, or files called like them"
    return MandorlaError(text)


def _by_key(files: dict[str, dict[str, Path]], data: object) -> dict[str, dict[str, Path]]:
    """Return `files` by modality and stem, or, where `data.key` pairs more of them, by the stem of a sample's first.

    As `p07_t1.png` and `p07_t2.png`.
    """
    if not isinstance(data, FoldersConfig):
        return files
    pattern = re.compile(data.key)
    found: dict[str, dict[str, str]] = {}
    for name, by_stem in files.items():
        keys = {one: read_key(pattern, one) for one in by_stem}
        found[name] = {key[0]: one for one, key in keys.items() if not isinstance(key, str)}
        if len(found[name]) < len(by_stem):  # no key, or one key of two files
            return files
    first: dict[str, str] = {}
    for by_key in found.values():
        first = by_key | first
    if len(first) >= len(set().union(*files.values())):
        return files
    return {name: {first[key]: files[name][one] for key, one in by_key.items()} for name, by_key in found.items()}


def _subject(data: object, name: str) -> str:
    """Return the subject that `data.key` reads off a file's stem, else the stem."""
    match = re.search(data.key, name) if isinstance(data, FoldersConfig) else None
    return (match and match.groupdict().get("subject")) or name


def _with_columns(place: str, columns: Sequence[str]) -> str:
    """Return the place of these `columns`, if there are any, of a table that is given as a whole."""
    path, key = split_place(place)
    return f"{place}:{join_columns(columns)}" if columns and key is None and suffix(path) in TABLES else place
