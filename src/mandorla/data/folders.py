"""Paired files from one folder, glob or list per modality.

Files are paired by key, never by order. The key is read off a file's name by a regular expression: what its named
groups match, or all that it matches if it names none. The group `subject`, if there is one, says which files belong to
one patient. The name of a file is

- in a folder, its path within it, without the suffix
- for a glob, what the wildcards stand for: `p07/a` for `scans/p07/a_t1.nii.gz` and the glob `scans/*/*_t1.nii.gz`
- in a list, its path below the folder that all files of the list have in common, without the suffix

So `t1/p07_s12_t1.png` and `t2/p07_s12_t2.png` are paired by

    key: "(?P<subject>p[0-9]+)_(?P<slice>s[0-9]+)"

and a glob may end in the key of an array: `cases/*.npz:t1`. Where all names begin with a folder train, val or test, as
those of `*/t1/*.png` for `train/t1/a.png`, these are the division.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Literal

from mandorla.data.find import find, to_regex
from mandorla.data.pairing import (
    Found,
    KeyPattern,
    Pairs,
    Unpairable,
    divide_by_folder,
    pair,
    read_key,
    with_parts,
)
from mandorla.data.participants import ParticipantsConfig, add_labels
from mandorla.data.places import SUFFIXES, split_place, stem
from mandorla.data.root import comes_from
from mandorla.errors import MandorlaError


class FoldersConfig(ParticipantsConfig):
    """Name the files of `folders` and how they are paired."""

    kind: Literal["folders"] = "folders"
    folders: dict[str, str | list[str]]
    """Files of each modality: a folder, searched with its subfolders; a glob (`scans/*/t1.nii.gz`); or a list."""
    masks: dict[str, str | list[str]] = {}
    """Files of each mask, in the same way."""
    key: KeyPattern = ".+"
    """Regular expression for the part of a file's name that pairs it; a group `subject` names the patient."""


def pair_folders(config: FoldersConfig) -> Pairs:
    """Return the samples in the folders.

    Raises `MandorlaError` for a missing or empty folder, a glob without a file, a listed file that is missing, a file
    that the key does not match, a sample in two parts, and as `pair` and `add_labels` do.
    """
    pattern = re.compile(config.key)
    if both := config.folders.keys() & config.masks.keys():
        raise MandorlaError(f"data.masks: {min(both)!r} is a modality in data.folders; name the mask otherwise")
    found: list[Found | Unpairable] = []
    names: dict[str, str] = {}
    for name, where in (config.folders | config.masks).items():
        setting = f"data.{'folders' if name in config.folders else 'masks'}.{name}"
        if isinstance(where, list):
            named = _in_list(config, where, setting)
        elif (folder := config.locate(where)).is_dir():
            named = _in_folder(config, folder, setting)
        else:
            named = _in_glob(config, where, setting)
        for place, text in named:
            names[place] = text
            key = read_key(pattern, text)
            found.append(Unpairable(place, key) if isinstance(key, str) else Found(place, name, *key))
    found, home = divide_by_folder(found, names)
    pairs = pair(found, list(config.folders), config, "data.folders", list(config.masks))
    return with_parts(add_labels(pairs, config), home)


def _in_folder(config: FoldersConfig, folder: Path, setting: str) -> Iterator[tuple[str, str]]:
    """Yield place and name of each file in a folder."""
    paths = find(folder)
    if not paths:
        raise MandorlaError(
            f"{folder}: holds no file that can be read ({', '.join(SUFFIXES)})"
            f"{comes_from(config.source)}; put some there, or mend {setting}"
        )
    for path in paths:
        yield str(path), _name(path, folder)


def _in_glob(config: FoldersConfig, where: str, setting: str) -> Iterator[tuple[str, str]]:
    """Yield place and name of each file that a glob matches."""
    glob, key = split_place(where)
    fixed = next((index for index, part in enumerate(glob.parts) if {"*", "?"} & set(part)), None)
    folder = config.locate(str(PurePath(*glob.parts[:fixed])))
    if fixed is None or not folder.is_dir():
        source = comes_from(config.source)
        raise MandorlaError(f"{folder}: no such folder{source}; mend {setting}, or set data.root or MANDORLA_DATA")
    pattern = "/".join(glob.parts[fixed:])
    paths = find(folder, pattern)
    if not paths:
        source = comes_from(config.source)
        raise MandorlaError(
            f"{folder}: no file like {pattern} that can be read{source}; put some there, or mend {setting}"
        )
    regex = to_regex(pattern)
    for path in paths:
        yield f"{path}:{key}" if key else str(path), _wildcards(regex, path.relative_to(folder))


def _in_list(config: FoldersConfig, where: Sequence[str], setting: str) -> Iterator[tuple[str, str]]:
    """Yield place and name of each file in a list."""
    places = [str(config.locate(place)) for place in where]
    paths = [split_place(place)[0] for place in places]
    for path in paths:
        if not path.exists():
            source = comes_from(config.source)
            raise MandorlaError(f"{path}: no such file{source}; mend {setting}, or set data.root or MANDORLA_DATA")
    if not paths:
        raise MandorlaError(f"{setting}: an empty list; name its files, or leave the modality out")
    common = Path(os.path.commonpath([path.parent.absolute() for path in paths]))
    for place, path in zip(places, paths, strict=True):
        yield place, _name(path.absolute(), common)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_name(stem(path)).as_posix()


def _wildcards(regex: re.Pattern[str], path: Path) -> str:
    """Return what the wildcards of a glob stand for, without the suffix."""
    text = path.as_posix()
    match, end = regex.fullmatch(text), len(text) - len(path.name) + len(stem(path))
    spans = [match.span(group) for group in range(1, regex.groups + 1)]
    return "/".join(filter(None, (text[start : min(stop, end)].strip("/") for start, stop in spans if start >= 0)))
