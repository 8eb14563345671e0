"""Pairing: by key and never by order; whatever does not fit is named; nothing is lost without a word."""

import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mandorla.data.pairing import (
    Found,
    PairingConfig,
    Row,
    Unpairable,
    pair,
    pair_rows,
    read_key,
    to_modality,
    to_part,
    to_values,
)
from mandorla.data.splits import split
from mandorla.errors import MandorlaError

KEEP = PairingConfig(unpaired="keep", unpairable="skip")
STRICT = PairingConfig()
MODALITIES = ("t1", "t2", "flair")
NAMES = st.sampled_from([*MODALITIES, "label_mask"])
KEYS = st.text("ab/_0", min_size=1, max_size=3)
FILES = st.dictionaries(st.tuples(KEYS, NAMES), st.integers(0, 10**6), max_size=30)


def found_in(files):
    """Return one found file per (key, name); the subject is the first letter of the key, the path tells nothing."""
    return [Found(f"{number:06d}-{key}-{name}.png", name, key, key[0]) for (key, name), number in files.items()]


@given(files=FILES, order=st.randoms(use_true_random=False))
def test_every_file_lands_under_its_key_whatever_the_order(files, order):
    found = found_in(files)
    seen = [name for name in MODALITIES if any(item.name == name for item in found)]
    if len(seen) < 2:
        with pytest.raises(MandorlaError, match="paired data need two or more|no file of modality"):
            pair(found, seen if len(seen) == 1 else MODALITIES, KEEP, "data", ["label_mask"])
        return
    pairs = pair(found, seen, KEEP, "data", ["label_mask"])
    order.shuffle(found)
    assert pair(found, seen, KEEP, "data", ["label_mask"]) == pairs
    assert pairs.ids == sorted(set(pairs.ids))
    placed = {
        place: (key, name)
        for name, places in [*pairs.files.items(), *pairs.masks.items()]
        for key, place in zip(pairs.ids, places, strict=True)
        if place is not None
    }
    skipped = {item.place for item in pairs.report.skipped}
    assert placed.keys().isdisjoint(skipped)
    assert placed.keys() | skipped == {item.place for item in found}, "every file is in a sample or reported"
    assert all(placed[item.place] == (item.key, item.name) for item in found if item.place in placed)
    assert all(any(places[row] for places in pairs.files.values()) for row in range(len(pairs.ids)))
    assert pairs.groups == [key[0] for key in pairs.ids]
    lacking = {key for ids in pairs.report.partly.values() for key in ids}
    assert pairs.report.paired + len(lacking) == len(pairs.ids)


@given(files=FILES)
def test_a_lack_is_an_error_unless_it_is_kept(files):
    found = [item for item in found_in(files) if item.name != "label_mask"]
    seen = [name for name in MODALITIES if any(item.name == name for item in found)]
    if len(seen) < 2:
        return
    pairs = pair(found, seen, KEEP, "data")
    if pairs.report.partly:
        name, ids = next(iter(pairs.report.partly.items()))
        with pytest.raises(MandorlaError, match=f"^data: no {name} for {re.escape(repr(ids[0]))} "):
            pair(found, seen, STRICT, "data")
    else:
        assert pair(found, seen, STRICT, "data") == pairs


A1, A2 = Found("x/a1.png", "t1", "a", "a"), Found("y/a2.png", "t2", "a", "a")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([A1, A2, Found("x/b.png", "t1", "a", "a")], "x/b.png: is t1 of 'a', and so is x/a1.png; make the key"),
        ([A1, Found("y/a2.png", "t2", "a", "b")], "y/a2.png: 'a' is of subject 'b', but of 'a' by x/a1.png"),
        ([A1, Found("x/a1.png", "t2", "a", "a")], "x/a1.png: is t2 of 'a', and also t1 of 'a'"),
        ([A1, A2, Found("x/a1.png", "t1", "b", "b")], "x/a1.png: is t1 of 'b', and also t1 of 'a'"),
        ([A1, A2, Unpairable("x/c.png", "has no name")], r"x/c.png: has no name \(1 such file\(s\)\); mend or move it"),
        ([A1, A2, Found("m.png", "seg_mask", "b", "b")], "m.png: is seg_mask of 'b', of which there is no image"),
        ([A1, Found("b", "t2", "b\n", "b")], r"b: unprintable characters in the key 'b\\n'"),
        ([A1], "data: no file of modality 't2'"),
        ([], "data: no file of modality 't1'"),
    ],
)
def test_mistakes_name_the_files(found, message):
    for order in (found, found[::-1]):
        with pytest.raises(MandorlaError, match=message):
            pair(order, ["t1", "t2"], STRICT, "data", ["seg_mask"])


def test_a_mask_of_no_sample_is_left_out():
    pairs = pair([A1, A2, Found("m.png", "seg_mask", "b", "b")], ["t1", "t2"], KEEP, "data", ["seg_mask"])
    assert not pairs.masks and [lost.place for lost in pairs.report.skipped] == ["m.png"]


def test_links_to_one_file_are_one_file(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "c").symlink_to(tmp_path)
    for other in ("b.png", "c/a.png", "c/b.png", "../" + tmp_path.name + "/a.png"):
        found = [Found(f"{tmp_path}/a.png", "t1", "a", "a"), Found(f"{tmp_path}/{other}", "t2", "a", "a")]
        with pytest.raises(MandorlaError, match="and also t[12] of 'a'"):
            pair(found, ["t1", "t2"], STRICT, "data")


def test_parts_of_one_file_are_different_places(tmp_path):
    (tmp_path / "a.npz").touch()
    found = [Found(f"{tmp_path}/a.npz:{name}", name, "a", "a") for name in ("t1", "t2")]
    assert pair(found, ["t1", "t2"], STRICT, "data").ids == ["a"]


def row(key, files, labels=None, part=None, masks=None):
    return Row(f"table.csv:{key}", key, key[0], files, masks or {}, labels or {}, part)


def test_rows_bring_labels_masks_and_parts():
    rows = [
        row("b1", {"t1": "b1", "t2": "b2"}, {"age": 3.0, "sex": None, "empty": None}, "train"),
        row("a1", {"t1": "a1"}, {"age": None, "sex": "f", "empty": None}, "test", {"seg_mask": "m"}),
        row("c1", {}, {"age": 1.0}, "val", {"seg_mask": "n"}),
    ]
    pairs = pair_rows(rows, ["t1", "t2"], KEEP, "data")
    assert (pairs.ids, pairs.groups, pairs.parts) == (["a1", "b1"], ["a", "b"], ["test", "train"])
    assert pairs.files == {"t1": ["a1", "b1"], "t2": [None, "b2"]}
    assert pairs.masks == {"seg_mask": ["m", None]}
    assert pairs.labels == {"age": [None, 3.0], "sex": ["f", None]}
    assert pairs.report.partly == {"t2": ["a1"]}
    assert pairs.report.skipped == [Unpairable("table.csv:c1", "names no file")]
    assert pair_rows(rows[::-1], ["t1", "t2"], KEEP, "data") == pairs
    with pytest.raises(MandorlaError, match="table.csv:c1: names no file"):
        pair_rows(rows, ["t1", "t2"], STRICT, "data")


def test_two_rows_of_one_key_are_an_error_even_where_they_fit_together():
    rows = [row("a", {"t1": "x"}, part="train"), row("a", {"t2": "y"}, part="test")]
    with pytest.raises(MandorlaError, match=r"has the key 'a' of table.csv:a \(y and x\)"):
        pair_rows(rows, ["t1", "t2"], KEEP, "data")


SAMPLES = st.dictionaries(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 3)), st.booleans(), min_size=8)


def rows_of(samples, part_of=None):
    """Return a row for each (subject, session); one in two lacks a modality; parts by subject and session."""
    return [
        Row(
            where=f"{subject}{session}",
            key=f"{subject}/{session}",
            subject=subject,
            files={"t1": f"{subject}{session}.t1"} | ({"t2": f"{subject}{session}.t2"} if both else {}),
            masks={},
            labels={},
            part=part_of((subject, session)) if part_of else None,
        )
        for (subject, session), both in samples.items()
    ]


def parts_of(pairs, rows):
    """Return the part of each id; every sample must be in one part exactly, every subject in one."""
    assert sorted(np.concatenate(list(rows.values()))) == list(range(len(pairs.ids)))
    homes = {pairs.ids[row]: part for part, numbers in rows.items() for row in numbers}
    subjects = {subject: homes[name] for name, subject in zip(pairs.ids, pairs.groups, strict=True)}
    assert all(homes[name] == subjects[name[0]] for name in homes), "a subject on two sides"
    return homes


@given(samples=SAMPLES, seed=st.integers(0, 99), order=st.randoms(use_true_random=False))
def test_every_sample_is_in_one_part_whatever_the_order(samples, seed, order):
    assume(len({subject for subject, _ in samples}) >= 3 and any(samples.values()))
    rows = rows_of(samples)
    pairs = pair_rows(rows, ["t1", "t2"], KEEP, "data")
    homes = parts_of(pairs, split(pairs.groups, 0.2, 0.2, seed, "data"))
    assert homes.keys() == {f"{subject}/{session}" for subject, session in samples}
    order.shuffle(rows)
    again = pair_rows(rows, ["t1", "t2"], KEEP, "data")
    assert parts_of(again, split(again.groups, 0.2, 0.2, seed, "data")) == homes


@given(samples=SAMPLES, cut=st.integers(1, 31), by_subject=st.booleans())
def test_a_given_division_is_kept_or_refused_by_the_name_of_who_leaks(samples, cut, by_subject):
    assume(any(samples.values()))

    def part_of(sample):
        number = "abcdefgh".index(sample[0]) * 4 + (0 if by_subject else sample[1])
        return "train" if number < cut else "test"

    pairs = pair_rows(rows_of(samples, part_of), ["t1", "t2"], KEEP, "data")
    parts = {sample: part_of(sample) for sample in samples}
    leaking = {s for s, _ in samples if len({part for sample, part in parts.items() if sample[0] == s}) > 1}
    assume("test" in parts.values() and sum(part_of((s, 3)) == "train" for s in {s for s, _ in samples}) > 1)
    try:
        rows = split(pairs.groups, 0.2, 0.2, 0, "data", parts=pairs.parts, ids=pairs.ids)
    except MandorlaError as error:
        assert any(f"subject {subject!r} lies in both" in str(error) for subject in leaking)
    else:
        assert not leaking
        homes = parts_of(pairs, rows)
        assert {f"{s}/{v}": part for (s, v), part in parts.items()} == {
            name: "train" if part == "val" else part for name, part in homes.items()
        }


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (".+", "p1/t1", ("p1/t1", "p1/t1")),
        (r"\d+", "scan 12 of 13", ("12", "12")),
        (r"(?P<case>c\d)", "x_c1_t1", ("c1", "c1")),
        (r"(?P<subject>p\d)(_(?P<session>v\d))?_(?P<slice>s\d)", "p1_v2_s3", ("p1/v2/s3", "p1")),
        (r"(?P<subject>p\d)(_(?P<session>v\d))?_(?P<slice>s\d)", "p1_s3", ("p1//s3", "p1")),
        (r"(?P<subject>p\d)(_(?P<session>v\d))?", "p1_t1", ("p1", "p1")),
        (r"(?P<session>v\d)_(?P<subject>p\d)", "v1_p2", ("v1/p2", "p2")),
    ],
)
def test_keys_are_read_off_names(pattern, text, expected):
    assert read_key(re.compile(pattern), text) == expected


def test_what_tells_no_key_says_why():
    assert "does not match 'x'" in read_key(re.compile("p"), "x")
    assert "reads no subject off 'v1'" in read_key(re.compile(r"(?P<subject>p\d)?(?P<session>v\d)"), "v1")


@pytest.mark.parametrize(
    ("modality", "names"),
    [
        ("t1", "t1n T1 T1w t1_pre"),
        ("t1gd", "t1c T1CE t1gd T1wGd T1-post"),
        ("t2", "T2W t2"),
        ("flair", "FLAIR t2f T2-FLAIR t2_flair"),
        ("pd", "PD PDw"),
        ("seg_mask", "seg Segm"),
        ("label_mask", "label mask"),
    ],
)
def test_aliases(modality, names):
    assert [to_modality(name) for name in names.split()] == [modality] * len(names.split())


def test_the_users_aliases_go_first():
    assert to_modality("t9") is None
    assert to_modality("t9", {"t9": "new"}) == "new"
    assert to_modality("t1c", {"t1c": "cut"}) == "cut"


def test_parts_and_values_are_read_as_people_write_them():
    assert [to_part(text) for text in ("Train", " training", "VAL", "validation", "test", "fold1", "")] == [
        "train",
        "train",
        "val",
        "val",
        "test",
        "fold1",
        "",
    ]
    assert to_values(["1", " -2.5", "1e3", "", "n/a", "NaN"]) == [1, -2.5, 1000, None, None, None]
    assert to_values(["1", "two", ""]) == ["1", "two", None]
    assert to_values(["1_0", "inf"]) == ["1_0", "inf"], "no number as people write it"


def test_a_modality_given_twice_is_one():
    with pytest.raises(MandorlaError, match="1 modality given, paired data need two or more"):
        pair([A1], ["t1", "t1"], KEEP, "data")
