"""Paired images from one folder per modality.

Files are paired by key, never by order. The key is read off the file's path within its folder, without the suffix, by a
regular expression: what its named groups match, or all that it matches if it names none. The group `subject`, if there
is one, says which files belong to one patient. So `p07_s12_t1.png` and `p07_s12_t2.png` are paired by

    key: "(?P<subject>p[0-9]+)_(?P<slice>s[0-9]+)"
"""

import re
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import field_validator

from mandorla.data.dataset import Splits
from mandorla.data.images import SUFFIXES, decode_image, find_images
from mandorla.data.stored import StoredConfig, divide
from mandorla.errors import MandorlaError


class FoldersConfig(StoredConfig):
    """Name the folders of `folders` and how their files are paired."""

    kind: Literal["folders"] = "folders"
    folders: dict[str, str]
    """Folder of each modality, searched with its subfolders for PNG, JPEG and TIFF files."""
    key: str = ".+"
    """Regular expression for the part of a file's path that pairs it; a group `subject` names the patient."""
    unpaired: Literal["error", "keep"] = "error"
    """What to do where a modality has no file for a key: stop, or keep the sample with that modality missing."""

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

    Raises `MandorlaError` for fewer than two modalities, a missing or empty folder, a file that the key does not match,
    two files with one key, an unpaired file, an unreadable image, and images of different shape in one modality.
    """
    if len(config.folders) < 2:
        raise MandorlaError(f"data.folders: {len(config.folders)} modality given, paired data need two or more")
    files, subjects = {}, {}
    for name, folder in config.folders.items():
        files[name] = _files_by_key(config.locate(folder), re.compile(config.key), subjects)
    keys = sorted(subjects)
    if config.unpaired == "error":
        for name, paths in files.items():
            if lonely := [key for key in keys if key not in paths]:
                raise MandorlaError(
                    f"{config.locate(config.folders[name])}: no file for {lonely[0]!r} and {len(lonely) - 1} other "
                    "key(s); add it, mend data.key, or set data.unpaired to keep"
                )
    present = {name: np.array([key in paths for key in keys]) for name, paths in files.items()}
    x = {name: _decode_all([paths.get(key) for key in keys]) for name, paths in files.items()}
    return divide(x, present, keys, [subjects[key] for key in keys], config, seed, "data.folders")


def _files_by_key(folder: Path, pattern: re.Pattern[str], subjects: dict[str, str]) -> dict[str, Path]:
    """Return the image files in `folder` by key, and note the subject of each key in `subjects`."""
    if not folder.is_dir():
        raise MandorlaError(f"{folder}: no such folder; mend data.folders, or set data.root or MANDORLA_DATA")
    files = {}
    for path in find_images(folder, "**/*"):
        match = pattern.search(path.relative_to(folder).with_suffix("").as_posix())
        if match is None:
            raise MandorlaError(f"{path}: data.key {pattern.pattern!r} does not match its name")
        named = {group: text or "" for group, text in match.groupdict().items()}
        key = "/".join(named.values()) or match[0]
        if key in files:
            raise MandorlaError(f"{path}: has the key {key!r} of {files[key].name}; make data.key tell them apart")
        files[key] = path
        subjects[key] = named.get("subject", key)
    if not files:
        raise MandorlaError(
            f"{folder}: holds no image ({', '.join(sorted(SUFFIXES))}); put some there, or mend data.folders"
        )
    return files


def _decode_all(paths: list[Path | None]) -> np.ndarray:
    """Return the images `(N, C, H, W)`, all of one shape and type; zeros where there is no file."""
    first = next(path for path in paths if path)
    model = decode_image(first)
    images = np.zeros((len(paths), *model.shape), dtype=model.dtype)
    for image, path in zip(images, paths, strict=True):
        if path:
            pixels = decode_image(path)
            if (pixels.shape, pixels.dtype) != (model.shape, model.dtype):
                raise MandorlaError(
                    f"{path}: {_describe(pixels)}, unlike {first} with {_describe(model)}; make all of a modality alike"
                )
            image[:] = pixels
    return images


def _describe(pixels: np.ndarray) -> str:
    """Return a picture's height, width, channels and type in words."""
    channels, height, width = pixels.shape
    return f"{height}x{width} pixels of {channels} channel(s) in {pixels.dtype}"
