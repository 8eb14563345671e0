"""What a run keeps of its data, so that all later commands see the same: `splits.json` and `intensity.json`."""

import json
import warnings
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from mandorla.data.dataset import Splits
from mandorla.data.intensity import look, read_intensity, write_intensity
from mandorla.data.splits import PARTS
from mandorla.data.stored import with_intensity
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.storage import INTENSITY, SPLITS, read_json, write_text

_AGAIN = "restore them, or begin a new run"


def keep_record(run: Path, splits: Splits, trained: bool = False) -> Splits:
    """Write what the run folder is to keep of `splits`, unless it does; return `splits` as the run has them.

    What it kept before anything was `trained` on it gives way. Raises `MandorlaError` if the run was begun with another
    division.
    """
    settings = {name: fitted.settings for name, fitted in splits.intensity.items()}
    kept = read_intensity(run) if trained and (run / INTENSITY).exists() else {}
    begun = trained and (run / SPLITS).exists()
    if begun:
        check_splits(run, splits)
    if {name: fitted.settings for name, fitted in kept.items()} != settings or not begun:
        write_splits(run, splits)
        write_intensity(run, look(splits.intensity, splits.train))
    return follow_record(run, splits)


def follow_record(run: Path, splits: Splits) -> Splits:
    """Return `splits` with the intensity of the run; warn if the data hold other images than when the run began.

    Raises `MandorlaError` if the run has another division. A run that kept no record has no say.
    """
    if (run / INTENSITY).exists():
        splits = with_intensity(splits, read_intensity(run))
    if (run / SPLITS).exists() and not check_splits(run, splits):
        warnings.warn(
            f"{run}: the data hold other images than when this run began; its intensity stays, and `mandorla encode "
            f"{run}` makes its latents anew",
            MandorlaWarning,
            stacklevel=2,
        )
    return splits


def accept_data(run: Path, splits: Splits) -> None:
    """Note in the run's record that its data are now these, of the same division; `splits` come from above."""
    if not (run / SPLITS).exists() or not check_splits(run, splits):
        write_splits(run, splits)


def recorded_fingerprint(run: Path) -> str:
    """Return the fingerprint of the run's data. Raises `MandorlaError` if the run kept none."""
    return read_splits(run)["data"]


def write_splits(run: Path, splits: Splits) -> None:
    """Write the ids of each part, the fingerprint of the data and a hash over both into a run folder.

    Raises `MandorlaError` if a sample or a group lies in two parts.
    """
    _check_disjoint(splits)
    record = {part: list(dataset.ids) for part, dataset in splits.parts.items()} | {"data": splits.fingerprint}
    write_text(run / SPLITS, json.dumps(record | {"hash": _hash(record)}))


def check_splits(run: Path, splits: Splits) -> bool:
    """Compare the data with what the run folder keeps; return whether they have the fingerprint of that.

    Raises `MandorlaError` if a sample or a group lies in two parts, if `splits.json` was changed, or if it holds
    another division: then data were added, removed or renamed since, and what was trained on might now be tested on.
    """
    _check_disjoint(splits)
    written = read_splits(run)
    for part, dataset in splits.parts.items():
        if changed := sorted(set(written[part]) ^ set(dataset.ids)):
            raise MandorlaError(
                f"{run / SPLITS}: the data changed since this run began ({len(changed)} sample(s) entered or left "
                f"{part}, such as {changed[0]!r}); {_AGAIN}"
            )
    return written["data"] == splits.fingerprint


def read_splits(run: Path) -> dict[str, list[str] | str]:
    """Return what `write_splits` wrote: ids by part, and the fingerprint of the `data`.

    Raises `MandorlaError` if the file is missing, or its hash says that it was changed.
    """
    written = read_json(run / SPLITS)
    lists = all(isinstance(written.get(part), list) for part in PARTS)
    if not lists or written.get("hash") != _hash(written):
        raise MandorlaError(f"{run / SPLITS}: its hash does not fit what it holds, it was changed or damaged; {_AGAIN}")
    return written


def _check_disjoint(splits: Splits) -> None:
    """Raise `MandorlaError` if a sample, or a group where the data has groups, lies in two parts."""
    for what, key in (("sample", "ids"), ("subject", "groups")):
        home: dict[str, str] = {}
        for part, dataset in splits.parts.items():
            names = set(map(str, getattr(dataset, key, ())))
            if common := sorted(names & home.keys()):
                raise MandorlaError(
                    f"{what} {common[0]!r} lies in both {home[common[0]]} and {part} ({len(common)} in all)"
                )
            home |= dict.fromkeys(names, part)


def _hash(parts: Mapping) -> str:
    content = {part: sorted(map(str, parts.get(part, ()))) for part in PARTS} | {"data": parts.get("data", "")}
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
