import json
from types import SimpleNamespace

import numpy as np
import pytest

from mandorla.data.splits import split_by_group, write_splits
from mandorla.errors import MandorlaError

GROUPS = [f"patient{number:02d}" for number in range(20) for _ in range(number + 1)]


def test_parts_cover_all_rows_and_share_no_group():
    rows = split_by_group(GROUPS, 0.2, 0.1, seed=0, source="data")
    assert sorted(np.concatenate(list(rows.values()))) == list(range(len(GROUPS)))
    groups = {part: {GROUPS[row] for row in numbers} for part, numbers in rows.items()}
    assert {part: len(names) for part, names in groups.items()} == {"train": 14, "val": 4, "test": 2}
    assert len(set.union(*groups.values())) == 20


def test_division_depends_on_seed_and_not_on_order():
    def test_groups(groups, seed):
        return {groups[row] for row in split_by_group(groups, 0.2, 0.2, seed, "data")["test"]}

    assert test_groups(GROUPS, 0) == test_groups(GROUPS[::-1], 0)
    assert len({frozenset(test_groups(GROUPS, seed)) for seed in range(5)}) == 5


def test_each_part_gets_a_group_or_an_error():
    assert all(len(rows) == 1 for rows in split_by_group(["a", "b", "c"], 0.01, 0.01, 0, "data").values())
    with pytest.raises(MandorlaError, match="scans: 2 group"):
        split_by_group(["a", "b", "b"], 0.1, 0.1, 0, "scans")


def splits(train, val, test):
    return SimpleNamespace(**{k: SimpleNamespace(ids=v) for k, v in {"train": train, "val": val, "test": test}.items()})


def test_splits_are_written_once_and_guarded(tmp_path):
    path = tmp_path / "splits.json"
    write_splits(path, splits(["a", "b"], ["c"], ["d"]))
    assert json.loads(path.read_text()) == {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    write_splits(path, splits(["b", "a"], ["c"], ["d"]))
    with pytest.raises(MandorlaError, match="2 sample.* train, such as 'a'"):
        write_splits(path, splits(["b", "d"], ["c"], ["a"]))
    with pytest.raises(MandorlaError, match="'c' lies in both val and test"):
        write_splits(tmp_path / "other.json", splits(["a"], ["c"], ["c"]))
    assert not (tmp_path / "other.json").exists()
    path.write_text("{}")
    with pytest.raises(MandorlaError, match="splits.json does not hold train, val, test"):
        write_splits(path, splits(["a", "b"], ["c"], ["d"]))
