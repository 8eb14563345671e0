import os

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from mandorla.data import load_data
from mandorla.data.folders import FoldersConfig
from mandorla.errors import MandorlaError

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
    with pytest.raises(MandorlaError, match=r"t1 has no file for 'p5/s0' and 0 other key"):
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
        (break_duplicate, r"p1_s1_t1.png: has the key 'p1/s1' of .*p1_s1_again.png"),
        (break_size, r"p3_s1_t1.png: 6x9 pixels .* unlike .*p0_s0_t1.png with 6x8"),
        (break_channels, r"p3_s1_t1.png: 6x8 pixels of 3 channel\(s\)"),
        (break_type, "p3_s1_t1.png: 6x8 pixels of 1 channel.* in uint16, unlike"),
        (break_file, "p3_s1_t1.png: cannot be read as an image"),
        (break_name, "other.png: data.key .* does not match"),
        (break_emptiness, "first: holds no image"),
        (break_encoding, "unprintable characters in the name"),
        (break_folder, "first: no such folder"),
    ],
)
def test_mistakes_are_named_in_one_line(root, mistake, message):
    mistake(root)
    with pytest.raises(MandorlaError, match=message) as caught:
        load_data(config(root), seed=0)
    assert "\n" not in str(caught.value)


def test_settings_are_checked(root):
    with pytest.raises(MandorlaError, match="paired data need two or more"):
        load_data(config(root, folders={"t1": "first"}), seed=0)
    with pytest.raises(ValidationError, match="is no regular expression"):
        config(root, key="(")
