import os

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from mandorla.data import load_data, pair_files
from mandorla.data.folders import FoldersConfig
from mandorla.errors import MandorlaError, MandorlaWarning

KEY = r"(?P<subject>p\d)_(?P<slice>s\d)"


def level(subject, number, name):
    """Return the grey level that tells a file from all others."""
    return 10 * (1 + subject) + number + (100 if name == "t2" else 0)


def paint(path, value, shape=(6, 8), dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, value, dtype)).save(path)


@pytest.fixture
def root(tmp_path):
    for subject in range(8):
        for number in range(3):
            key = f"p{subject}_s{number}"
            paint(tmp_path / "first" / f"{key}_t1.png", level(subject, number, "t1"))
            paint(tmp_path / "second" / f"x{9 - subject}" / f"{key}_t2.tif", level(subject, number, "t2"))
    (tmp_path / "first" / "notes.txt").write_text("no image")
    return tmp_path


def config(root, **settings):
    settings = {"folders": {"t1": "first", "t2": "second"}, "key": KEY} | settings
    return FoldersConfig(root=str(root), **settings)


def test_pairs_by_key_and_splits_by_subject(root):
    splits = load_data(config(root), seed=0)
    assert [(m.name, m.shape) for m in splits.modalities] == [("t1", (1, 6, 8)), ("t2", (1, 6, 8))]
    subjects = []
    for dataset in (splits.train, splits.val, splits.test):
        batch = dataset.batch(range(len(dataset)))
        for i, key in enumerate(batch.ids):
            subject, number = int(key[1]), int(key[4])
            assert batch.factors["group"][i] == f"p{subject}"
            for name in ("t1", "t2"):
                np.testing.assert_allclose(batch.x[name][i] * 255, level(subject, number, name), atol=1e-4)
        subjects.append(set(batch.factors["group"]))
    assert sum(map(len, subjects)) == len(set.union(*subjects)) == 8


def divided(root, homes):
    """Write `PART/t1/p0.png` and `PART/t2/p0.png`, and so on, for the subjects' parts `homes`."""
    for subject, part in enumerate(homes):
        for name in ("t1", "t2"):
            paint(root / part / name / f"p{subject}.png", level(subject, 0, name))
    return FoldersConfig(root=str(root), folders={"t1": "*/t1/*.png", "t2": "*/t2/*.png"})


def test_folders_of_a_division_are_the_division(tmp_path):
    homes = ["train", "test", "val", "train", "test", "train"]
    splits = load_data(divided(tmp_path, homes), seed=0)
    assert {part: dataset.ids for part, dataset in splits.parts.items()} == {
        part: [f"{part}/p{s}" for s, home in enumerate(homes) if home == part] for part in ("train", "val", "test")
    }


def test_what_lies_beside_the_folders_of_a_division_is_in_no_part(tmp_path):
    config = divided(tmp_path, ["train", "test", "val", "train", "extra"])
    with pytest.raises(MandorlaError, match="extra/t1/p4.png: lies beside the folders train, val and test"):
        load_data(config, seed=0)
    splits = load_data(config.model_copy(update={"unpairable": "skip"}), seed=0)
    assert {part: dataset.ids for part, dataset in splits.parts.items()} == {
        "train": ["train/p0", "train/p3"],
        "val": ["val/p2"],
        "test": ["test/p1"],
    }


def test_folders_and_a_list_of_subjects_that_divide_otherwise_are_refused(tmp_path):
    config = divided(tmp_path, ["train", "test", "val", "train"])
    config = config.model_copy(update={"key": r"(?P<subject>p\d)", "participants": "who.csv"})
    table = "participant_id,split\np0,train\np1,test\np2,val\np3,{}\n"
    (tmp_path / "who.csv").write_text(table.format("train"))
    assert load_data(config, seed=0).test.ids == ["p1"]
    (tmp_path / "who.csv").write_text(table.format("test"))
    with pytest.raises(MandorlaError, match="'p3' lies in the folder train, but its split is said to be test"):
        load_data(config, seed=0)


def test_a_sample_in_two_folders_of_a_division_is_refused(tmp_path):
    config = divided(tmp_path, ["train", "test", "val", "train"]).model_copy(update={"key": r"(?P<subject>p\d)"})
    assert load_data(config, seed=0).test.ids == ["p1"]
    (tmp_path / "train" / "t2" / "p0.png").rename(tmp_path / "val" / "t2" / "p0.png")
    with pytest.raises(MandorlaError, match="val/t2/p0.png: 'p0' lies in val, and by .*train/t1/p0.png in train; move"):
        load_data(config, seed=0)


def test_key_without_names_is_what_it_matches(root):
    for number in range(4):
        for folder in ("a", "b"):
            paint(root / folder / f"{number}.png", number)
    splits = load_data(FoldersConfig(root=str(root), folders={"a": "a", "b": "b"}), seed=0)
    assert sorted(splits.train.ids + splits.val.ids + splits.test.ids) == list("0123")


def test_sixteen_bits_stay_sixteen(root):
    for subject in range(8):
        for number in range(3):
            paint(root / "first" / f"p{subject}_s{number}_t1.png", 1000 + number, dtype=np.uint16)
    train = load_data(config(root), seed=0).train
    x = train.batch(range(len(train))).x["t1"]
    np.testing.assert_allclose(np.unique(x * 65535), [1000, 1001, 1002], atol=1e-2)


def test_unpaired_is_an_error_or_a_missing_modality(root):
    (root / "second" / "x7" / "p2_s1_t2.tif").unlink()
    (root / "first" / "p5_s0_t1.png").unlink()
    with pytest.raises(MandorlaError, match=r"no t1 for 'p5/s0' \(1 such sample\(s\)\), which has .*p5_s0_t2.tif; add"):
        load_data(config(root), seed=0)
    splits = load_data(config(root, unpaired="keep"), seed=0)
    missing = set()
    for dataset in (splits.train, splits.val, splits.test):
        batch = dataset.batch(range(len(dataset)))
        for name, present in batch.present.items():
            missing |= {(name, batch.ids[i]) for i in np.flatnonzero(~present)}
            assert not batch.x[name][~present].any()
    assert missing == {("t2", "p2/s1"), ("t1", "p5/s0")}


def test_a_folder_that_is_called_like_an_image_is_none(root):
    (root / "second" / "p9_s9.png").mkdir()
    assert len(load_data(config(root), seed=0).train)


def pairs(root, **settings):
    """Return the samples as `{id: {modality: path within root}}`."""
    found = pair_files(config(root, **settings))
    return {
        key: {name: os.path.relpath(places[row], root) for name, places in found.files.items() if places[row]}
        for row, key in enumerate(found.ids)
    }


def test_a_glob_pairs_by_what_its_wildcards_stand_for(tmp_path):
    for case in ("p1/a", "p2/b"):
        for name in ("t1", "t2"):
            paint(tmp_path / "scans" / case / f"{name}_x.png", 0)
    both = {"t1": "scans/*/*/t1_*.png", "t2": "scans/**/t2_?.png"}
    assert pairs(tmp_path, folders=both, key=".+") == {
        f"{case}/x": {name: f"scans/{case}/{name}_x.png" for name in both} for case in ("p1/a", "p2/b")
    }
    key = "(?P<subject>p.)/(?P<session>.)"
    assert list(pairs(tmp_path, folders=both, key=key)) == ["p1/a", "p2/b"]
    assert list(pairs(tmp_path, folders={"t1": "scans/*/a/t1*", "t2": "scans/*/a/t2*"}, key=".+")) == ["p1/_x"]


def test_a_suffix_of_two_parts_is_no_part_of_the_key(tmp_path):
    for path in ("t1/p1.nii.gz", "t1/p2.nii", "t2/p1_t2.nii", "t2/p2_t2.nii.gz"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    assert list(pairs(tmp_path, folders={"t1": "t1", "t2": "t2/*_t2.nii*"}, key=".+")) == ["p1", "p2"]


def test_a_glob_may_name_an_array_in_each_file(tmp_path):
    for case in ("p1", "p2"):
        np.savez(tmp_path / f"{case}.npz", t1=np.zeros((3, 4)), t2=np.ones((3, 4)))
    found = pairs(tmp_path, folders={"t1": "*.npz:t1", "t2": "*.npz:t2"}, key=".+")
    assert found == {case: {name: f"{case}.npz:{name}" for name in ("t1", "t2")} for case in ("p1", "p2")}


def test_a_list_of_files_is_paired_by_their_paths_below_the_common_folder(tmp_path):
    for path in ("a/p1/x.png", "a/p2/x.png", "b/p1/x.png", "c/p2/x.png"):
        paint(tmp_path / path, 0)
    first, second = ["a/p2/x.png", "a/p1/x.png"], ["b/p1/x.png", "c/p2/x.png"]
    found = pairs(tmp_path, folders={"t1": first, "t2": second}, key="p.")
    assert found == {"p1": {"t1": "a/p1/x.png", "t2": "b/p1/x.png"}, "p2": {"t1": "a/p2/x.png", "t2": "c/p2/x.png"}}
    assert list(pairs(tmp_path, folders={"t1": first, "t2": ["b/p1/x.png"]}, key=".+", unpaired="keep")) == [
        "p1/x",
        "p2/x",
        "x",
    ]


def test_masks_and_labels_of_subjects(root):
    for subject in range(7):
        for number in range(3):
            paint(root / "masks" / f"p{subject}_s{number}.png", (subject + number) % 2)
    (root / "people.csv").write_text("subject,kind\n" + "\n".join(f"p{n},{'ab'[n % 2]}" for n in range(8)))
    splits = load_data(config(root, masks={"lesion_mask": "masks"}, participants="people.csv"), seed=0)
    assert splits.classes["kind"] == ("a", "b")
    for part in splits.parts.values():
        batch = part.batch(range(len(part)))
        for row, key in enumerate(batch.ids):
            subject, number = int(key[1]), int(key[4])
            assert batch.factors["kind"][row] == subject % 2
            if subject < 7:
                assert (batch.factors["lesion_mask"][row] == (subject + number) % 2).all()
    paint(root / "masks" / "p9_s0.png", 0)
    with pytest.raises(MandorlaError, match="masks/p9_s0.png: is lesion_mask of 'p9/s0', of which there is no image"):
        pairs(root, masks={"lesion_mask": "masks"})
    with pytest.raises(MandorlaError, match="data.masks: 't1' is a modality in data.folders"):
        pairs(root, masks={"t1": "masks"})


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({"t1": "first", "t2": "first"}, "s0_t1.png: is t2 of 'p0/s0', and also t1 of 'p0/s0'"),
        ({"t1": "first", "t2": "link"}, "link/p0_s0_t1.png: is t2 of 'p0/s0', and also t1"),
        ({"t1": "first", "t2": "nowhere/*.png"}, "nowhere: no such folder; mend data.folders.t2"),
        ({"t1": "first", "t2": "second/*.png"}, "second: no file like .*.png that can be read"),
        ({"t1": "first", "t2": ["second/no.png"]}, "second/no.png: no such file; mend data.folders.t2"),
        ({"t1": "first", "t2": []}, "data.folders.t2: an empty list"),
    ],
)
def test_wrong_folders_are_named(root, folders, message):
    (root / "link").symlink_to(root / "first")
    with pytest.raises(MandorlaError, match=message):
        pairs(root, folders=folders)


def test_what_the_key_does_not_match_may_be_left_out(root):
    break_name(root)
    with pytest.warns(MandorlaWarning, match=r"data: 1 file\(s\) left out, such as .*other.png: data.key .* not match"):
        splits = load_data(config(root, unpairable="skip"), seed=0)
    assert sum(map(len, splits.parts.values())) == 24


def break_duplicate(root):
    paint(root / "first" / "p1_s1_again.png", 0)


def break_size(root):
    paint(root / "first" / "p3_s1_t1.png", 0, shape=(6, 9))


def break_channels(root):
    paint(root / "first" / "p3_s1_t1.png", 0, shape=(6, 8, 3))


def break_type(root):
    paint(root / "first" / "p3_s1_t1.png", 0, dtype=np.uint16)


def break_file(root):
    (root / "first" / "p3_s1_t1.png").write_bytes(b"nothing")


def break_name(root):
    paint(root / "first" / "other.png", 0)


def break_emptiness(root):
    for path in (root / "first").glob("*.png"):
        path.unlink()


def break_encoding(root):
    (root / "first" / "p3_s1_t1.png").rename(os.fsdecode(os.fsencode(root) + b"/first/p3_s1_\xff.png"))


def break_folder(root):
    (root / "first").rename(root / "third")


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (break_duplicate, r"p1_s1_t1.png: is t1 of 'p1/s1', and so is .*p1_s1_again.png"),
        (break_size, r"p3_s1_t1.png: 6x9 pixels .* unlike .*p0_s0_t1.png with 6x8"),
        (break_channels, r"p3_s1_t1.png: 6x8 pixels of 3 channel\(s\)"),
        (break_type, "p3_s1_t1.png: 6x8 pixels of 1 channel.* in uint16, unlike"),
        (break_file, "p3_s1_t1.png: cannot be read as an image"),
        (break_name, "other.png: data.key .* does not match"),
        (break_emptiness, "first: holds no file that can be read"),
        (break_encoding, "unprintable characters in the name"),
        (break_folder, "first: no such folder"),
    ],
)
def test_mistakes_are_named_in_one_line(root, mistake, message):
    mistake(root)
    with pytest.raises(MandorlaError, match=message) as caught:
        load_data(config(root), seed=0)
    assert "\n" not in str(caught.value)


def test_sizes_may_differ_only_where_that_is_said(root):
    break_size(root)
    with pytest.raises(MandorlaError, match=r"6x9 pixels .* unlike .* with 6x8 .* or set data.size and data.sizes=any"):
        load_data(config(root, size=(3, 4)), seed=0)
    with pytest.raises(MandorlaError, match="6x9 pixels"):
        load_data(config(root, sizes="any"), seed=0)
    splits = load_data(config(root, size=(3, 4), sizes="any"), seed=0)
    assert {m.size for m in splits.modalities} == {(3, 4)}


def test_settings_are_checked(root):
    with pytest.raises(MandorlaError, match="paired data need two or more"):
        load_data(config(root, folders={"t1": "first"}), seed=0)
    with pytest.raises(ValidationError, match="is no regular expression"):
        config(root, key="(")
    with pytest.raises(ValidationError, match="groups patient, slice but no `subject`"):
        config(root, key="(?P<patient>p.)_(?P<slice>s.)")


def test_what_a_run_wrote_is_no_data(root):
    pairs, run = pair_files(config(root)), root / "first" / "runs" / "mine"
    paint(run / "samples" / "p0_s0.png", 3)
    (run / "splits.json").write_text("{}")
    with pytest.raises(MandorlaError, match="runs/mine/samples/p0_s0.png"):  # a file of that name makes no run
        pair_files(config(root))
    (run / "intensity.json").write_text("{}")
    assert pair_files(config(root)) == pairs
