"""Paired images that lie side by side in one file, as those of pix2pix do: left half A, right half B.

    facades/train/1.jpg    facades/val/1.jpg    facades/test/1.jpg

Folders train, val and test, where there are any, are the division. A file's name is its path in the folder, less its
suffix; the key is read off it by a regular expression.

Reference: Image-to-Image Translation with Conditional Adversarial Networks (Isola et al., 2017),
https://arxiv.org/abs/1611.07004.
"""

import re
from typing import Literal

from mandorla.data.find import find
from mandorla.data.images import SUFFIXES
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
from mandorla.data.places import stem, suffix
from mandorla.data.root import comes_from
from mandorla.errors import MandorlaError


class SideBySideConfig(ParticipantsConfig):
    """Name the folder of `side_by_side` and its two modalities."""

    kind: Literal["side_by_side"] = "side_by_side"
    folder: str = "."
    """Folder of images, searched with its subfolders."""
    modalities: tuple[str, str] = ("left", "right")
    """Names of the left and of the right half."""
    key: KeyPattern = ".+"
    """Regular expression for the part of a file's name that names a sample; a group `subject` names the patient."""


def pair_side_by_side(config: SideBySideConfig) -> Pairs:
    """Return the samples in the folder.

    Raises `MandorlaError` for a missing or empty folder, modalities of one name, images beside the folders train, val
    and test, and as `pair` and `add_labels` do.
    """
    folder = config.locate(config.folder)
    if len(set(config.modalities)) < 2:
        raise MandorlaError(f"data.modalities: both halves are called {config.modalities[0]!r}; name them apart")
    source = comes_from(config.source)
    if not folder.is_dir():
        raise MandorlaError(f"{folder}: no such folder{source}; mend data.folder, or set data.root or MANDORLA_DATA")
    paths = [path for path in find(folder) if suffix(path) in SUFFIXES]
    if not paths:
        raise MandorlaError(f"{folder}: holds no image ({', '.join(sorted(SUFFIXES))}){source}; mend data.folder")
    names = {str(path): path.relative_to(folder).with_name(stem(path)).as_posix() for path in paths}
    images: list[Found | Unpairable] = []
    for place, name in names.items():
        key = read_key(re.compile(config.key), name)
        images.append(Unpairable(place, key) if isinstance(key, str) else Found(place, "", *key))
    images, home = divide_by_folder(images, names)
    found: list[Found | Unpairable] = []
    for image in images:
        halves = zip(config.modalities, ("left", "right"), strict=True) if isinstance(image, Found) else ()
        found += [image._replace(place=f"{image.place}:{half}", name=name) for name, half in halves] or [image]
    return with_parts(add_labels(pair(found, config.modalities, config, str(folder)), config), home)
