"""Tables of subjects: labels by name, never by order."""

import pytest

from mandorla.data.pairing import Pairs
from mandorla.data.participants import ParticipantsConfig, add_labels
from mandorla.errors import MandorlaError

PAIRS = Pairs(files={}, ids=["p1/a", "p1/b", "p2/a", "p3/a"], groups=["p1", "p1", "p2", "p3"])


def labels(folder, text, pairs=PAIRS, **settings):
    (folder / "people.csv").write_text(text)
    return add_labels(pairs, ParticipantsConfig(root=str(folder), participants="people.csv", **settings)).labels


def test_labels_are_those_of_the_subject(tmp_path):
    text = "age,subject,sex,group,empty\n61,p2,n/a,x,\n54,p1,f,y,\n9,p9,m,z,only p9\n"
    ages, sexes, groups = [54, 54, 61, None], ["f", "f", None, None], ["y", "y", "x", None]
    assert labels(tmp_path, text) == {"age": ages, "sex": sexes, "group_label": groups}
    assert labels(tmp_path, text, labels=["sex"]) == {"sex": sexes}


def test_subjects_may_be_called_sub(tmp_path):
    assert labels(tmp_path, "participant_id,age\nsub-p1,54\np2,61")["age"] == [54, 54, 61, None]
    named = Pairs(files={}, ids=["a", "b"], groups=["sub-p1", "sub-p2"])
    assert labels(tmp_path, "participant_id,age\nsub-p1,54\np2,61", named)["age"] == [54, 61]


def test_a_column_says_the_part_of_each_subject(tmp_path):
    (tmp_path / "people.csv").write_text("subject,split,age\np1,Training,54\np2,val,61\n")
    pairs = add_labels(PAIRS, ParticipantsConfig(root=str(tmp_path), participants="people.csv"))
    assert pairs.parts == ["train", "train", "val", None] and list(pairs.labels) == ["age"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,age\np1,3", "people.csv: no column 'participant_id'; it has id, age"),
        ("subject,age\np1,3\nsub-p1,4", "people.csv:3: sub-p1 is there twice"),
        ("subject,age\np1", "people.csv:2: 1 cells in a table of 2 columns"),
        ("subject,sex\np1,f", "people.csv: no column 'age'; it has subject, sex"),
        ("subject,age\nP1,3\n", "people.csv: no row for any subject, such as 'p1'"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(MandorlaError, match=message):
        labels(tmp_path, text, labels=["age"])


def test_without_a_table(tmp_path):
    config = ParticipantsConfig(root=str(tmp_path))
    assert add_labels(PAIRS, config) is PAIRS
    assert add_labels(PAIRS, config, tmp_path / "people.csv") is PAIRS
    with pytest.raises(MandorlaError, match="no table to take age from; name data.participants"):
        add_labels(PAIRS, ParticipantsConfig(root=str(tmp_path), labels=["age"]))
    (tmp_path / "people.csv").write_text("subject,age\np1,3")
    assert add_labels(PAIRS, config, tmp_path / "people.csv").labels["age"] == [3, 3, None, None]
    with pytest.raises(MandorlaError, match="no.csv: no such table"):
        add_labels(PAIRS, ParticipantsConfig(root=str(tmp_path), participants="no.csv"), tmp_path / "people.csv")
