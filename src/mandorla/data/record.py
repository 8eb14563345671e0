"""What a run keeps of its data, so that all later commands see the same: `splits.json` and `intensity.json`."""

import warnings
from pathlib import Path

from mandorla.data.dataset import Splits
from mandorla.data.intensity import look, read_intensity, write_intensity
from mandorla.data.splits import check_splits, read_splits, write_splits
from mandorla.data.stored import with_intensity
from mandorla.errors import MandorlaWarning
from mandorla.storage import INTENSITY, SPLITS


def keep_record(run: Path, splits: Splits, trained: bool = False) -> Splits:
    """Write what the run folder is to keep of `splits`, unless it does; return `splits` as the run has them.

    What it kept before anything was `trained` on it gives way. Raises `MandorlaError` if the run was begun with another
    division.
    """
    settings = {name: fitted.settings for name, fitted in splits.intensity.items()}
    kept = read_intensity(run) if trained and (run / INTENSITY).exists() else {}
    begun = trained and (run / SPLITS).exists()
    if begun:
        check_splits(run / SPLITS, splits)
    if {name: fitted.settings for name, fitted in kept.items()} != settings or not begun:
        write_splits(run / SPLITS, splits)
        write_intensity(run, look(splits.intensity, splits.train))
    return follow_record(run, splits)


def follow_record(run: Path, splits: Splits) -> Splits:
    """Return `splits` with the intensity of the run; warn if the data hold other images than when the run began.

    Raises `MandorlaError` if the run has another division. A run that kept no record has no say.
    """
    if (run / INTENSITY).exists():
        splits = with_intensity(splits, read_intensity(run))
    if (run / SPLITS).exists() and not check_splits(run / SPLITS, splits):
        warnings.warn(
            f"{run}: the data hold other images than when this run began; its intensity stays, and `mandorla encode "
            f"{run}` makes its latents anew",
            MandorlaWarning,
            stacklevel=2,
        )
    return splits


def accept_data(run: Path, splits: Splits) -> None:
    """Note in the run's record that its data are now these, of the same division; `splits` come from above."""
    if not (run / SPLITS).exists() or not check_splits(run / SPLITS, splits):
        write_splits(run / SPLITS, splits)


def recorded_fingerprint(run: Path) -> str:
    """Return the fingerprint of the run's data. Raises `MandorlaError` if the run kept none."""
    return read_splits(run / SPLITS)["data"]
