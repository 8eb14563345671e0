"""Tables: a row is a sample; what a cell cannot mean is named with its line."""

import numpy as np
import pytest
from PIL import Image

from mandorla.data import load_data, pair_files
from mandorla.data.table import TableConfig, read_table
from mandorla.errors import MandorlaError

NUM = 8


@pytest.fixture
def table(tmp_path):
    """Write eight subjects with two sessions each; the second lacks t2, and every second one its mask."""
    lines = ["subject,session,t1,t2,lesion_mask,split,age,sex"]
    for subject in range(NUM):
        for session in "ab":
            name = f"p{subject}{session}"
            for modality in ("t1", "t2", "lesion"):
                pixels = np.full((6, 8), subject * 20 + "ab".index(session) * 5 + (modality == "t2"), np.uint8)
                Image.fromarray(pixels % 3 if modality == "lesion" else pixels).save(
                    tmp_path / f"{name}_{modality}.png"
                )
            part = "test" if subject == 0 else "val" if subject == 1 else "train"
            t2 = f"{name}_t2.png" if session == "a" else ""
            mask = f"{name}_lesion.png" if subject % 2 else "n/a"
            lines.append(f"p{subject},{session},{name}_t1.png,{t2},{mask},{part},{50 + subject},{'fm'[subject % 2]}")
    path = tmp_path / "scans.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def config(table, **settings):
    return TableConfig(root=str(table.parent), table=table.name, **({"unpaired": "keep"} | settings))


def test_columns_are_found_by_what_they_hold(table):
    pairs = pair_files(config(table))
    assert pairs.ids == [f"p{subject}/{session}" for subject in range(NUM) for session in "ab"]
    assert pairs.groups == [f"p{subject}" for subject in range(NUM) for _ in "ab"]
    assert pairs.files["t1"][3] == str(table.parent / "p1b_t1.png")
    assert pairs.files["t2"][2:4] == [str(table.parent / "p1a_t2.png"), None]
    assert pairs.masks == {
        "lesion_mask": [
            str(table.parent / f"p{subject}{session}_lesion.png") if subject % 2 else None
            for subject in range(NUM)
            for session in "ab"
        ]
    }
    assert pairs.parts == ["test"] * 2 + ["val"] * 2 + ["train"] * 12
    assert pairs.labels == {
        "age": [50.0 + subject for subject in range(NUM) for _ in "ab"],
        "sex": ["fm"[subject % 2] for subject in range(NUM) for _ in "ab"],
    }
    assert pairs.report.partly == {"t2": [f"p{subject}/b" for subject in range(NUM)]}


def test_what_is_loaded_follows_the_table(table):
    splits = load_data(config(table), seed=0)
    assert set(splits.test.ids) == {"p0/a", "p0/b"} and set(splits.val.ids) == {"p1/a", "p1/b"}
    batch = splits.val.batch([0, 1])
    assert batch.present["t2"].tolist() == [True, False]
    np.testing.assert_allclose(batch.x["t1"][:, 0, 0, 0] * 255, [20, 25], atol=1e-4)
    assert batch.factors["age"].tolist() == [51, 51]
    assert splits.classes["sex"] == ("f", "m") and batch.factors["sex"].tolist() == [1, 1]
    assert batch.factors["lesion_mask"].shape == (2, 6, 8)
    assert np.unique(batch.factors["lesion_mask"][0]).tolist() == [20 % 3]


def test_the_order_of_rows_plays_no_role(table):
    whole = pair_files(config(table))
    names, *rows = table.read_text().splitlines()
    table.write_text("\n".join([names, *rows[::-1]]))
    assert pair_files(config(table)) == whole


def test_columns_are_what_the_settings_say(table):
    table.write_text(table.read_text().replace("sex", "group").replace("split", "fold"))
    pairs = pair_files(config(table, modalities=["t2", "t1"], masks=[], labels=["group"], split="fold"))
    assert (list(pairs.files), pairs.masks, list(pairs.labels)) == (["t2", "t1"], {}, ["group_label"])
    assert set(pairs.parts) == {"train", "val", "test"}
    found = pair_files(config(table))
    assert found.parts is None and list(found.labels) == ["fold", "age", "group_label"]


def test_other_columns_may_tell_samples_apart(table):
    table.write_text(table.read_text().replace("subject,session", "patient,visit"))
    with pytest.raises(MandorlaError, match="no column 'subject'; it has patient, visit, t1"):
        pair_files(config(table))
    with pytest.raises(MandorlaError, match=r"scans.csv:3: has the key 'p0' of .*scans.csv:2 \(.*p0b_t1.png and"):
        pair_files(config(table, subject="patient"))
    pairs = pair_files(config(table, subject="patient", key=["visit"]))
    assert pairs.ids[:2] == ["p0/a", "p0/b"] and pairs.groups[:2] == ["p0", "p0"]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_tables(table, delimiter):
    table.write_text("\ufeff" + table.read_text().replace(",", delimiter).replace("\n", "\r\n\r\n"))
    assert len(pair_files(config(table)).ids) == 2 * NUM


def test_files_may_lie_under_the_root(table):
    (table.parent / "lists").mkdir()
    moved = table.rename(table.parent / "lists" / table.name)
    pairs = pair_files(TableConfig(root=str(table.parent), table="lists/scans.csv", unpaired="keep"))
    assert pairs.files["t1"][0] == str(table.parent / "p0a_t1.png")
    (moved.parent / "p0a_t1.png").touch()
    pairs = pair_files(TableConfig(root=str(table.parent), table="lists/scans.csv", unpaired="keep"))
    assert pairs.files["t1"][0] == str(moved.parent / "p0a_t1.png"), "beside the table goes first"


def test_cells_may_name_parts_of_files(tmp_path):
    for subject in range(3):
        np.savez(tmp_path / f"p{subject}.npz", a=np.zeros((2, 2)), b=np.ones((2, 2)))
    rows = [f"p{subject},p{subject}.npz:a,p{subject}.npz:b" for subject in range(3)]
    (tmp_path / "t.csv").write_text("\n".join(["subject,x,y", *rows]))
    pairs = pair_files(TableConfig(root=str(tmp_path), table="t.csv"))
    assert pairs.files["y"] == [f"{tmp_path}/p{subject}.npz:b" for subject in range(3)]


def test_quoted_cells_may_hold_line_breaks(tmp_path):
    (tmp_path / "t.csv").write_text('a,b\n"x\ny",1\n\nz,2\n')
    assert read_table(tmp_path / "t.csv") == ({"a": ["x\ny", "z"], "b": ["1", "2"]}, [2, 5])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("p1b_t1.png", "p1x_t1.png", r"scans.csv:5: no file 'p1x_t1.png' in .* or .*; put it there"),
        ("p1b_t1.png", "p1a_t1.png", "p1a_t1.png: is t1 of 'p1/b', and also t1 of 'p1/a'"),
        ("p2a_t2.png", "p2a_t1.png", "p2a_t1.png: is t2 of 'p2/a', and also t1 of 'p2/a'"),
        ("p1,b,p1b_t1.png", "p1,a,p1b_t1.png", "scans.csv:5: has the key 'p1/a' of .*scans.csv:4"),
        ("p1,b,p1b_t1.png", ",b,p1b_t1.png", "scans.csv:5: no subject in this row"),
        ("p1,b,p1b_t1.png", "p1,b,", "scans.csv:5: names no file"),
        ("p1,b,", "p1,b", "scans.csv:5: 7 cells in a table of 8 columns"),
        ("p1,b,", "p1,b,,", "scans.csv:5: 9 cells in a table of 8 columns"),
        ("age,sex", "age,age", "scans.csv:1: the column 'age' is there 2 times"),
        ("age,sex", "age,", "scans.csv:1: the column '' is there 1 times"),
        ("p3,a,", '"p3,a,', "cannot be read as a table in UTF-8"),
        ("p1", "\udcff", "cannot be read as a table in UTF-8"),
        ("t1,t2", "t1,x", "scans.csv: no column 't2'"),
    ],
)
def test_mistakes_are_named_with_their_line(table, old, new, message):
    text = table.read_text()
    assert old in text
    table.write_bytes(text.replace(old, new, 1).encode(errors="surrogateescape"))
    settings = {"modalities": ["t1", "t2"]} if "no column" in message else {}
    with pytest.raises(MandorlaError, match=message) as caught:
        pair_files(config(table, **settings))
    assert "\n" not in str(caught.value)


def test_a_subject_in_two_parts_is_refused(table):
    table.write_text(table.read_text().replace("p1b_lesion.png,val", "p1b_lesion.png,train"))
    with pytest.raises(MandorlaError, match="the split leaks: subject 'p1' lies in both val and train"):
        load_data(config(table), seed=0)


def test_empty_tables(table):
    lines = table.read_text().splitlines()
    for text in ("", lines[0], "\n\n"):
        table.write_text(text)
        with pytest.raises(MandorlaError, match="an empty table"):
            pair_files(config(table))
    table.write_text(
        "\n".join(line.replace(",train", ",").replace(",test", ",").replace(",val", ",") for line in lines)
    )
    with pytest.raises(MandorlaError, match="the column 'split' is empty"):
        pair_files(config(table))
    table.unlink()
    with pytest.raises(MandorlaError, match="no such table"):
        pair_files(config(table))


def test_a_row_without_a_part_is_named(table):
    table.write_text(table.read_text().replace("p1b_lesion.png,val", "p1b_lesion.png,"))
    with pytest.raises(MandorlaError, match="sample 'p1/b' has the split None"):
        load_data(config(table), seed=0)
