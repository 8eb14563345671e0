"""Pairing: which files are of one sample.

A source (`mandorla.data.folders` and others) finds files and reads off each whose it is: a *key*, such as
`p07/baseline/s12`, that all files of one sample share, and the *subject* whose samples stay in one part. Files are
paired by key and never by order, and what comes out does not depend on the order in which they were found.

A *place* is where the values of one modality of one sample lie: `PATH`, or `PATH:KEY` for a part of a file, as
`mandorla.data.places` says.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator

from mandorla.data.places import split_place
from mandorla.data.splits import PARTS
from mandorla.data.stored import StoredConfig
from mandorla.errors import MandorlaError

ALIASES = {  # modality: what else it is called, without regard to case and to the signs between words
    "t1": ("t1n", "t1w", "t1pre"),
    "t1gd": ("t1c", "t1ce", "t1wgd", "t1wce", "t1post", "t1km"),
    "t2": ("t2w",),
    "flair": ("t2f", "t2flair", "flairw"),
    "pd": ("pdw",),
    "t2star": ("t2starw", "t2s"),
    "dwi": ("trace",),
    "adc": (),
    "swi": (),
    "mra": ("angio", "tof"),
    "ct": (),
    "pet": (),
}
MASKS = {  # mask: what else it is called
    "label_mask": ("label", "labels", "mask"),
    "seg_mask": ("seg", "dseg", "segm", "segmentation"),
    "lesion_mask": ("lesion", "lesions"),
    "roi_mask": ("roi",),
}
PART_ALIASES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
NOTHING = {"", "n/a", "na", "nan", "none", "null"}  # what stands in a table for no value
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,2})?", re.ASCII)


class PairingConfig(StoredConfig):
    """Say what to do with files that find no partner."""

    unpaired: Literal["error", "keep"] = "error"
    """What to do where a modality has no file for a key: stop, or keep the sample with that modality missing."""
    unpairable: Literal["error", "skip"] = "error"
    """What to do with a file that tells no key or no modality: stop, or leave it out and count it."""


def _compile(pattern: str) -> str:
    try:
        names = re.compile(pattern).groupindex
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error})") from error
    if len(names) > 1 and "subject" not in names:
        raise ValueError(
            f"{pattern!r} names the groups {', '.join(names)} but no `subject`, whose samples are to stay in one part"
        )
    return pattern


KeyPattern = Annotated[str, AfterValidator(_compile)]


class Found(NamedTuple):
    """Say of one `place` which modality or mask it holds (`name`), its `key` and its `subject`."""

    place: str
    name: str
    key: str
    subject: str


class Unpairable(NamedTuple):
    """Say of one `place` why it belongs to no sample."""

    place: str
    why: str


class Row(NamedTuple):
    """Hold what a table says of one sample.

    `where` is the row's place in the table, for errors; `files` and `masks` are places by name, `part` is train, val,
    test, or None where the table does not say.
    """

    where: str
    key: str
    subject: str
    files: Mapping[str, str]
    masks: Mapping[str, str]
    labels: Mapping[str, str | float | None]
    part: str | None


@dataclass(frozen=True)
class PairingReport:
    """Count what pairing found.

    - `paired`: samples with all modalities
    - `partly[modality]`: ids of the samples that lack it
    - `skipped`: places that belong to no sample, and why
    """

    paired: int = 0
    partly: dict[str, list[str]] = field(default_factory=dict)
    skipped: list[Unpairable] = field(default_factory=list)


@dataclass(frozen=True)
class Pairs:
    """Hold one row per sample, in the order of `ids`.

    - `files[modality]`: a place per row, None where it is missing
    - `ids`: a unique name per row; `groups`: the subject of each row
    - `parts`: train, val or test per row, where the source brings its own division
    - `labels[name]`: a name or number per row; `masks[name]`: the place of a mask per row; None where there is none
    """

    files: dict[str, list[str | None]]
    ids: list[str]
    groups: list[str]
    parts: list[str | None] | None = None
    labels: dict[str, list[str | float | None]] = field(default_factory=dict)
    masks: dict[str, list[str | None]] = field(default_factory=dict)
    report: PairingReport = PairingReport()


def pair(
    found: Iterable[Found | Unpairable],
    modalities: Sequence[str],
    config: PairingConfig,
    source: str,
    masks: Sequence[str] = (),
) -> Pairs:
    """Return the samples that `found` gives, each with one of the `modalities` at least.

    `source` names the data in errors. Raises `MandorlaError` for fewer than two modalities; a modality without any
    file; two places of one modality or mask with one key; one key of two subjects; one file that stands for two
    modalities or samples; and, unless `config` says otherwise, a key that lacks a modality, and a file that belongs to
    no sample, such as a mask without an image.
    """
    if len(set(modalities)) < 2:
        raise MandorlaError(f"{source}: {len(set(modalities))} modality given, paired data need two or more")
    items = sorted(found)
    places, subjects = _place([item for item in items if isinstance(item, Found)], modalities, masks)
    ids = sorted({key for name in modalities for key in places[name]})
    lost = [item for item in items if isinstance(item, Unpairable)]
    lost += [
        Unpairable(place, f"is {name} of {key!r}, of which there is no image")
        for name in masks
        for key, place in places[name].items()
        if not any(key in places[modality] for modality in modalities)
    ]
    if lost and config.unpairable == "error":
        raise MandorlaError(
            f"{lost[0].place}: {lost[0].why} ({len(lost)} such file(s)); mend or move it, or set data.unpairable to "
            "skip"
        )
    for name in modalities:
        if not places[name]:
            raise MandorlaError(f"{source}: no file of modality {name!r}; add them, or leave it out")
    partly = {name: lacking for name in modalities if (lacking := [key for key in ids if key not in places[name]])}
    if partly and config.unpaired == "error":
        name, lacking = next(iter(partly.items()))
        raise MandorlaError(
            f"{source}: no {name} for {lacking[0]!r} ({len(lacking)} such sample(s)), which has "
            f"{next(places[other][lacking[0]] for other in modalities if lacking[0] in places[other])}; add it, mend "
            "the key, or set data.unpaired to keep"
        )
    return Pairs(
        files={name: [places[name].get(key) for key in ids] for name in modalities},
        ids=ids,
        groups=[subjects[key] for key in ids],
        masks={name: [places[name].get(key) for key in ids] for name in masks if set(ids) & places[name].keys()},
        report=PairingReport(paired=len(ids) - len(set().union(*partly.values())), partly=partly, skipped=sorted(lost)),
    )


def _place(
    found: Sequence[Found], modalities: Sequence[str], masks: Sequence[str]
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return the place of each modality and mask by key, and the subject of each key.

    Raises `MandorlaError` for two places, or subjects, of one key, and a file that stands for two images.
    """
    places: dict[str, dict[str, str]] = {name: {} for name in (*modalities, *masks)}
    first: dict[str, Found] = {}
    used: dict[str, Found] = {}
    for item in found:
        place, name, key, subject = item
        if not key.isprintable():
            raise MandorlaError(f"{place}: unprintable characters in the key {key!r}; rename it")
        if key in places[name]:
            raise MandorlaError(
                f"{place}: is {name} of {key!r}, and so is {places[name][key]}; make the key tell them apart, or "
                "remove one"
            )
        if (other := first.setdefault(key, item)).subject != subject:
            raise MandorlaError(
                f"{place}: {key!r} is of subject {subject!r}, but of {other.subject!r} by {other.place}; mend the key"
            )
        if name in modalities and (other := used.setdefault(_real(place), item)) is not item:
            raise MandorlaError(
                f"{place}: is {name} of {key!r}, and also {other.name} of {other.key!r}; each sample and modality "
                "needs a file of its own"
            )
        places[name][key] = place
    return places, {key: item.subject for key, item in first.items()}


def pair_rows(rows: Iterable[Row | Unpairable], modalities: Sequence[str], config: PairingConfig, source: str) -> Pairs:
    """Return the samples that the `rows` of a table give, with their masks, labels and parts.

    Raises `MandorlaError` for two rows of one key, and as `pair` does.
    """
    by_key: dict[str, Row] = {}
    found: list[Found | Unpairable] = []
    for row in rows:
        if isinstance(row, Unpairable):
            found.append(row)
            continue
        if (other := by_key.setdefault(row.key, row)) is not row:
            raise MandorlaError(
                f"{row.where}: has the key {row.key!r} of {other.where} ({_example(row)} and {_example(other)}); make "
                "the key tell them apart, or remove one"
            )
        if not row.files:
            found.append(Unpairable(row.where, "names no file"))
            continue
        found += [Found(place, name, row.key, row.subject) for name, place in (*row.files.items(), *row.masks.items())]
    masks = dict.fromkeys(name for row in by_key.values() for name in row.masks)
    pairs = pair(found, modalities, config, source, list(masks))
    kept = [by_key[key] for key in pairs.ids]
    names = dict.fromkeys(name for row in kept for name, value in row.labels.items() if value is not None)
    return replace(
        pairs,
        parts=[row.part for row in kept] if any(row.part for row in kept) else None,
        labels={name: [row.labels.get(name) for row in kept] for name in names},
    )


def divide_by_folder(
    found: Iterable[Found | Unpairable], names: Mapping[str, str]
) -> tuple[list[Found | Unpairable], dict[str, str]]:
    """Return what was `found`, and the part of each key by the first folder in the name of its place.

    `names` are those of all places. Folders are a division where one is called train, or all are called train, val or
    test; what lies beside them belongs to no sample then. Raises `MandorlaError` for a key in two parts.
    """
    part_of = {place: to_part(name.partition("/")[0]) if "/" in name else "" for place, name in names.items()}
    if "train" not in part_of.values() and not set(part_of.values()) <= set(PARTS):
        return list(found), {}
    beside = "lies beside the folders train, val and test"
    found = [item if part_of[item.place] in PARTS else Unpairable(item.place, beside) for item in found]
    home: dict[str, Found] = {}
    for item in found:
        if isinstance(item, Found):
            other = home.setdefault(item.key, item)
            if part_of[other.place] != part_of[item.place]:
                raise MandorlaError(
                    f"{item.place}: {item.key!r} lies in {part_of[item.place]}, and by {other.place} in "
                    f"{part_of[other.place]}; move it into one part, or make the key tell them apart"
                )
    return found, {key: part_of[item.place] for key, item in home.items()}


def with_parts(pairs: Pairs, home: Mapping[str, str]) -> Pairs:
    """Return `pairs` divided as their keys are at `home`, if they are at all.

    Raises `MandorlaError` for a sample of which a table says another part.
    """
    if not home:
        return pairs
    for key, said in zip(pairs.ids, pairs.parts or (), strict=False):
        if said not in (None, home[key]):
            raise MandorlaError(f"{key!r} lies in the folder {home[key]}, but its split is said to be {said}; mend one")
    return replace(pairs, parts=[home[key] for key in pairs.ids])


def read_key(pattern: re.Pattern[str], text: str) -> tuple[str, str] | str:
    """Return the key and the subject that `pattern` reads off `text`, or in words why it cannot.

    The key is what the named groups match, joined by slashes, or all that the pattern matches if it names none; the
    subject is what the group `subject` matches, or the key where there is no such group.
    """
    match = pattern.search(text)
    if match is None:
        return f"data.key {pattern.pattern!r} does not match {text!r}"
    named = {group: value or "" for group, value in match.groupdict().items()}
    if named.get("subject") == "":
        return f"data.key {pattern.pattern!r} reads no subject off {text!r}"
    key = "/".join(named.values()).rstrip("/") or match[0]
    return key, named.get("subject", key)


def to_modality(name: str, aliases: Mapping[str, str] | None = None) -> str | None:
    """Return the modality or mask that is called `name`, by `aliases` first; None if there is none."""
    if aliases and name in aliases:
        return aliases[name]
    return _table().get(re.sub(r"[\W_]+", "", name).lower())


def is_mask(name: str) -> bool:
    """Return whether a name, as `to_modality` gives it, is that of a mask."""
    return name.endswith("_mask")


def in_order(names: Iterable[str]) -> list[str]:
    """Return the names of modalities and masks in the order of the tables above, others after them."""
    known = [*ALIASES, *MASKS]
    return sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))


def to_part(name: str) -> str:
    """Return `name` as one of train, val and test if it means one of them, else as it is."""
    name = name.strip()
    return PART_ALIASES.get(name.lower(), name.lower() if name.lower() in PARTS else name)


def to_values(texts: Sequence[str]) -> list[str | float | None]:
    """Return the cells of a table's column: numbers if all are, else names; None where there is nothing."""
    given = [None if text.strip().lower() in NOTHING else text.strip() for text in texts]
    numeric = all(text is None or _NUMBER.fullmatch(text) for text in given)
    return [None if text is None else float(text) for text in given] if numeric else given


@lru_cache
def _table() -> dict[str, str]:
    names = {**ALIASES, **MASKS}
    return {alias: name for name, others in names.items() for alias in (name.replace("_", ""), *others)}


def _example(row: Row) -> str:
    return next(iter([*row.files.values(), *row.masks.values()]), "no file")


def _real(place: str) -> str:
    """Return `place` with the links in its path followed, to tell whether two places are one."""
    path, key = split_place(place)
    real = os.path.realpath(path) if path.is_symlink() else os.path.join(_real_folder(path.parent), path.name)
    return f"{real}:{key or ''}"


@lru_cache(maxsize=1024)
def _real_folder(folder: Path) -> str:
    return os.path.realpath(folder)
