"""Paired files whose names end in their modality, as those of BraTS and IXI do.

    BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1n.nii.gz    BraTS20_Training_001/BraTS20_Training_001_t1ce.nii
    IXI-T1/IXI002-Guys-0828-T1.nii.gz                     p01/flair.nii.gz

The last word of a name, or the last two, tell the modality or mask, by the names in `mandorla.data.pairing` and those
of `data.aliases`. What stands before it is the *case*; where nothing does, the path of the folder is. The key is read
off the case: of one such as `BraTS-GLI-00000-000` the last three digits are the session of a subject; each other case
is taken for a subject of its own.

References: The Multimodal Brain Tumor Image Segmentation Benchmark (Menze et al., 2015),
https://doi.org/10.1109/TMI.2014.2377694; IXI dataset, https://brain-development.org/ixi-dataset.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from mandorla.data.find import find
from mandorla.data.pairing import Found, KeyPattern, Pairs, Unpairable, in_order, is_mask, pair, read_key, to_modality
from mandorla.data.participants import ParticipantsConfig, add_labels
from mandorla.data.places import TABLES, stem, suffix
from mandorla.data.root import comes_from
from mandorla.errors import MandorlaError

_WORDS = re.compile(r"[-_. ]+")


class ScansConfig(ParticipantsConfig):
    """Name the folder of `scans` and how to read the names in it."""

    kind: Literal["scans"] = "scans"
    folder: str = "."
    """Folder to search, with its subfolders."""
    modalities: list[str] | None = None
    """Modalities to take; null takes all that are found."""
    aliases: dict[str, str] = {}
    """Modality of each last word that is not known by itself, such as `{"0000": t1, tumour: tumour_mask}`."""
    key: KeyPattern = r"^(?P<subject>.+-\d{5}|.+)(-(?P<session>\d{3}))?$"
    """Regular expression for the part of a case that names a sample; a group `subject` names the patient."""


class _Scan(NamedTuple):
    path: Path
    name: str
    case: str


def pair_scans(config: ScansConfig) -> Pairs:
    """Return the samples in the folder.

    Raises `MandorlaError` for a missing or empty folder, and as `pair` and `add_labels` do; a file without a known
    modality, or in the folder of another case, is unpairable.
    """
    folder = config.locate(config.folder)
    source = comes_from(config.source)
    if not folder.is_dir():
        raise MandorlaError(f"{folder}: no such folder{source}; mend data.folder, or set data.root or MANDORLA_DATA")
    paths = [path for path in find(folder) if suffix(path) not in TABLES]
    if not paths:
        raise MandorlaError(f"{folder}: holds no scans{source}; put some there, or mend data.folder")
    read = [_read(path, folder, config.aliases) for path in paths]
    scans = [scan for scan in read if isinstance(scan, _Scan)]
    names = in_order({scan.name for scan in scans})
    masks = [name for name in names if is_mask(name)]
    modalities = config.modalities or [name for name in names if name not in masks]
    found: list[Found | Unpairable] = [lost for lost in read if isinstance(lost, Unpairable)]
    cases = {scan.case for scan in scans}
    for path, name, case in scans:
        key = read_key(re.compile(config.key), case)
        if path.parent.name in cases - {case}:
            found.append(Unpairable(str(path), f"lies in {path.parent.name} but is named {case}"))
        elif isinstance(key, str):
            found.append(Unpairable(str(path), key))
        elif name in modalities or name in masks:
            found.append(Found(str(path), name, *key))
    return add_labels(pair(found, modalities, config, str(folder), masks), config)


def endings(text: str) -> list[tuple[str, str]]:
    """Return the last two words of a name, if it has as many, and its last one, each with what stands before them."""
    starts = [0, *(match.end() for match in _WORDS.finditer(text))]
    return [(text[:start].strip("-_. "), text[start:]) for start in starts[-2:]]


def _read(path: Path, folder: Path, aliases: Mapping[str, str]) -> _Scan | Unpairable:
    """Return what a file's name tells."""
    for case, words in endings(stem(path)):
        if name := to_modality(words, aliases):
            return _Scan(path, name, case or path.parent.relative_to(folder).as_posix())
    return Unpairable(str(path), f"{words!r} is no modality that is known; tell it by data.aliases")
