"""Paired files as the `dataset.json` of the Medical Segmentation Decathlon and of MONAI lists them.

    {"modality": {"0": "FLAIR", "1": "T1w"},
     "training": [{"image": "./imagesTr/BRATS_001.nii.gz", "label": "./labelsTr/BRATS_001.nii.gz"}, ...],
     "validation": [...], "test": ["./imagesTs/BRATS_485.nii.gz", ...]}

An entry says where its image lies: one NIfTI file, whose channels (the fourth dimension) are the modalities that
`modality` or `channel_names` lists; a list of files in that order; or a file by the name of each modality. Other files
called label, mask, seg or lesion are masks; all else that an entry says are labels. Paths are relative to the
`dataset.json`, or to `data.root` for what does not lie there. The three lists are the division into parts.

Reference: A large annotated medical image dataset for the development and evaluation of segmentation algorithms
(Simpson et al., 2019), https://arxiv.org/abs/1902.09063.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mandorla.data.pairing import KeyPattern, Pairs, Row, Unpairable, is_mask, pair_rows, read_key, to_modality, to_part
from mandorla.data.places import NIFTI, check_text, split_place, stem, suffix
from mandorla.data.root import comes_from
from mandorla.data.samples import FilesConfig
from mandorla.data.table import find_place, to_label_name
from mandorla.errors import MandorlaError

CHANNELS = ("modality", "channel_names")
SUBJECTS = ("subject", "subject_id", "patient", "patient_id")


class MsdConfig(FilesConfig):
    """Name the `dataset.json` of `msd`."""

    kind: Literal["msd"] = "msd"
    dataset: str = "dataset.json"
    """JSON file with the lists `training`, `validation` and `test`."""
    lists: tuple[Literal["training", "validation", "test"], ...] = ("training", "validation", "test")
    """Lists to take; what is not there of val and test is taken from training, by shares."""
    key: KeyPattern = ".+"
    """Regular expression for the part of the first image's path, without suffix, that names a sample; a group `subject`
    names the patient, unless the entries have a `subject`."""


def pair_msd(config: MsdConfig) -> Pairs:
    """Return the samples that the `dataset.json` lists.

    Raises `MandorlaError` for a missing or broken file, an entry that names no images, other channels than the file
    declares, or a file that is missing, and as `pair_rows` does.
    """
    path = config.locate(config.dataset)
    content = _read(path, config.source)
    channels = _channels(path, content)
    rows, modalities = [], dict.fromkeys(channels)
    for part in config.lists:
        entries = content.get(part, [])
        if not isinstance(entries, list):
            raise MandorlaError(f"{path}: {part!r} is no list of images")
        for number, entry in enumerate(entries):
            entry = entry if isinstance(entry, dict) else {"image": entry}
            rows.append(_row(config, path, entry, channels, part, f"{path}, {part} {number}"))
    for row in rows:
        modalities |= dict.fromkeys(row.files if isinstance(row, Row) else ())
    return pair_rows(rows, list(modalities), config, str(path))


def _read(path: Path, source: str) -> dict[str, Any]:
    try:
        if path.exists():
            check_text(path)
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        source = comes_from(source)
        raise MandorlaError(f"{path}: no such file{source}; put it there, or set data.root or MANDORLA_DATA") from error
    except (OSError, ValueError, RecursionError) as error:
        raise MandorlaError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict) or not any(content.get(part) for part in ("training", "validation", "test")):
        raise MandorlaError(f"{path}: has no list `training` of images")
    return content


def _channels(path: Path, content: Mapping[str, Any]) -> list[str]:
    """Return the modalities that the file declares, in the order of the channels; none where it declares none."""
    declared = next((content[key] for key in CHANNELS if key in content), {})
    try:
        names = {str(number): name for number, name in enumerate(declared)} if isinstance(declared, list) else declared
        names = [name for _, name in sorted((int(number), name) for number, name in names.items())]
        names = [to_modality(name) or re.sub(r"\W+", "_", name.lower()) for name in names]
    except (TypeError, ValueError, AttributeError) as error:
        raise MandorlaError(f'{path}: its channels are not named as {{"0": "T1", "1": "T2"}}') from error
    if twice := [name for name in names if names.count(name) > 1]:
        raise MandorlaError(f"{path}: two channels are called {twice[0]!r}; give each a name of its own")
    return names


def _row(
    config: MsdConfig, path: Path, entry: Mapping[str, Any], channels: Sequence[str], part: str, where: str
) -> Row | Unpairable:
    """Return what one entry says."""
    files, masks, labels = {}, {}, {}
    texts = _images(entry.get("image"), channels, where)
    for key, value in entry.items():
        if isinstance(value, str) and suffix(split_place(value)[0]) and key not in ("image", *SUBJECTS):
            name = to_modality(key) or key
            (masks if is_mask(name) else texts)[name] = value
        elif isinstance(value, (str, int, float)) and key not in ("image", *SUBJECTS):
            labels[to_label_name(key)] = value if isinstance(value, str) else _number(value, f"{where}: {key}")
        elif isinstance(value, (list, dict)) and key != "image":
            raise MandorlaError(f"{where}: {key!r} is neither a file nor a name or number; remove it")
    for name, text in texts.items():
        files[name] = find_place(config, path.parent, text, where)
    masks = {name: find_place(config, path.parent, text, where) for name, text in masks.items()}
    if not files:
        return Unpairable(where, "names no image")
    first = Path(split_place(next(iter(texts.values())))[0])
    key = read_key(re.compile(config.key), first.with_name(stem(first)).as_posix())
    if isinstance(key, str):
        return Unpairable(where, key)
    subject = next((str(entry[name]) for name in SUBJECTS if entry.get(name) not in (None, "")), key[1])
    return Row(where, key[0], subject, files, masks, labels, to_part(part))


def _images(image: Any, channels: Sequence[str], where: str) -> dict[str, str]:
    """Return the place of each modality that the `image` of an entry names."""
    if image is None:
        return {}
    if isinstance(image, str) and len(channels) == 1:
        return {channels[0]: image}
    if isinstance(image, str) and channels and suffix(Path(image)) in NIFTI:
        return {name: f"{image}:{number}" for number, name in enumerate(channels)}
    if isinstance(image, list) and len(image) == len(channels) and all(isinstance(place, str) for place in image):
        return {name: place for name, place in zip(channels, image, strict=True) if place}
    raise MandorlaError(
        f"{where}: the image must be one NIfTI file with a channel, or a list with a file, for each of "
        f'{", ".join(channels) or "the modalities that `modality` declares"}; or name files as "t1": "PATH"'
    )


def _number(value: float, where: str) -> float | None:
    try:
        return None if math.isnan(value) else float(value)
    except OverflowError as error:
        raise MandorlaError(f"{where} is too large a number") from error
