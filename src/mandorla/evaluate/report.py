"""The report: one HTML page that needs nothing but itself, and the headline figures for the terminal."""

from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

from mandorla.evaluate.pictures import Picture
from mandorla.evaluate.record import Record
from mandorla.pages import fill
from mandorla.tables import print_table

NUM_HEADLINES = 7
HEADLINES = (  # the first of these that were measured
    "shared/class",
    "private/class linear",
    "private/class mlp",
    "coherence/cross",
    "joint/agreement",
    "swap/class",
    "swap/agreement",
    "translation/*/anatomy psnr",
    "lesion/known from *",
    "lesion/known from private *",
    "lesion/contrast kept",
    "translation/psnr mean",
    "translation/*/psnr mean",
    "translation/ssim mean",
    "translation/psnr single",
    "retrieval/recall at 1",
    "information/critic",
    "fidelity/judge frechet",
    "fidelity/random frechet",
    "fidelity/random recall",
    "reconstruction/psnr/*",
    "copies/ratio in *",
    "copies/ratio in *",
    "copies/noticed in *",
    "copies/noticed in *",
    "copies/distance in *",
    "copies/distance in *",
    "copies/nearer in *",
    "copies/nearer in *",
)
SECTIONS = {
    "ceiling": "Ceiling",
    "shared": "Shared part",
    "private": "Private parts",
    "separation": "Swaps read again, without labels",
    "retrieval": "Retrieval by the shared part, without labels",
    "information": "Information between shared and private parts",
    "explained": "Variance explained",
    "coherence": "Coherence given views",
    "swap": "Swaps",
    "joint": "Joint generation",
    "fidelity": "Fidelity and variety of samples",
    "translation": "Translation",
    "reconstruction": "Reconstruction",
    "lesion": "Lesion that one modality shows",
    "copies": "Copy audit",
}


def summary(records: Sequence[Record]) -> list[Record]:
    """Return the figures that matter most among those that were measured."""
    chosen: list[Record] = []
    for pattern in HEADLINES:
        match = next((record for record in records if fnmatch(record.name, pattern) and record not in chosen), None)
        if match:
            chosen.append(match)
    return chosen[:NUM_HEADLINES]


def print_summary(records: Sequence[Record]) -> None:
    """Print the headline figures beside chance, control, ceiling and p-value, where any has one."""
    if not (chosen := summary(records)):
        return print("none of the figures that matter most was measured: the report says which were, what was left out")
    keys = [k for k in ("value", "error", "chance", "control", "ceiling", "p") if any(r.text(k) for r in chosen)]
    print_table(
        ["figure", *("±" if key == "error" else key for key in keys), "better"],
        [[record.name, *(record.text(key) for key in keys), record.better] for record in chosen],
    )


def position(record: Record) -> dict[str, float]:
    """Return where value, chance and ceiling lie on a bar, each in percent from its left end."""
    marks = {k: getattr(record, k) for k in ("value", "chance", "ceiling") if getattr(record, k) is not None}
    low, high = min(0.0, *marks.values()), max(marks.values())
    if not record.unit and high <= 1:
        high = 1.0
    return {key: 100 * (mark - low) / ((high - low) or 1) for key, mark in marks.items()}


def render(
    title: str,
    records: Sequence[Record],
    pictures: Sequence[Picture],
    notes: Sequence[str],
    facts: dict[str, Any],
    config: str,
) -> str:
    """Return the page.

    - `facts` name what was measured (data, seed, seconds); `notes` say what was left out and why
    - `config`: the resolved configuration as YAML
    """
    galleries: dict[str, list[Picture]] = {}
    for picture in pictures:
        galleries.setdefault(picture.section, []).append(picture)
    tables = {text: _table([r for r in records if r.group == group]) for group, text in SECTIONS.items()}
    return fill(
        "evaluate/report.html.jinja",
        {
            "title": title,
            "headlines": [(record, position(record)) for record in summary(records)],
            "galleries": galleries,
            "tables": {text: parts for text, parts in tables.items() if parts[0]},
            "notes": notes,
            "facts": facts,
            "config": config,
        },
    )


def _table(records: list[Record]) -> tuple[list[Record], list[Record]]:
    """Return the records that sum a section up and the others, those of one view or one route."""
    main = [record for record in records if record.name.count("/") == 1]
    return (main, [record for record in records if record not in main]) if main else (records, [])
