"""Scans named as in BraTS and IXI: the last word is the modality, the case before it the key."""

import os

import nibabel
import numpy as np
import pytest

from mandorla.data import load_data, pair_files
from mandorla.data.intensity import Window
from mandorla.data.scans import ScansConfig
from mandorla.errors import MandorlaError


def touch(root, *paths):
    """Write empty files; nothing is read before pairing is done."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def load(root, **settings):
    return pair_files(ScansConfig(root=str(root), **settings))


def names(places):
    return [place and os.path.basename(place) for place in places]


def test_brats_as_of_2023(tmp_path):
    for case in ("BraTS-GLI-00000-000", "BraTS-GLI-00000-001", "BraTS-GLI-00002-000"):
        touch(tmp_path, *(f"data/{case}/{case}-{last}.nii.gz" for last in ("t2f", "t1n", "seg", "t1c", "t2w")))
    pairs = load(tmp_path)
    assert pairs.ids == ["BraTS-GLI-00000/000", "BraTS-GLI-00000/001", "BraTS-GLI-00002/000"]
    assert pairs.groups == ["BraTS-GLI-00000", "BraTS-GLI-00000", "BraTS-GLI-00002"]
    assert list(pairs.files) == ["t1", "t1gd", "t2", "flair"]
    assert names(pairs.files["t1"])[1] == "BraTS-GLI-00000-001-t1n.nii.gz"
    assert names(pairs.files["flair"])[2] == "BraTS-GLI-00002-000-t2f.nii.gz"
    assert names(pairs.masks["seg_mask"])[0] == "BraTS-GLI-00000-000-seg.nii.gz"


def test_brats_of_earlier_years(tmp_path):
    for case in ("BraTS20_Training_001", "BraTS20_Training_002"):
        touch(tmp_path, *(f"{case}/{case}_{last}.nii" for last in ("flair", "seg", "t1", "t1ce", "t2")))
    touch(tmp_path, "name_mapping.csv", "survival_info.csv")
    pairs = load(tmp_path)
    assert pairs.ids == pairs.groups == ["BraTS20_Training_001", "BraTS20_Training_002"]
    assert list(pairs.files) == ["t1", "t1gd", "t2", "flair"]
    strange = "BraTS20_Training_355/W39_1998.09.19_Segm.nii"
    touch(tmp_path, strange)
    with pytest.raises(MandorlaError, match="W39_1998.09.19_Segm.nii: is seg_mask of .*, of which there is no image"):
        load(tmp_path)
    assert [item.place for item in load(tmp_path, unpairable="skip").report.skipped] == [str(tmp_path / strange)]


def test_ixi(tmp_path):
    for case in ("IXI002-Guys-0828", "IXI012-HH-1211", "IXI013-HH-1212"):
        touch(tmp_path, *(f"IXI-{last}/{case}-{last}.nii.gz" for last in ("T1", "T2", "PD", "MRA")))
    (tmp_path / "IXI-PD/IXI012-HH-1211-PD.nii.gz").unlink()
    pairs = load(tmp_path, modalities=["t1", "t2", "pd"], unpaired="keep")
    assert pairs.ids == ["IXI002-Guys-0828", "IXI012-HH-1211", "IXI013-HH-1212"]
    assert names(pairs.files["pd"]) == ["IXI002-Guys-0828-PD.nii.gz", None, "IXI013-HH-1212-PD.nii.gz"]
    assert list(load(tmp_path, unpaired="keep").files) == ["t1", "t2", "pd", "mra"]
    touch(tmp_path, "IXI-DTI/IXI002-Guys-0828-DTI-00.nii.gz")
    with pytest.raises(
        MandorlaError, match="DTI-00.nii.gz: '00' is no modality that is known; tell it by data.aliases"
    ):
        load(tmp_path, unpaired="keep")


def test_a_folder_may_be_the_case(tmp_path):
    touch(tmp_path, *(f"site/{case}/{last}.nii.gz" for case in ("p1", "p2") for last in ("T1", "T2 FLAIR", "mask")))
    pairs = load(tmp_path, key="(?P<subject>p.)")
    assert (pairs.ids, list(pairs.files), list(pairs.masks)) == (["p1", "p2"], ["t1", "flair"], ["label_mask"])
    assert load(tmp_path).ids == ["site/p1", "site/p2"]


def test_aliases_tell_what_is_not_known(tmp_path):
    touch(tmp_path, *(f"case_{number}_000{channel}.nii.gz" for number in range(2) for channel in range(2)))
    pairs = load(tmp_path, aliases={"0000": "t1", "0001": "mine"})
    assert (pairs.ids, list(pairs.files)) == (["case_0", "case_1"], ["t1", "mine"])
    assert names(pairs.files["mine"]) == ["case_0_0001.nii.gz", "case_1_0001.nii.gz"]


def test_two_last_words_may_tell_the_modality(tmp_path):
    touch(tmp_path, *(f"p{n}_{last}.nii" for n in range(2) for last in ("T2_FLAIR", "T2", "T1-post", "t1")))
    pairs = load(tmp_path)
    assert (pairs.ids, list(pairs.files)) == (["p0", "p1"], ["t1", "t1gd", "t2", "flair"])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("p1/p2_t2.nii", "p1/p2_t2.nii: lies in p1 but is named p2"),
        ("p1/p1_t1n.nii", "p1_t1n.nii: is t1 of 'p1', and so is .*p1_t1.nii"),
        ("p1/again/p1_t1.nii", "p1_t1.nii: is t1 of 'p1', and so is"),
        ("p1/p1_other.nii", "'other' is no modality that is known"),
        ("p3/p3_t1.nii", r"no flair for 'p3' \(1 such sample\(s\)\), which has .*p3_t1.nii"),
        ("p3_seg.nii", "p3_seg.nii: is seg_mask of 'p3', of which there is no image"),
    ],
)
def test_mistakes_name_the_file(tmp_path, path, message):
    touch(tmp_path, *(f"p{n}/p{n}_{last}.nii" for n in (1, 2) for last in ("t1", "flair")))
    touch(tmp_path, path)
    with pytest.raises(MandorlaError, match=message):
        load(tmp_path)


def test_what_the_key_does_not_match(tmp_path):
    touch(tmp_path, "p1_t1.nii", "p1_t2.nii", "q1_t1.nii")
    with pytest.raises(MandorlaError, match="q1_t1.nii: data.key '.*' does not match 'q1'"):
        load(tmp_path, key="(?P<subject>p.)")


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(MandorlaError, match="no such folder; mend data.folder"):
        load(tmp_path, folder="none")
    touch(tmp_path, "notes.txt")
    with pytest.raises(MandorlaError, match="holds no scans"):
        load(tmp_path)


def test_scans_are_read(tmp_path):
    for number in range(5):
        for last, value in {"t1n": 0, "t2f": 1, "seg": 2}.items():
            case = f"BraTS-GLI-0000{number // 2}-00{number % 2}"
            volume = np.full((4, 5, 6), 10 * number + value, np.int16)
            volume[0, 0] = 40
            (tmp_path / case).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / case / f"{case}-{last}.nii.gz")
    splits = load_data(ScansConfig(root=str(tmp_path), intensity=Window(low=0, high=100)), seed=0)
    assert [m.name for m in splits.modalities] == ["t1", "flair"]
    for part in splits.parts.values():
        batch = part.batch(range(len(part)))
        for row, name in enumerate(batch.ids):
            number = 2 * int(name[14]) + int(name[-1])
            assert batch.factors["group"][row] == f"BraTS-GLI-0000{number // 2}"
            assert batch.x["t1"][row].median() * 100 == pytest.approx(10 * number, abs=1e-4)
            assert batch.x["flair"][row].median() * 100 == pytest.approx(10 * number + 1, abs=1e-4)
            assert np.median(batch.factors["seg_mask"][row]) == 10 * number + 2
