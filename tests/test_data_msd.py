"""`dataset.json`: channels of one file, lists of files, files by name; parts and labels as it says."""

import json

import nibabel
import numpy as np
import pytest

from mandorla.data import load_data, pair_files
from mandorla.data.msd import MsdConfig
from mandorla.errors import MandorlaError


@pytest.fixture
def folder(tmp_path):
    """Return a folder with empty files; nothing is read before pairing is done."""
    for kind in ("imagesTr", "labelsTr", "imagesTs"):
        (tmp_path / kind).mkdir()
        for number in range(3):
            for suffix in ("", "_t1", "_t2"):
                (tmp_path / kind / f"p{number}{suffix}.nii.gz").touch()
    return tmp_path


def load(folder, content, **settings):
    (folder / "dataset.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return pair_files(MsdConfig(root=str(folder), **settings))


def entry(number, **others):
    return {"image": f"./imagesTr/p{number}.nii.gz", "label": f"./labelsTr/p{number}.nii.gz"} | others


DECATHLON = {
    "name": "BRATS",
    "modality": {"1": "T1w", "0": "FLAIR", "10": "T1gd", "2": "Some Other"},
    "labels": {"0": "background", "1": "edema"},
    "training": [entry(2), entry(0)],
    "test": ["./imagesTs/p1.nii.gz"],
}


def test_channels_of_one_file_are_modalities(folder):
    pairs = load(folder, DECATHLON)
    assert pairs.ids == pairs.groups == ["imagesTr/p0", "imagesTr/p2", "imagesTs/p1"]
    assert pairs.parts == ["train", "train", "test"]
    names = ["flair", "t1", "some_other", "t1gd"]
    assert list(pairs.files) == names
    assert [pairs.files[name][0] for name in names] == [f"{folder}/imagesTr/p0.nii.gz:{number}" for number in range(4)]
    assert pairs.masks == {"label_mask": [f"{folder}/labelsTr/p{number}.nii.gz" for number in (0, 2)] + [None]}
    assert not pairs.report.partly and not pairs.report.skipped
    reversed_lists = DECATHLON | {"training": DECATHLON["training"][::-1]}
    assert load(folder, reversed_lists) == pairs


def test_channels_are_read_from_the_file(tmp_path):
    content = {"modality": {"0": "FLAIR", "1": "T1w"}, "training": [], "test": []}
    for number in range(6):
        volumes = np.stack([np.full((4, 5, 6), 10 * number + channel, np.uint8) for channel in range(2)], axis=-1)
        volumes[0, 0] = 200  # none is blank
        nibabel.save(nibabel.Nifti1Image(volumes, np.eye(4)), tmp_path / f"p{number}.nii.gz")
        mask = np.zeros((4, 5, 6), np.uint8)
        mask[number % 2 :, 0, 0] = 3
        nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), tmp_path / f"m{number}.nii.gz")
        image = f"./p{number}.nii.gz"
        content["test" if number == 5 else "training"].append(
            image if number == 5 else {"image": image, "label": f"./m{number}.nii.gz"}
        )
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    splits = load_data(MsdConfig(root=str(tmp_path)), seed=0)
    assert [(m.name, m.shape) for m in splits.modalities] == [("flair", (1, 6, 5, 4)), ("t1", (1, 6, 5, 4))]
    assert splits.test.ids == ["p5"] and (len(splits.train), len(splits.val)) == (4, 1)
    for part in splits.parts.values():
        batch = part.batch(range(len(part)))
        for row, name in enumerate(batch.ids):
            number = int(name[1])
            for channel, modality in enumerate(("flair", "t1")):
                assert batch.x[modality][row].median() * 255 == pytest.approx(10 * number + channel)
            assert number == 5 or batch.factors["label_mask"][row].sum() == 3 * (4 - number % 2)


def test_lists_may_be_chosen_and_keys_name_patients(folder):
    pairs = load(folder, DECATHLON, lists=("training",), key=r"(?P<subject>p\d)")
    assert (pairs.ids, pairs.groups, pairs.parts) == (["p0", "p2"], ["p0", "p2"], ["train", "train"])


def test_a_list_of_files_follows_the_declared_channels(folder):
    images = ["imagesTr/p0_t1.nii.gz", "imagesTr/p0_t2.nii.gz"]
    pairs = load(folder, {"channel_names": ["T1", "T2"], "validation": [{"image": images, "label": 1}]})
    assert pairs.files == {"t1": [f"{folder}/{images[0]}"], "t2": [f"{folder}/{images[1]}"]}
    assert (pairs.labels, pairs.masks, pairs.parts) == ({"label": [1.0]}, {}, ["val"])


def test_files_by_name_labels_and_subjects(folder):
    first = {"T1c": "imagesTr/p0_t1.nii.gz", "T2": "imagesTr/p0_t2.nii.gz", "seg": "labelsTr/p0.nii.gz"}
    second = {"T1c": "imagesTr/p1_t1.nii.gz", "T2": None, "group": "a", "age": 3, "subject": "one"}
    pairs = load(folder, {"training": [first | {"subject": "one"}, second]}, unpaired="keep")
    assert (pairs.ids, pairs.groups) == (["imagesTr/p0_t1", "imagesTr/p1_t1"], ["one", "one"])
    assert list(pairs.files) == ["t1gd", "t2"] and pairs.files["t2"] == [f"{folder}/imagesTr/p0_t2.nii.gz", None]
    assert pairs.masks == {"seg_mask": [f"{folder}/labelsTr/p0.nii.gz", None]}
    assert pairs.labels == {"group_label": [None, "a"], "age": [None, 3.0]}


def test_paths_may_be_relative_to_the_root(folder):
    (folder / "lists").mkdir()
    content = DECATHLON | {"training": [entry(0)], "test": []}
    (folder / "lists" / "fold0.json").write_text(json.dumps(content))
    pairs = pair_files(MsdConfig(root=str(folder), dataset="lists/fold0.json"))
    assert pairs.files["t1"] == [f"{folder}/imagesTr/p0.nii.gz:1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": [entry(9)]}, "dataset.json, training 0: no file './imagesTr/p9.nii.gz:0' in"),
        ({"training": [entry(0), entry(0)]}, "training 1: has the key 'imagesTr/p0' of .*, training 0"),
        ({"training": [entry(0), entry(1, label="no.nii")]}, "training 1: no file 'no.nii'"),
        ({"training": [{"label": "labelsTr/p0.nii.gz"}]}, "training 0: names no image"),
        ({"training": [{"image": ["imagesTr/p0.nii.gz"]}]}, "training 0: the image must be .* for each of flair, t1"),
        ({"training": [{"image": "imagesTr/p0.png"}]}, "training 0: the image must be one NIfTI file"),
        ({"training": [3]}, "training 0: the image must be"),
        ({"training": [entry(0, box=[1, 2])]}, "training 0: 'box' is neither a file nor a name or number"),
        ({"training": [entry(0, age=10**400)]}, "training 0: age is too large a number"),
        ({"training": "imagesTr"}, "'training' is no list of images"),
        ({"training": []} | {"test": []}, "has no list `training` of images"),
        ({"modality": {"0": "T1", "1": "t1w"}}, "two channels are called 't1'"),
        ({"modality": {"a": "T1"}}, "its channels are not named as"),
        ({"modality": {"0": 5}}, "its channels are not named as"),
        ({"modality": 3}, "its channels are not named as"),
        ({"modality": "MRI"}, "its channels are not named as"),
        ({"modality": {}}, "for each of the modalities that `modality` declares"),
        ({"modality": {"0": "CT"}}, "1 modality given, paired data need two or more"),
    ],
)
def test_mistakes_are_named_with_their_entry(folder, change, message):
    with pytest.raises(MandorlaError, match=message) as caught:
        load(folder, DECATHLON | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"training": ' + "9" * 5000 + "}", "\udcff"])
def test_broken_files(folder, text):
    (folder / "dataset.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(MandorlaError, match="dataset.json: (cannot be read as JSON|has no list|'training' is no list)"):
        pair_files(MsdConfig(root=str(folder)))


def test_a_missing_file(tmp_path):
    with pytest.raises(MandorlaError, match="dataset.json: no such file"):
        pair_files(MsdConfig(root=str(tmp_path)))
