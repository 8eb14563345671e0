"""Images side by side: the left half is one modality, the right half the other; folders are the division."""

import numpy as np
import pytest
from PIL import Image

from mandorla.data import load_data, pair_files
from mandorla.data.side_by_side import SideBySideConfig
from mandorla.errors import MandorlaError, MandorlaWarning


def paint(path, number, width=16):
    """Write an image whose left half is `number` and whose right half is 100 + `number`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((6, width), number, np.uint8)
    pixels[:, width // 2 :] += 100
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path):
    for part, numbers in {"train": range(5), "val": range(5, 7), "test": range(7, 8)}.items():
        for number in numbers:
            paint(tmp_path / "facades" / part / f"{number - numbers[0]}.png", number)
    (tmp_path / "facades" / "train" / "list.csv").write_text("no image")
    return tmp_path


def config(root, **settings):
    return SideBySideConfig(root=str(root), folder="facades", **settings)


def test_folders_are_the_division_and_halves_the_modalities(root):
    pairs = pair_files(config(root, modalities=("photo", "map")))
    assert pairs.ids == ["test/0", *(f"train/{number}" for number in range(5)), "val/0", "val/1"]
    assert pairs.parts == ["test", *["train"] * 5, "val", "val"]
    assert pairs.files["map"][0] == f"{root}/facades/test/0.png:right"
    assert pairs.files["photo"][0] == f"{root}/facades/test/0.png:left"


def test_what_is_loaded_are_the_halves(root):
    splits = load_data(config(root, modalities=("photo", "map")), seed=0)
    assert [(m.name, m.shape) for m in splits.modalities] == [("photo", (1, 6, 8)), ("map", (1, 6, 8))]
    assert [len(part) for part in splits.parts.values()] == [5, 2, 1]
    batch = splits.val.batch([0, 1])
    for name, start in {"photo": 5, "map": 105}.items():
        np.testing.assert_allclose(batch.x[name][:, 0, 0, [0, -1]] * 255, [[start] * 2, [start + 1] * 2], atol=1e-4)


def test_without_such_folders_the_division_is_drawn_by_subject(tmp_path):
    for number in range(12):
        paint(tmp_path / "facades" / "any" / f"p{number // 2}_{number}.png", number)
    pairs = pair_files(config(tmp_path, key=r"(?P<subject>p\d)_(?P<slice>\d+)"))
    assert (pairs.parts, pairs.ids[:2], pairs.groups[:2]) == (None, ["p0/0", "p0/1"], ["p0", "p0"])
    assert pair_files(config(tmp_path)).ids[0] == "any/p0_0"


def test_a_subject_in_two_folders_is_refused(root):
    paint(root / "facades" / "train" / "p1_8.png", 8)
    paint(root / "facades" / "validation" / "p1_9.png", 9)
    leaks = pytest.raises(MandorlaError, match="the split leaks: subject 'p1' lies in both train and val")
    with pytest.warns(MandorlaWarning, match="8 file.* left out"), leaks:
        load_data(config(root, key=r".*/(?P<subject>p\d)_(?P<slice>\d)", unpairable="skip"), seed=0)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("facades/9.png", "9.png: lies beside the folders train, val and test"),
        ("facades/train.png", "train.png: lies beside the folders train, val and test"),
        ("facades/more/9.png", "9.png: lies beside the folders train, val and test"),
        ("facades/train/0.tif", "train/0.tif:left: is left of 'train/0', and so is .*train/0.png:left"),
    ],
)
def test_mistakes_name_the_file(root, path, message):
    paint(root / path, 0)
    with pytest.raises(MandorlaError, match=message):
        pair_files(config(root))


def test_a_folder_called_test_beside_others_is_no_division(tmp_path):
    for folder in ("a", "b", "test"):
        paint(tmp_path / "facades" / folder / "0.png", 0)
    assert pair_files(config(tmp_path)).parts is None


def test_a_table_that_says_another_part_is_refused(root):
    (root / "who.csv").write_text("subject,split\ntrain/0,train\ntrain/1,test\n")
    with pytest.raises(MandorlaError, match="'train/1' lies in the folder train, but its split is said to be test"):
        pair_files(config(root, participants="who.csv"))


def test_an_odd_width_is_no_pair(root):
    paint(root / "facades" / "train" / "9.png", 9, width=15)
    with pytest.raises(MandorlaError, match="train/9.png:left: 15 pixels wide"):
        load_data(config(root), seed=0)


def test_settings_are_checked(root):
    with pytest.raises(MandorlaError, match="both halves are called 'a'"):
        pair_files(config(root, modalities=("a", "a")))
    with pytest.raises(MandorlaError, match="nowhere: no such folder"):
        pair_files(SideBySideConfig(root=str(root), folder="nowhere"))
    (root / "empty").mkdir()
    with pytest.raises(MandorlaError, match="empty: holds no image"):
        pair_files(SideBySideConfig(root=str(root), folder="empty"))
