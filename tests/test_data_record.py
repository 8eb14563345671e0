"""What a run keeps of its data: the division is written down, and checked."""

import json
from types import SimpleNamespace

import pytest

from mandorla.data import Splits
from mandorla.data.record import check_splits, write_splits
from mandorla.data.splits import PARTS
from mandorla.errors import MandorlaError


def splits(train, val, test, contents="x", groups=None):
    parts = {"train": train, "val": val, "test": test}
    datasets = {part: SimpleNamespace(ids=ids, groups=groups[part] if groups else ids) for part, ids in parts.items()}
    return Splits(**datasets, contents=contents)


def test_splits_are_written_and_guarded(tmp_path):
    path = tmp_path / "splits.json"
    whole = splits(["a", "b"], ["c"], ["d"])
    write_splits(tmp_path, whole)
    written = json.loads(path.read_text())
    assert {part: written[part] for part in PARTS} == {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    assert written["data"] == whole.fingerprint
    assert check_splits(tmp_path, splits(["b", "a"], ["c"], ["d"]))
    assert not check_splits(tmp_path, splits(["a", "b"], ["c"], ["d"], contents="y"))
    with pytest.raises(MandorlaError, match="2 sample.* train, such as 'a'"):
        check_splits(tmp_path, splits(["b", "d"], ["c"], ["a"]))
    for change in (lambda w: w["test"].append(w["train"].pop()), lambda w: w.pop("hash"), lambda w: w.update(data="z")):
        changed = json.loads(json.dumps(written))
        change(changed)
        path.write_text(json.dumps(changed))
        with pytest.raises(MandorlaError, match="splits.json: its hash does not fit"):
            check_splits(tmp_path, whole)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (splits(["a"], ["c"], ["c"]), "sample 'c' lies in both val and test"),
        (
            splits(["a"], ["b"], ["c"], groups={"train": ["p"], "val": ["q"], "test": ["p"]}),
            "subject 'p' lies in both train and test",
        ),
    ],
)
def test_parts_that_overlap_are_not_written(tmp_path, parts, message):
    with pytest.raises(MandorlaError, match=message):
        write_splits(tmp_path, parts)
    assert not (tmp_path / "splits.json").exists()
