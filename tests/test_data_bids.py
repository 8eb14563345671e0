"""BIDS: names tell subject, session and modality; what they leave open is asked, not guessed."""

import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mandorla.data import load_data, pair_files
from mandorla.data.bids import BidsConfig
from mandorla.data.samples import SliceConfig
from mandorla.errors import MandorlaError


def touch(root, *paths):
    """Write empty files; nothing is read before pairing is done."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


@pytest.fixture
def root(tmp_path):
    for subject in ("01", "02"):
        for session in ("a", "b"):
            for last in ("T1w", "ce-gad_T1w", "FLAIR", "label-Lesion_mask", "T1w_x"):
                path = f"sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}_{last}.nii.gz"
                touch(tmp_path, path if last != "T1w_x" else path.replace("T1w_x.nii.gz", "T1w.json"))
            touch(tmp_path, f"sub-{subject}/ses-{session}/func/sub-{subject}_ses-{session}_task-rest_bold.nii.gz")
    touch(tmp_path, "derivatives/x/sub-01/anat/sub-01_T1w.nii.gz", "README", "sub-03.txt")
    lines = [
        "participant_id\tage\tgroup\tempty",
        "sub-02\t61\tpatient\tn/a",
        "01\tn/a\tcontrol\tn/a",
        "sub-09\t5\tx\ty",
    ]
    (tmp_path / "participants.tsv").write_text("\n".join(lines))
    return tmp_path


def load(root, **settings):
    return pair_files(BidsConfig(root=str(root), **settings))


def names(pairs, modality):
    return [path and os.path.basename(path) for path in pairs.files[modality]]


def test_sessions_are_samples_and_columns_labels(root):
    pairs = load(root)
    assert pairs.ids == ["sub-01/ses-a", "sub-01/ses-b", "sub-02/ses-a", "sub-02/ses-b"]
    assert pairs.groups == ["sub-01", "sub-01", "sub-02", "sub-02"]
    assert list(pairs.files) == ["t1", "t1gd", "flair"]
    assert names(pairs, "t1gd")[1] == "sub-01_ses-b_ce-gad_T1w.nii.gz"
    assert names(pairs, "t1")[2] == "sub-02_ses-a_T1w.nii.gz"
    assert [Path(path).name for path in pairs.masks["lesion_mask"]][3] == "sub-02_ses-b_label-Lesion_mask.nii.gz"
    assert pairs.labels == {"age": [None, None, 61, 61], "group_label": ["control"] * 2 + ["patient"] * 2}
    assert pairs.parts is None and not pairs.report.skipped


def test_modalities_and_labels_may_be_chosen(root):
    pairs = load(root, modalities=["flair", "t1"], labels=["age"])
    assert (list(pairs.files), list(pairs.labels)) == (["flair", "t1"], ["age"])
    pairs = load(root, modalities=["t1", "bold"], datatypes=["anat", "func"])
    assert names(pairs, "bold")[0] == "sub-01_ses-a_task-rest_bold.nii.gz"


def test_files_may_lie_in_the_subjects_folder(tmp_path):
    for subject in ("07", "19"):
        touch(tmp_path, *(f"sub-{subject}/sub-{subject}_{last}.nii.gz" for last in ("T1w", "T1wGd", "T2w", "lesion")))
    pairs = load(tmp_path)
    assert (pairs.ids, list(pairs.files), list(pairs.masks)) == (
        ["sub-07", "sub-19"],
        ["t1", "t1gd", "t2"],
        ["lesion_mask"],
    )
    assert pairs.labels == {}


def test_entities_choose_and_what_they_leave_open_is_an_error(root):
    folder = "sub-01/ses-a/anat/sub-01_ses-a"
    touch(root, f"{folder}_acq-fast_run-1_FLAIR.nii.gz", f"{folder}_acq-fast_run-2_FLAIR.nii.gz")
    message = r"_FLAIR.nii.gz: is flair of 'sub-01/ses-a', and so is .*_FLAIR.nii.gz; choose by data.entities \((.*)\)"
    with pytest.raises(MandorlaError, match=message) as caught:
        load(root)
    assert "acq, run" in str(caught.value)
    with pytest.raises(MandorlaError, match=message) as caught:
        load(root, entities={"acq": "fast"})
    assert "(run)" in str(caught.value)
    chosen = names(load(root, entities={"acq": "fast", "run": "2"}), "flair")
    assert chosen[:2] == ["sub-01_ses-a_acq-fast_run-2_FLAIR.nii.gz", "sub-01_ses-b_FLAIR.nii.gz"]
    assert names(load(root, entities={"acq": None}), "flair")[0] == "sub-01_ses-a_FLAIR.nii.gz"
    assert load(root, modalities=["t1", "t1gd"]).report.paired == 4, "what is not taken need not be chosen"
    touch(root, f"{folder}_T1w.nii")
    with pytest.raises(MandorlaError, match="_T1w.nii.gz: is t1 .* and so is sub-01_ses-a_T1w.nii; remove one"):
        load(root, entities={"acq": None})


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("sub-01/ses-a/anat/scan.nii.gz", "scan.nii.gz: has no BIDS name"),
        ("sub-01/ses-a/anat/sub-01_ses-a_acq_T1w.nii", "has no BIDS name"),
        ("sub-01/ses-a/anat/sub-01_ses-a_run-1_run-2_T1w.nii", "has no BIDS name"),
        ("sub-01/ses-a/anat/sub-01_ses-a.nii", "has no BIDS name"),
        ("sub-01/ses-a/anat/sub-02_ses-a_T2w.nii", "lies in sub-01/ses-a but is named sub-02/ses-a"),
        ("sub-01/ses-a/anat/sub-01_ses-b_T2w.nii", "lies in sub-01/ses-a but is named sub-01/ses-b"),
        ("sub-01/ses-a/anat/sub-01_T2w.nii", "lies in sub-01/ses-a but is named sub-01 "),
    ],
)
def test_names_that_tell_nothing_or_something_else(root, path, message):
    touch(root, path)
    with pytest.raises(MandorlaError, match=message):
        load(root)
    pairs = load(root, unpairable="skip")
    assert [item.place for item in pairs.report.skipped] == [str(root / path)]
    assert pairs.report.paired == 4


def test_named_labels_need_a_table(root):
    (root / "participants.tsv").unlink()
    assert load(root).labels == {}
    with pytest.raises(MandorlaError, match="participants.tsv: no such table"):
        load(root, labels=["age"])


def test_a_folder_without_subjects(tmp_path):
    touch(tmp_path, "sub-01.nii.gz")
    with pytest.raises(MandorlaError, match="no folder sub-... in it"):
        load(tmp_path)


@pytest.mark.parametrize("slices", [None, SliceConfig(axis="axial")])
def test_volumes_and_their_slices_are_read(tmp_path, slices):
    for subject in range(5):
        touch(tmp_path, f"sub-{subject}/anat/sub-{subject}_T1w.json")
        for number, last in enumerate(("T1w", "FLAIR", "lesion")):
            if (subject, last) != (3, "FLAIR"):
                volume = np.full((8, 9, 4), 10 * subject + number, np.uint8)
                volume[:4, :4] = np.arange(1, 5) * (5 if last == "T1w" else 1)
                path = tmp_path / f"sub-{subject}/anat/sub-{subject}_{last}.nii.gz"
                nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)
    rows = "".join(f"sub-{subject}\t{subject}.5\n" for subject in range(5))
    (tmp_path / "participants.tsv").write_text(f"participant_id\tage\n{rows}")
    splits = load_data(BidsConfig(root=str(tmp_path), unpaired="keep", slices=slices, duplicates="keep"), seed=0)
    assert sorted(splits.modalities[0].size) == ([8, 9] if slices else [4, 8, 9])
    assert sum(map(len, splits.parts.values())) == (20 if slices else 5)
    subjects = []
    for part in splits.parts.values():
        batch = part.batch(range(len(part)))
        subjects += sorted(set(batch.factors["group"]))
        for row, name in enumerate(batch.ids):
            subject = int(name[4])
            assert batch.factors["group"][row] == f"sub-{subject}" and batch.factors["age"][row] == subject + 0.5
            assert batch.x["t1"][row].median() * 255 == pytest.approx(10 * subject)
            assert batch.present["flair"][row] == (subject != 3)
            assert batch.x["flair"][row].median() * 255 == pytest.approx(10 * subject + 1 if subject != 3 else 0)
            assert np.median(batch.factors["lesion_mask"][row]) == 10 * subject + 2
    assert sorted(subjects) == [f"sub-{subject}" for subject in range(5)]


SHARED_DATA = Path(os.environ.get("MANDORLA_DATA") or Path(__file__).parents[2] / "shared" / "data")


@pytest.mark.skipif(not (SHARED_DATA / "open_ms").is_dir(), reason="no open_ms under MANDORLA_DATA")
def test_open_ms():
    pairs = pair_files(BidsConfig(root=str(SHARED_DATA), folder="open_ms"))
    assert pairs.ids == ["sub-07", "sub-19"]
    assert {name: len(places) for name, places in pairs.files.items()} == {"t1": 2, "t1gd": 2, "t2": 2, "flair": 2}
    assert list(pairs.masks) == ["lesion_mask"] and not pairs.report.partly and not pairs.report.skipped
