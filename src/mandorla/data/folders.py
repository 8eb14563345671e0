"""Paired images from one folder per modality.

Files are paired by key, never by order. The key is read off the file's path within its folder, without the suffix, by a
regular expression: what its named groups match, or all that it matches if it names none. The group `subject`, if there
is one, says which files belong to one patient. So `p07_s12_t1.png` and `p07_s12_t2.png` are paired by

    key: "(?P<subject>p[0-9]+)_(?P<slice>s[0-9]+)"
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from mandorla.data.dataset import Splits
from mandorla.data.decode import FilesConfig, load_pairs
from mandorla.data.images import SUFFIXES, find_images
from mandorla.data.pairing import Found, Pairs, pair
from mandorla.errors import MandorlaError


class FoldersConfig(FilesConfig):
    """Name the folders of `folders` and how their files are paired."""

    kind: Literal["folders"] = "folders"
    folders: dict[str, str]
    """Folder of each modality, searched with its subfolders for PNG, JPEG and TIFF files."""
    key: str = ".+"
    """Regular expression for the part of a file's path that pairs it; a group `subject` names the patient."""

    @field_validator("key")
    @classmethod
    def _key_compiles(cls, key: str) -> str:
        try:
            re.compile(key)
        except re.error as error:
            raise ValueError(f"{key!r} is no regular expression ({error})") from error
        return key


def load_folders(config: FoldersConfig, seed: int) -> Splits:
    """Return train, val and test, divided by patient under `seed`.

    Raises `MandorlaError` as `pair_folders` and `load_pairs` do.
    """
    return load_pairs(pair_folders(config), config, seed, "data.folders")


def pair_folders(config: FoldersConfig) -> Pairs:
    """Return the samples in the folders.

    Raises `MandorlaError` for a missing or empty folder, a file that the key does not match, and as `pair` does.
    """
    pattern = re.compile(config.key)
    found = [file for name, folder in config.folders.items() for file in _find(name, config.locate(folder), pattern)]
    return pair(found, list(config.folders), config.unpaired, "data.folders")


def _find(modality: str, folder: Path, pattern: re.Pattern[str]) -> Iterator[Found]:
    """Yield the image files in `folder`."""
    if not folder.is_dir():
        raise MandorlaError(f"{folder}: no such folder; mend data.folders, or set data.root or MANDORLA_DATA")
    paths = find_images(folder, "**/*")
    if not paths:
        raise MandorlaError(
            f"{folder}: holds no image ({', '.join(sorted(SUFFIXES))}); put some there, or mend data.folders"
        )
    for path in paths:
        match = pattern.search(path.relative_to(folder).with_suffix("").as_posix())
        if match is None:
            raise MandorlaError(f"{path}: data.key {pattern.pattern!r} does not match its name")
        named = {group: text or "" for group, text in match.groupdict().items()}
        key = "/".join(named.values()) or match[0]
        yield Found(str(path), modality, key, named.get("subject", key))
