"""Pairing: which files are of one sample.

A source (`mandorla.data.folders` and others) finds files and reads off each whose it is: a *key*, such as
`p07/baseline/s12`, that all files of one sample share, and the *subject* whose samples stay in one part. Files are
paired by key and never by order, and what comes out does not depend on the order in which they were found.

A *place* is where the values of one modality of one sample lie: `PATH`, or `PATH:KEY` for a part of a file, as
`mandorla.data.readers` says.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from mandorla.errors import MandorlaError


class Found(NamedTuple):
    """Say of one `place` which modality it holds, its `key` and its `subject`."""

    place: str
    modality: str
    key: str
    subject: str


@dataclass(frozen=True)
class PairingReport:
    """Count what pairing found.

    - `paired`: samples with all modalities
    - `partly[modality]`: ids of the samples that lack it
    - `skipped`: places that belong to no sample, and why
    """

    paired: int = 0
    partly: dict[str, list[str]] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)


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


def pair(found: Iterable[Found], modalities: Sequence[str], unpaired: Literal["error", "keep"], source: str) -> Pairs:
    """Return the samples that `found` gives; `source` names the settings in errors.

    Raises `MandorlaError` for fewer than two modalities, two places of one modality with one key, and, unless
    `unpaired` is keep, a key that lacks a modality.
    """
    if len(modalities) < 2:
        raise MandorlaError(f"{source}: {len(modalities)} modality given, paired data need two or more")
    places: dict[str, dict[str, str]] = {name: {} for name in modalities}
    subjects: dict[str, str] = {}
    for place, modality, key, subject in sorted(found):
        if key in places[modality]:
            raise MandorlaError(
                f"{place}: has the key {key!r} of {places[modality][key]}; make data.key tell them apart"
            )
        places[modality][key] = place
        subjects[key] = subject
    ids = sorted(subjects)
    partly = {name: [key for key in ids if key not in places[name]] for name in modalities}
    for name, lonely in partly.items():
        if lonely and unpaired == "error":
            raise MandorlaError(
                f"{source}: {name} has no file for {lonely[0]!r} and {len(lonely) - 1} other key(s); add it, mend "
                "data.key, or set data.unpaired to keep"
            )
    return Pairs(
        files={name: [places[name].get(key) for key in ids] for name in modalities},
        ids=ids,
        groups=[subjects[key] for key in ids],
        report=PairingReport(
            paired=sum(all(key in places[name] for name in modalities) for key in ids),
            partly={name: lonely for name, lonely in partly.items() if lonely},
        ),
    )
