"""Paired files in the Brain Imaging Data Structure (BIDS).

    sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz
    sub-01/ses-a/anat/sub-01_ses-a_acq-sag_ce-gadolinium_T1w.nii.gz
    participants.tsv

A file's name is a list of *entities*, `key-value`, and ends in a suffix that tells the modality, by the names in
`mandorla.data.pairing`; T1w with the entity `ce` is `t1gd`. A suffix such as `mask` or `dseg` tells a mask, called by
the entity `label` or `desc`. Subject and session are the key. The columns of `participants.tsv` are labels. Only the
folders of subjects in `folder` are looked at: derivatives are data of their own.

Reference: The brain imaging data structure, a format for organizing and describing outputs of neuroimaging experiments
(Gorgolewski et al., 2016), https://doi.org/10.1038/sdata.2016.44.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from mandorla.data.find import find
from mandorla.data.pairing import Found, Pairs, Unpairable, in_order, is_mask, pair, to_modality
from mandorla.data.participants import ParticipantsConfig, add_labels
from mandorla.data.places import NIFTI, stem, suffix
from mandorla.data.root import comes_from
from mandorla.errors import MandorlaError

PARTICIPANTS = "participants.tsv"
_SUFFIX = {"t1": "T1w", "t2": "T2w", "flair": "FLAIR", "pd": "PDw", "t2star": "T2starw"}  # of what is made


class BidsConfig(ParticipantsConfig):
    """Name the folder of `bids` and which of its files to take."""

    kind: Literal["bids"] = "bids"
    folder: str = "."
    """Folder that holds the folders `sub-...`."""
    modalities: list[str] | None = None
    """Modalities to take; null takes all that are found."""
    datatypes: list[str] = ["anat"]
    """Folders of a subject or session to look into; files that lie beside them are taken too."""
    entities: dict[str, str | None] = {}
    """Which of several files of a modality to take, such as `{acq: highres, run: null}`: one with that value, or, for
    null, without that entity. A file that has another value is never taken."""


class _File(NamedTuple):
    path: Path
    name: str
    key: str
    subject: str
    entities: Mapping[str, str]


def pair_bids(config: BidsConfig) -> Pairs:
    """Return the samples, one for each session of each subject.

    Raises `MandorlaError` as `find_bids`, `pair` and `add_labels` do; a file without a BIDS name, or in another
    subject's folder, is unpairable.
    """
    found, folder = find_bids(config), config.locate(config.folder)
    names = in_order({file.name for file in found if isinstance(file, Found)})
    masks = [name for name in names if is_mask(name)]
    modalities = config.modalities or [name for name in names if name not in masks]
    pairs = pair(found, modalities, config, str(folder), masks)
    return add_labels(pairs, config, folder / PARTICIPANTS)


def find_bids(config: BidsConfig, each: bool = False) -> list[Found | Unpairable]:
    """Return the files of the modalities that are to be taken, the masks, and what is unpairable.

    With `each` these are all files that a session has of a modality, else the one that `data.entities` chooses. Raises
    `MandorlaError` for a missing folder, and several files of one modality that it does not choose from.
    """
    folder = config.locate(config.folder)
    subjects = _subjects(folder)
    if not subjects:
        source = comes_from(config.source)
        raise MandorlaError(
            f"{folder}: no folder sub-... in it{source}; mend data.folder, or set data.root or MANDORLA_DATA"
        )
    parsed = [_parse(path, subject) for subject in subjects for path in _find(subject, config.datatypes)]
    files = [file for file in parsed if isinstance(file, _File)]
    wanted = [f for f in files if not config.modalities or f.name in config.modalities or is_mask(f.name)]
    taken = wanted if each else _choose(wanted, config.entities)
    found = [Found(str(file.path), file.name, file.key, file.subject) for file in taken]
    return [*found, *(file for file in parsed if isinstance(file, Unpairable))]


def is_bids(folder: Path) -> bool:
    """Return whether `folder` is a BIDS dataset: whether it holds subjects."""
    return bool(_subjects(folder))


def derivative(paths: Sequence[Path], modality: str, description: str = "") -> Path:
    """Return where a `modality` that is made of the files at `paths`, relative to a dataset, belongs in a derivative.

    Without a suffix: `sub-01/anat/sub-01_run-1_desc-synthetic_T2w` for `sub-01/anat/sub-01_run-1_T1w.nii.gz` and t2.
    Entities that all of the files have are kept; the `description`, such as std, follows "synthetic".
    """
    found = [entities(path) for path in paths]
    common = {name: value for name, value in found[0].items() if all(other.get(name) == value for other in found)}
    with_agent = modality.removesuffix("gd") if modality.endswith("gd") else ""
    wanted: dict[str, str | None] = dict.fromkeys(("sub", "ses", "acq", "ce", "rec", "run")) | common  # their order
    wanted["ce"] = "gadolinium" if with_agent else None
    wanted["desc"] = "synthetic" + description.capitalize()
    name = "_".join(f"{entity}-{value}" for entity, value in wanted.items() if value)
    return paths[0].with_name(f"{name}_{_SUFFIX.get(with_agent or modality, with_agent or modality)}")


def entities(path: Path) -> dict[str, str]:
    """Return the entities in the name of a file: `{"sub": "01", "run": "1"}` of `sub-01_run-1_T1w.nii.gz`."""
    return dict(pair.partition("-")[::2] for pair in stem(path).split("_")[:-1])


def _subjects(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("sub-*") if path.is_dir())


def _find(subject: Path, datatypes: Sequence[str]) -> list[Path]:
    """Return the NIfTI files of a subject that lie in a folder of a datatype, or directly in that of a session."""
    paths = []
    for path in find(subject):
        session, *rest = [*path.relative_to(subject).parts[:-1], ""]
        datatype = "/".join(filter(None, rest if session.startswith("ses-") else [session, *rest]))
        if suffix(path) in NIFTI and datatype in ("", *datatypes):
            paths.append(path)
    return paths


def _parse(path: Path, folder: Path) -> _File | Unpairable:
    """Return what a file's name tells."""
    *pairs, last = stem(path).split("_")
    entities = dict(pair.partition("-")[::2] for pair in pairs)
    if not all(entities.values()) or len(entities) < len(pairs) or "-" in last or not last or "sub" not in entities:
        return Unpairable(str(path), "has no BIDS name, such as sub-01_ses-a_T1w.nii.gz")
    sessions = [part for part in path.relative_to(folder).parts[:-1] if part.startswith("ses-")]
    subject, key = f"sub-{entities['sub']}", [f"{name}-{entities[name]}" for name in ("sub", "ses") if name in entities]
    if subject != folder.name or (sessions and sessions != key[1:]):
        return Unpairable(str(path), f"lies in {'/'.join([folder.name, *sessions])} but is named {'/'.join(key)}")
    name = to_modality(last) or last.lower()
    if is_mask(name) or name.endswith("mask"):
        part = entities.get("label") or entities.get("desc")
        name = f"{part.lower()}_mask" if part else name.removesuffix("mask").rstrip("_") + "_mask"
    elif "ce" in entities:
        name = name.removesuffix("gd") + "gd"
    return _File(path, name, "/".join(key), subject, entities)


def _choose(files: Sequence[_File], entities: Mapping[str, str | None]) -> list[_File]:
    """Return one file for each key and modality, as `entities` choose."""
    chosen: dict[tuple[str, str], _File] = {}
    for file in files:
        if any(file.entities.get(entity, value) != value for entity, value in entities.items()):
            continue
        other = chosen.setdefault((file.key, file.name), file)
        if other is file:
            continue
        more, less = (sum(entity in one.entities for entity in entities) for one in (file, other))
        if more == less:
            differing = sorted(set(file.entities.items()) ^ set(other.entities.items()))
            names = ", ".join(dict.fromkeys(entity for entity, _ in differing))
            raise MandorlaError(
                f"{file.path}: is {file.name} of {file.key!r}, and so is {other.path.name}; "
                + (f"choose by data.entities ({names})" if names else "remove one")
            )
        chosen[file.key, file.name] = file if more > less else other
    return list(chosen.values())
