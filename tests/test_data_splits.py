"""Splits: no group on two sides, whatever the order of files."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mandorla.data.splits import PARTS, split
from mandorla.errors import MandorlaError

GROUPS = [f"patient{number:02d}" for number in range(20) for _ in range(number + 1)]
SHARES = st.floats(0.01, 0.49)
SEEDS = st.integers(0, 2**32)
NAMES = st.lists(st.text(max_size=3), min_size=3, max_size=40)


def test_parts_cover_all_rows_and_share_no_group():
    rows = split(GROUPS, 0.2, 0.1, seed=0, source="data")
    assert sorted(np.concatenate(list(rows.values()))) == list(range(len(GROUPS)))
    groups = {part: {GROUPS[row] for row in numbers} for part, numbers in rows.items()}
    assert {part: len(names) for part, names in groups.items()} == {"train": 14, "val": 4, "test": 2}
    assert len(set.union(*groups.values())) == 20


def test_the_division_of_earlier_versions_stays():
    """As committed in 5e32d75, before stratification."""
    rows = split(GROUPS, 0.2, 0.1, seed=0, source="data")
    assert {GROUPS[row] for row in rows["test"]} == {"patient03", "patient07"}


def homes(groups, rows) -> dict[str, str]:
    """Return the part of each group; every row must be in one part exactly, every group in one."""
    assert sorted(np.concatenate(list(rows.values()))) == list(range(len(groups)))
    found = {}
    for part, numbers in rows.items():
        for row in numbers:
            assert found.setdefault(groups[row], part) == part, "a group on two sides"
    return found


@given(groups=NAMES, val=SHARES, test=SHARES, seed=SEEDS, order=st.randoms(use_true_random=False))
def test_every_row_has_one_part_and_the_order_of_files_plays_no_role(groups, val, test, seed, order):
    assume(len(set(groups)) >= 3)
    num = len(set(groups))
    assume(max(1, round(val * num)) + max(1, round(test * num)) < num)
    first = homes(groups, split(groups, val, test, seed, "data"))
    assert set(first.values()) == set(PARTS)
    mixed = list(groups)
    order.shuffle(mixed)
    assert homes(mixed, split(mixed, val, test, seed, "data")) == first


@given(
    classes=st.lists(st.integers(0, 3), min_size=8, max_size=80),
    val=st.floats(0.05, 0.4),
    test=st.floats(0.05, 0.4),
    seed=SEEDS,
)
def test_strata_get_their_shares_within_rounding(classes, val, test, seed):
    groups = [f"g{index}" for index in range(len(classes))]
    num_test, num_val = (max(1, round(share * len(groups))) for share in (test, val))
    assume(num_test + num_val < len(groups))
    rows = split(groups, val, test, seed, "data", classes)
    homes(groups, rows)
    assert (len(rows["test"]), len(rows["val"])) == (num_test, num_val), "strata do not change the sizes of parts"
    size = Counter(classes)
    of = {part: Counter(classes[row] for row in numbers) for part, numbers in rows.items()}
    for stratum, count in size.items():
        assert abs(of["test"][stratum] - count * num_test / len(groups)) < 1 + 1e-9
        left = count - of["test"][stratum]
        assert abs(of["val"][stratum] - left * num_val / (len(groups) - num_test)) < 1 + 1e-9


def test_a_group_has_its_commonest_class():
    """Twelve patients, half of them with two slices of class 1 and one of class 0."""
    groups = [f"g{index // 3}" for index in range(36)]
    classes = [1 if index // 3 < 6 and index % 3 else 0 for index in range(36)]
    rows = split(groups, 0.34, 0.34, 3, "data", classes)
    for part in PARTS:
        names = {groups[row] for row in rows[part]}
        assert (len(names), sum(int(name[1:]) < 6 for name in names)) == (4, 2)


def test_division_depends_on_seed():
    tests = [frozenset(split(GROUPS, 0.2, 0.2, seed, "data")["test"].tolist()) for seed in range(5)]
    assert len(set(tests)) == 5


def test_each_part_gets_a_group_or_an_error():
    assert all(len(rows) == 1 for rows in split(["a", "b", "c"], 0.01, 0.01, 0, "data").values())
    with pytest.raises(MandorlaError, match="scans: 2 group"):
        split(["a", "b", "b"], 0.1, 0.1, 0, "scans")


def test_shares_are_to_be_lowered_only_where_that_helps():
    with pytest.raises(MandorlaError, match="4 group.*add some, or lower data.val_share and data.test_share"):
        split(["a", "b", "c", "d"], 0.49, 0.49, 0, "scans")
    for groups, parts in ((["a"], None), (["a", "b"], None), (["a", "b"], ["train", "test"])):
        with pytest.raises(MandorlaError, match="too few to divide .*: add some, each part needs one$"):
            split(groups, 0.1, 0.1, 0, "scans", parts=parts, ids=groups if parts else ())


@given(groups=NAMES, val=SHARES, test=SHARES, seed=SEEDS, strata=st.lists(st.integers(0, 2), min_size=40, max_size=40))
def test_a_division_that_puts_all_in_train_says_nothing(groups, val, test, seed, strata):
    num = len(set(groups))
    assume(max(1, round(val * num)) + max(1, round(test * num)) < num)
    none, all_train = (
        split(groups, val, test, seed, "data", strata[: len(groups)], parts=parts, ids=groups)
        for parts in (None, ["train"] * len(groups))
    )
    assert all((none[part] == all_train[part]).all() for part in PARTS)


# -------------------------------------------------------------------------------------------- divisions that are given


@given(groups=NAMES, seed=SEEDS, part_of=st.dictionaries(st.text(max_size=3), st.sampled_from(PARTS)))
def test_a_division_without_leak_is_taken_as_it_is(groups, seed, part_of):
    parts = [part_of.get(group, "train") for group in groups]
    given_parts = set(parts)
    assume(len({group for group in groups if part_of.get(group, "train") == "train"}) > 2)
    rows = split(groups, 0.2, 0.2, seed, "table", parts=parts, ids=groups)
    found = homes(groups, rows)
    assert set(found.values()) == set(PARTS)
    for group, part in zip(groups, parts, strict=True):
        assert found[group] == part or (part == "train" and found[group] not in given_parts)


@pytest.mark.parametrize("seed", range(6))
def test_a_part_that_is_drawn_has_its_share_of_each_class(seed):
    groups = [f"p{number}" for number in range(30)]
    parts, rare = ["test"] * 10 + ["train"] * 20, np.arange(30) % 10 == 9
    rows = split(groups, 0.5, 0.2, seed, "table", rare, parts=parts, ids=groups)
    assert rare[rows["val"]].sum() == 1 and rare[rows["train"]].sum() == 1 and len(rows["val"]) == 10


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["train", "val", "test", "test"], "table: the split leaks: subject 'b' lies in both val and test"),
        (["train", "val", "val", "Test"], "table: sample '3' has the split 'Test'; give train, val or test"),
        (["train", "val", "val", None], "table: sample '3' has the split None"),
        (["train", "test", "test", "test"], r"table: 1 group\(s\) with the split train are too few"),
        (["test", "val", "val", "test"], r"table: 0 group\(s\) with the split train are too few"),
    ],
)
def test_a_division_that_leaks_or_lacks_a_part_is_refused(parts, message):
    with pytest.raises(MandorlaError, match=message):
        split(["a", "b", "b", "c"], 0.2, 0.2, 0, "table", parts=parts, ids=["0", "1", "2", "3"])
