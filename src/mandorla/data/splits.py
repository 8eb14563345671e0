"""Division into train, val and test: by group, repeatable, written down.

Everything of one group (a patient) goes to one part; neighbouring slices of a head are near copies, and a model that
trained on one has seen the other.
"""

import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

from mandorla.data.dataset import Splits
from mandorla.errors import MandorlaError
from mandorla.storage import read_json, write_text


def split_by_group(
    groups: Sequence[str], val_share: float, test_share: float, seed: int, source: str
) -> dict[str, np.ndarray]:
    """Return the rows of each part, "train", "val" and "test", so that no group lies in two.

    `groups` names the group of each row; the shares are of groups, and each part gets one at least. The order of rows
    plays no role. `source` names the data in the error that too few groups raise.
    """
    names = sorted(set(groups), key=lambda name: blake2b(f"{seed}/{name}".encode()).digest())
    num_test, num_val = (max(1, round(share * len(names))) for share in (test_share, val_share))
    if len(names) <= num_test + num_val:
        raise MandorlaError(
            f"{source}: {len(names)} group(s) are too few to divide into train, val and test: add some, or lower"
            " data.val_share and data.test_share"
        )
    bounds = {"test": slice(0, num_test), "val": slice(num_test, num_test + num_val)}
    bounds["train"] = slice(num_test + num_val, None)
    groups = np.asarray(groups)
    return {part: np.flatnonzero(np.isin(groups, names[bounds[part]])) for part in ("train", "val", "test")}


def write_splits(path: Path, splits: Splits) -> None:
    """Write the ids of each part to the JSON file `path`; accept it if it is there already and says the same.

    Raises `MandorlaError` if an id lies in two parts, or if the file holds another division: then data were added,
    removed or renamed since, and what was trained on might now be tested on.
    """
    parts = {"train": list(splits.train.ids), "val": list(splits.val.ids), "test": list(splits.test.ids)}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        if common := sorted(set(parts[one]) & set(parts[other])):
            raise MandorlaError(f"sample {common[0]!r} lies in both {one} and {other} ({len(common)} in all)")
    if path.exists():
        written = read_json(path, *parts)
        for part, ids in parts.items():
            if changed := sorted(set(written[part]) ^ set(ids)):
                raise MandorlaError(
                    f"{path}: the data changed since this run began ({len(changed)} sample(s) entered or left {part}, "
                    f"such as {changed[0]!r}); restore them, or begin a new run"
                )
        return
    write_text(path, json.dumps(parts))
