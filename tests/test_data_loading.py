"""Volumes of several files: one grid, slices, cache and workers."""

import json
import os
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from scipy.io import wavfile

from mandorla.data import load_data
from mandorla.data.folders import FoldersConfig
from mandorla.data.places import ReadOptions
from mandorla.data.readers import read
from mandorla.data.samples import GeometryConfig, SliceConfig, read_sample, read_slices
from mandorla.data.spectrogram import SpectrogramConfig, log_mel
from mandorla.data.table import TableConfig
from mandorla.errors import MandorlaError, MandorlaWarning

SHAPE = (6, 8, 10)
OBLIQUE = nibabel.affines.from_matvec(
    nibabel.eulerangles.euler2mat(0.1, -0.1, 0.2) @ np.diag([0.9, 1.1, 2.5]), [-4, 2, 5]
)
WINDOW = {"kind": "window", "low": 0.0, "high": 1000.0}


def brain(seed, dtype=np.int16):
    """A volume (RAS) with air around it and, above index 7 of its third axis, nothing else."""
    volume = np.zeros(SHAPE, dtype)
    volume[1:5, 1:7, 2:8] = np.random.default_rng(seed).integers(100, 900, (4, 6, 6))
    return volume


def partner(volume):
    """Return another scan of the same head."""
    return np.where(volume > 0, 1000 - volume, 0).astype(volume.dtype)


def save(path, volume, axes="RAS", affine=OBLIQUE):
    """Write `volume`, given in the axes of `affine`, with other axes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(axes))
    turned = apply_orientation(volume, turn)
    nibabel.save(nibabel.Nifti1Image(turned, affine @ inv_ornt_aff(turn, volume.shape)), path)
    return str(path)


@pytest.fixture
def root(tmp_path):
    """Eight subjects: t1 whose axes are RAS, t2 of the same grid with axes LPS."""
    for subject in range(8):
        save(tmp_path / "t1" / f"p{subject}.nii.gz", brain(subject))
        save(tmp_path / "t2" / f"p{subject}.nii.gz", partner(brain(subject)), axes="LPS")
    return tmp_path


def config(root, **settings):
    settings = {"folders": {"t1": "t1", "t2": "t2"}, "intensity": WINDOW} | settings
    return FoldersConfig.model_validate_json(json.dumps({"kind": "folders", "root": str(root)} | settings))


def everything(splits):
    """Return all samples of all parts by id."""
    found = {}
    for part in splits.parts.values():
        batch = part.batch(range(len(part)))
        for row, name in enumerate(batch.ids):
            found[name] = {modality: x[row].numpy() for modality, x in batch.x.items()}
    return found


# --------------------------------------------------------------------------------------------------------- one sample


def test_volumes_of_other_axes_come_together(root):
    files = {"t1": f"{root}/t1/p1.nii.gz", "t2": f"{root}/t2/p1.nii.gz"}
    for axes, expected in (("RAS", brain(1)), (None, brain(1)), ("IPL", brain(1)[::-1, ::-1, ::-1].transpose(2, 1, 0))):
        sample = read_sample(files, {}, config(root, geometry={"axes": axes}))
        np.testing.assert_array_equal(sample.values["t1"][0], expected)
        np.testing.assert_array_equal(sample.values["t2"][0], partner(expected))
        assert sample.grid.axes == "RAS" and sample.turn.of_grid(sample.grid).axes == (axes or "RAS")


def test_other_grids_are_refused_or_resampled(root, tmp_path):
    files = {"t1": f"{root}/t1/p1.nii.gz", "t2": save(tmp_path / "moved.nii.gz", brain(1))}
    shift = np.eye(4)
    shift[2, 3] = 1
    affine = OBLIQUE @ shift
    save(tmp_path / "moved.nii.gz", brain(1), affine=affine)
    with pytest.raises(MandorlaError, match=r"moved.nii.gz: does not lie on the grid of .*p1.nii.gz.* 2.5 mm \(2.78 v"):
        read_sample(files, {}, config(root))
    sample = read_sample(files, {}, config(root, geometry={"resample": "to_first", "axes": "RAS"}))
    expected = np.zeros(SHAPE)
    expected[..., 1:] = brain(1)[..., :-1]
    np.testing.assert_allclose(sample.values["t2"][0], expected, atol=1e-2)
    masks = {"m": save(tmp_path / "mask.nii.gz", (brain(1) > 500).astype(np.float32), affine=affine)}
    sample = read_sample({"t1": files["t1"]}, masks, config(root, geometry={"resample": "to_first", "axes": "RAS"}))
    assert sample.masks["m"].dtype == np.uint8
    np.testing.assert_array_equal(sample.masks["m"][..., 1:], brain(1)[..., :-1] > 500)
    slightly = OBLIQUE.copy()
    slightly[0, 3] += 0.01
    files["t2"] = save(tmp_path / "near.nii.gz", brain(2), affine=slightly)
    assert read_sample(files, {}, config(root)).values["t2"].any()


def test_beyond_the_border_of_what_is_resampled_is_background(root, tmp_path):
    """That of CT is air, and not its darkest voxel; that of a mask is 0 even if the mask is 1 throughout."""
    ct = np.where(brain(1) > 0, brain(1) - 500, -1000).astype(np.int16)
    ct[0, 0, :2] = -1100
    shift = np.eye(4)
    shift[0, 3] = 3
    files = {"t1": f"{root}/t1/p1.nii.gz", "t2": save(tmp_path / "ct.nii.gz", ct, affine=OBLIQUE @ shift)}
    masks = {"m": save(tmp_path / "mask.nii.gz", np.ones(SHAPE, np.uint8), affine=OBLIQUE @ shift)}
    settings = config(root, geometry={"resample": "to_first", "axes": "RAS"})
    sample = read_sample(files, masks, settings)
    np.testing.assert_allclose(sample.values["t2"][0, :3], -1000)
    np.testing.assert_allclose(sample.values["t2"][0, 3:], ct[:-3], atol=1e-2)
    assert not sample.masks["m"][:3].any() and sample.masks["m"][3:].all()
    shift[0, 3] = 300
    files["t2"] = save(tmp_path / "far.nii.gz", ct, affine=OBLIQUE @ shift)
    with pytest.raises(
        MandorlaError, match="far.nii.gz: cannot be resampled to the grid of .*p1.nii.gz: no voxel of one"
    ):
        read_sample(files, {}, settings)


@pytest.mark.parametrize(("plane", "axis"), [("axial", 2), ("coronal", 1), ("sagittal", 0)])
@pytest.mark.parametrize("axes", ["RAS", "IPL", None])
def test_slices_are_named_by_the_index_in_the_first_file(root, plane, axis, axes):
    files = {"t1": f"{root}/t1/p1.nii.gz", "t2": f"{root}/t2/p1.nii.gz"}
    cut = read_slices(files, {}, config(root, slices={"axis": plane, "keep": 0.01}, geometry={"axes": axes}))
    assert sorted(cut.numbers) == np.flatnonzero(brain(1).any(axis=tuple({0, 1, 2} - {axis}))).tolist()
    for number, t1, t2 in zip(cut.numbers, cut.values["t1"], cut.values["t2"], strict=True):
        own = brain(1).take(number, axis)
        if axes == "IPL":
            own = own[::-1, ::-1].T
        np.testing.assert_array_equal(t1[0], own)
        np.testing.assert_array_equal(t2[0], partner(own))


def test_slices_keep_their_share_and_step(root):
    files = {"t1": f"{root}/t1/p1.nii.gz"}

    def numbers(**settings):
        return read_slices(files, {}, config(root, slices=settings, geometry={"axes": "RAS"})).numbers

    assert numbers(keep=0.0) == list(range(10))
    assert numbers(keep=24 / 48 - 0.001) == list(range(2, 8))
    assert numbers(keep=24 / 48 + 0.001) == []
    assert numbers(keep=0.1, step=4) == [2, 6]


def test_arrays_are_cut_by_number_and_pictures_not_at_all(tmp_path, root):
    np.save(tmp_path / "a.npy", brain(0))
    cut = read_slices({"a": f"{tmp_path}/a.npy"}, {}, config(root, slices={"axis": 2}, read={"dimensions": 3}))
    np.testing.assert_array_equal(cut.values["a"][:, 0], np.moveaxis(brain(0), 2, 0)[2:8])
    with pytest.raises(MandorlaError, match="axial needs volumes that know the patient's axes"):
        read_slices({"a": f"{tmp_path}/a.npy"}, {}, config(root, slices={}, read={"dimensions": 3}))
    np.save(tmp_path / "a.npy", brain(0)[0])
    for slices in ({"axis": 0}, {"axis": "axial"}):
        with pytest.raises(MandorlaError, match="a.npy: no volume, it cannot be cut into slices; give volumes"):
            read_slices({"a": f"{tmp_path}/a.npy"}, {}, config(root, slices=slices, read={"dimensions": 2}))


def test_settings_are_checked():
    with pytest.raises(ValueError, match="three letters"):
        GeometryConfig(axes="RAX")
    with pytest.raises(ValueError, match="Input should be 'axial'"):
        SliceConfig(axis="frontal")


# ---------------------------------------------------------------------------------------------------------- all samples


def test_whole_volumes_and_their_size(root):
    splits = load_data(config(root, geometry={"axes": "RAS"}), seed=0)
    assert [(m.name, m.shape) for m in splits.modalities] == [("t1", (1, *SHAPE)), ("t2", (1, *SHAPE))]
    for name, x in everything(splits).items():
        np.testing.assert_allclose(x["t1"][0] * 1000, brain(int(name[1])), atol=1e-3)
        np.testing.assert_allclose(x["t2"][0] * 1000, partner(brain(int(name[1]))), atol=1e-3)
    small = load_data(config(root, geometry={"axes": "RAS"}, size=[3, 4, 5]), seed=0)
    means = brain(2).reshape(3, 2, 4, 2, 5, 2).mean((1, 3, 5))
    np.testing.assert_allclose(everything(small)["p2"]["t1"][0] * 1000, means, atol=0.51)


def test_slices_stay_with_their_subject(root):
    splits = load_data(config(root, slices={}, size=[4, 3]), seed=0)
    assert len(everything(splits)) == 8 * 6
    for part in splits.parts.values():
        assert {name.split("/")[0] for name in part.ids} == set(part.groups)
    whole = everything(splits)["p3/s004"]["t1"][0]
    own = brain(3)[::-1, ::-1, 4].T.reshape(4, 2, 3, 2).mean((1, 3))
    np.testing.assert_allclose(whole * 1000, own, atol=0.51)


def test_a_missing_volume_and_a_missing_mask(root):
    lines = ["subject,t1,t2,lesion_mask,age"]
    for subject in range(8):
        mask = (brain(subject) > 500) & (subject % 2 == 0)
        save(root / "mask" / f"p{subject}.nii.gz", mask.astype(np.float32))
        t2 = "" if subject in (1, 5) else f"t2/p{subject}.nii.gz"
        lesion = "" if subject in (2, 5) else f"mask/p{subject}.nii.gz"
        lines.append(f"p{subject},t1/p{subject}.nii.gz,{t2},{lesion},{40.5 + subject}")
    (root / "table.csv").write_text("\n".join(lines) + "\n")
    settings = TableConfig(
        root=str(root),
        table="table.csv",
        modalities=["t1", "t2"],
        masks=["lesion_mask"],
        unpaired="keep",
        slices=SliceConfig(),
        geometry=GeometryConfig(axes="RAS"),
        intensity=config(root).intensity,
    )
    splits = load_data(settings, seed=0)
    for part in splits.parts.values():
        batch = part.batch(range(len(part)))
        for row, name in enumerate(batch.ids):
            subject, number = int(name[1]), int(name[-3:])
            assert bool(batch.present["t2"][row]) == (subject not in (1, 5))
            mask = (brain(subject)[..., number] > 500) & (subject % 2 == 0)
            if subject in (2, 5):
                assert batch.factors["lesion_present"][row] == -1
            else:
                np.testing.assert_array_equal(batch.factors["lesion_mask"][row], mask)
                assert batch.factors["lesion_present"][row] == mask.any()
            assert batch.factors["age"][row] == 40.5 + subject


def test_volumes_of_several_types_become_floats_and_pictures_do_not(root):
    save(root / "t1" / "p3.nii.gz", brain(3, np.uint8))
    save(root / "t1" / "p5.nii.gz", brain(5).astype(np.float32) + np.float32(0.25) * (brain(5) > 0))
    splits = load_data(config(root, geometry={"axes": "RAS"}), seed=0)
    assert splits.train.x["t1"].dtype == np.float32
    found = everything(splits)
    np.testing.assert_allclose(found["p3"]["t1"][0] * 1000, brain(3, np.uint8), atol=1e-3)
    np.testing.assert_allclose(found["p5"]["t1"][0] * 1000, brain(5) + 0.25 * (brain(5) > 0), atol=1e-3)
    np.testing.assert_allclose(found["p1"]["t1"][0] * 1000, brain(1), atol=1e-3)


def test_doubles_stay_what_they_are(tmp_path):
    values = np.random.default_rng(0).random((6, 8, 9))
    for name in ("t1", "t2"):
        (tmp_path / name).mkdir()
        for subject, array in enumerate(values):
            np.save(tmp_path / name / f"p{subject}.npy", array)
    splits = load_data(config(tmp_path, intensity={"kind": "none"}, duplicates="keep"), seed=0)
    assert splits.train.x["t1"].dtype == np.float64
    for name, x in everything(splits).items():
        np.testing.assert_array_equal(x["t1"][0], values[int(name[1:])].astype(np.float32))


def test_axes_that_differ_between_samples_are_refused_if_kept(root):
    for subject in range(4):
        save(root / "t1" / f"p{subject}.nii.gz", brain(subject), axes="LAS")
    with pytest.raises(
        MandorlaError, match=r"p4.nii.gz: its axes are RAS, those of .*p0.nii.gz are LAS; set data.geom"
    ):
        load_data(config(root, geometry={"axes": None}), seed=0)
    found = everything(load_data(config(root, geometry={"axes": "RAS"}), seed=0))
    np.testing.assert_allclose(found["p2"]["t1"][0] * 1000, brain(2), atol=1e-3)


def test_blank_volumes_are_left_out_with_a_warning(root):
    for name in ("t1", "t2"):
        save(root / name / "p6.nii.gz", np.zeros(SHAPE, np.int16))
    with pytest.warns(MandorlaWarning, match="1 volume.s. left out .* such as p6"):
        splits = load_data(config(root, slices={}), seed=0)
    assert not any(name.startswith("p6") for name in everything(splits))
    with pytest.raises(MandorlaError, match="no slice holds enough foreground"):
        load_data(config(root, slices={"keep": 1}), seed=0)


def break_grid(root):
    save(root / "t2" / "p3.nii.gz", brain(3)[:5])


def break_shape(root):
    for name in ("t1", "t2"):
        save(root / name / "p3.nii.gz", brain(3)[:5])


def break_values(root):
    volume = brain(3).astype(np.float32)
    volume[0, 0, 0] = np.nan
    save(root / "t2" / "p3.nii.gz", volume)


def break_file(root):
    path = root / "t2" / "p3.nii.gz"
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (
            break_grid,
            r"t2/p3.nii.gz: does not lie on the grid of .*t1/p3.nii.gz: shape 5 x 8 x 10 instead of 6 x 8 x 10",
        ),
        (break_shape, r"t1/p3.nii.gz: 5x8x10 pixels of 1 channel\(s\) in int16, unlike .*p0.nii.gz with 6x8x10"),
        (break_values, "t2/p3.nii.gz: NaN or infinite values"),
        (break_file, "t2/p3.nii.gz: cannot be read"),
    ],
)
def test_bad_volumes_are_named_and_nothing_is_kept(root, damage, text):
    damage(root)
    with pytest.raises(MandorlaError, match=text):
        load_data(config(root, geometry={"axes": "RAS"}, cache="kept"), seed=0)
    assert list((root / "kept").iterdir()) == []


def test_nan_can_be_filled(root):
    break_values(root)
    splits = load_data(config(root, geometry={"axes": "RAS"}, read={"nan": 250.0}), seed=0)
    assert everything(splits)["p3"]["t2"][0, 0, 0, 0] == pytest.approx(0.25)


def test_sounds_become_images(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(6):
        for name in ("low", "high"):
            (tmp_path / name).mkdir(exist_ok=True)
            sound = rng.integers(-9999, 9999, (8000, 2)).astype(np.int16)
            wavfile.write(tmp_path / name / f"{number}.wav", 8000, sound)
    settings = config(tmp_path, folders={"low": "low", "high": "high"}, intensity={"kind": "minmax"})
    splits = load_data(settings, seed=0)
    assert splits.modalities[0].shape == (1, 32, 32)
    expected = log_mel(sound.mean(1) / 32768, 8000, SpectrogramConfig())
    np.testing.assert_allclose(read(f"{tmp_path}/high/5.wav", ReadOptions()).values, expected, atol=1e-4)
    (tmp_path / "high" / "5.wav").write_bytes((tmp_path / "high" / "5.wav").read_bytes()[:9000])
    with pytest.raises(MandorlaError, match="5.wav: cannot be read"):
        load_data(settings, seed=0)


# --------------------------------------------------------------------------------------------------------------- cache


def test_the_cache_holds_what_would_be_read(root, monkeypatch):
    plain = load_data(config(root, slices={}), seed=0)
    cached = load_data(config(root, slices={}, cache=".kept"), seed=0)
    assert isinstance(cached.train.x["t1"], np.memmap)
    monkeypatch.setattr("mandorla.data.loading.read_slices", None)  # whoever calls it fails
    again = load_data(config(root, slices={}, cache=".kept"), seed=0)
    assert plain.fingerprint == cached.fingerprint == again.fingerprint
    for name, x in everything(again).items():
        for modality, values in x.items():
            np.testing.assert_array_equal(values, everything(plain)[name][modality])
    moved = root.parent / "moved"
    root.rename(moved)
    assert load_data(config(moved, slices={}, cache=".kept"), seed=0).fingerprint == plain.fingerprint
    moved.rename(root)


@pytest.mark.parametrize("change", ["file", "added", "settings"])
def test_the_cache_notices_changes(root, change):
    settings = {"geometry": {"axes": "RAS"}, "cache": ".kept"}
    (root / "t1" / "p3.nii.gz").unlink()
    save(root / "t1" / "p3.nii", brain(3))  # uncompressed: of one size whatever it holds
    before = everything(load_data(config(root, **settings), seed=0))
    if change == "file":
        os.utime(save(root / "t1" / "p3.nii", brain(3) // 2), (0, 0))
    elif change == "added":
        for name in ("t1", "t2"):
            save(root / name / "p8.nii.gz", brain(8))
    else:
        settings["size"] = [3, 4, 5]
    after = everything(load_data(config(root, **settings), seed=0))
    assert len(list((root / ".kept").iterdir())) == 2
    if change == "file":
        np.testing.assert_allclose(after["p3"]["t1"][0] * 1000, brain(3) // 2, atol=1e-3)
    else:
        assert len(after) > len(before) or after["p3"]["t1"].shape != before["p3"]["t1"].shape


@pytest.mark.slow
def test_workers_read_the_same(root):
    alone = load_data(config(root, slices={}, workers=0), seed=0)
    assert load_data(config(root, slices={}, workers=2), seed=0).fingerprint == alone.fingerprint
    break_file(root)
    with pytest.raises(MandorlaError, match="t2/p3.nii.gz: cannot be read"):
        load_data(config(root, slices={}, workers=2), seed=0)


@pytest.mark.skipif("MANDORLA_DATA" not in os.environ, reason="needs MANDORLA_DATA")
def test_open_ms(tmp_path):
    scans = Path(os.environ["MANDORLA_DATA"]) / "open_ms"
    if not scans.is_dir():
        pytest.skip("open_ms is not there")
    settings = config(tmp_path, slices={"keep": 0.1, "step": 4}, size=[109, 91])
    subject = scans / "sub-07"
    files = {name: f"{subject}/sub-07_{name}.nii.gz" for name in ("T1w", "FLAIR")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cut = read_slices(files, {"lesion_mask": f"{subject}/sub-07_lesion.nii.gz"}, settings)
    assert cut.values["FLAIR"].shape[1:] == (1, 109, 91) and len(cut.numbers) > 20
    number = len(cut.numbers) // 2
    own = np.asarray(nibabel.load(files["FLAIR"]).dataobj)[..., cut.numbers[number]]  # (x to the left, y forward)
    upright = own[:, ::-1].T.reshape(109, 2, 91, 2).mean((1, 3))
    np.testing.assert_allclose(cut.values["FLAIR"][number, 0], upright, atol=1e-3 * upright.max())
    assert set(np.unique(cut.masks["lesion_mask"])) == {0, 1}
