"""Volumes in, a model that changes nothing, volumes out: what comes back is what went in, where it was."""

import json
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from PIL import Image
from pydantic import TypeAdapter
from pydicom.uid import generate_uid
from test_data_readers import write_dicom
from tiny import arguments_of

from mandorla import files
from mandorla.data import load_data, read_config
from mandorla.data.bids import pair_bids
from mandorla.data.dataset import Modality
from mandorla.data.images import decode_image, write_pixels
from mandorla.data.intensity import Fitted, Intensity, Window, look, read_intensity, write_intensity
from mandorla.data.nifti import plain_grid, write_volume
from mandorla.data.samples import FilesConfig, read_slices
from mandorla.diffusion.samplers import SamplingConfig
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.inputs import find_inputs
from mandorla.model import Mandorla

SHAPE = (6, 8, 10)
BOTH = ("mean", "std")
RNG = np.random.default_rng(0)
OBLIQUE = nibabel.affines.from_matvec(
    nibabel.eulerangles.euler2mat(0.3, -0.2, 0.4) @ np.diag([0.9, 1.1, 2.5]), [-40, 20, 5]
)
AFFINES = {
    "RAS": np.diag([1.0, 1.0, 1.0, 1]),
    "flipped": np.array([[-2, 0, 0, 90], [0, 1, 0, -126], [0, 0, -3, 72], [0, 0, 0, 1.0]]),
    "permuted": np.array([[0, 0, 1.5, -9], [-1, 0, 0, 5], [0, 2, 0, 1], [0, 0, 0, 1.0]]),
    "oblique": OBLIQUE,
}
RANGES = {"uint8": (0, 255), "int16": (-1000, 3000), "int16 scaled": (0, 1.7), "float32": (-3.5, 40.25)}
RANGES["float64"] = RANGES["float32"]
READ = TypeAdapter(FilesConfig)


@dataclass
class Identity:
    """A model of modalities t1 and t2 which translates by changing nothing."""

    run: Path
    size: tuple[int, ...]
    range: tuple[float, float]
    settings: dict
    modalities: tuple[Modality, ...] = ()
    intensity: dict = field(default_factory=dict)

    def __post_init__(self):
        self.modalities = tuple(Modality(name, 1, self.size) for name in ("t1", "t2"))
        low, high = self.range
        fitted = Fitted(Window(low=float(low), high=float(high)), Intensity(float(low), float(high)), {})
        self.intensity = {"t1": fitted, "t2": fitted}
        self.recipe = SimpleNamespace(data=READ.validate_python(self.settings))

    to_unit = Mandorla.to_unit
    at_once, sampling, hashes, weights = 64, SamplingConfig(steps=3), {"vae": "v", "diffusion": "d"}, "v"
    refiner = None

    @property
    def arguments(self):
        return arguments_of(self.modalities)

    def strange(self, x):
        return ""

    def sample(self, num, seed, steps, best_of, first, labels):
        return SimpleNamespace(x={m.name: torch.rand(num, *m.shape) for m in self.modalities})

    def translate(self, x, wanted, num_samples, seed, steps, keys, labels):
        sign = (-1) ** torch.arange(num_samples).view(-1, *[1] * (len(self.size) + 2))
        return {name: torch.as_tensor(x["t1"])[None] + 0.01 * sign for name in wanted}


def make(path, kind, affine):
    """Write a volume of a kind of numbers, with nothing in its last planes, and return its values."""
    low, high = RANGES[kind]
    dtype = np.dtype(kind.split()[0])
    background = low if kind != "int16" else -1000
    values = np.full(SHAPE, background, np.float64)
    values[:, :, :7] = RNG.uniform(low, high, (6, 8, 7))
    if kind == "int16 scaled":
        image = nibabel.Nifti1Image(np.rint(values / 1e-3).astype(dtype), affine)
        image.header.set_slope_inter(1e-3, 0)
    else:
        image = nibabel.Nifti1Image((np.rint(values) if dtype.kind in "iu" else values).astype(dtype), affine)
    image.set_sform(affine, 4)
    image.set_qform(affine, 2)
    path.parent.mkdir(exist_ok=True)
    nibabel.save(image, path)
    return nibabel.load(path).get_fdata()


@pytest.mark.parametrize("cut", ["whole", "sagittal", "coronal", "axial"])
@pytest.mark.parametrize("affine", AFFINES)
@pytest.mark.parametrize("kind", RANGES)
def test_a_volume_comes_back_as_it_was(tmp_path, kind, affine, cut, capfd):
    path = tmp_path / "in" / "p1.nii.gz"
    values = make(path, kind, AFFINES[affine])
    settings = {} if cut == "whole" else {"slices": {"axis": cut, "keep": 0.0, "step": 3}}
    size = read_slices({"t1": str(path)}, {}, READ.validate_python(settings)).values["t1"].shape[2:]
    model = Identity(tmp_path / "run", size, RANGES[kind], settings)
    source = path if cut == "whole" else path.parent
    out = files.translate(model, source, tmp_path / "out", ["t1"], ["t2"], num_samples=2, seed=0, write=BOTH)
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.*")) == [
        "dataset_description.json",
        "t2/p1.json",
        "t2/p1.nii.gz",
        "t2_std/p1.json",
        "t2_std/p1.nii.gz",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        old, new = nibabel.load(path), nibabel.load(out / "t2" / "p1.nii.gz")
    assert new.header["descrip"].item() == b"synthetic, made by mandorla"
    low, high = RANGES[kind]
    assert np.abs(new.get_fdata() - values).max() <= 1e-3 * (high - low)
    assert new.get_data_dtype() == old.get_data_dtype() and new.shape == old.shape
    np.testing.assert_allclose(new.affine, old.affine, atol=1e-5)
    for form in ("sform", "qform"):
        found, code = getattr(new, f"get_{form}")(coded=True)
        assert code == 4
        np.testing.assert_allclose(found, old.affine, atol=1e-4)
    np.testing.assert_allclose(new.header.get_zooms(), old.header.get_zooms(), atol=1e-5)
    assert nibabel.aff2axcodes(new.affine) == nibabel.aff2axcodes(old.affine)
    old_itk = SimpleITK.ReadImage(path)
    capfd.readouterr()
    new_itk = SimpleITK.ReadImage(out / "t2" / "p1.nii.gz")
    assert capfd.readouterr() == ("", ""), "no warning either"
    for where in ("Size", "Spacing", "Origin", "Direction"):
        told = [getattr(image, f"Get{where}")() for image in (new_itk, old_itk)]
        np.testing.assert_allclose(*told, atol=1e-4)
    assert new_itk.GetPixelID() == old_itk.GetPixelID()
    spread = nibabel.load(out / "t2_std" / "p1.nii.gz")
    assert spread.get_data_dtype() == (old.get_data_dtype() if kind.startswith("float") else np.float32)
    np.testing.assert_allclose(spread.get_fdata(), np.sqrt(2) * 0.01 * (high - low), rtol=1e-4)


def test_what_was_averaged_down_comes_back_at_its_size_and_left_out_slices_as_background(tmp_path):
    path = tmp_path / "in" / "p1.nii.gz"
    ramp = np.zeros(SHAPE, np.float32)
    ramp[:, :, :7] = 100 + 10 * np.arange(8)[:, None]
    path.parent.mkdir()
    nibabel.save(nibabel.Nifti1Image(ramp, OBLIQUE), path)
    model = Identity(tmp_path / "run", (4, 3), (-50, 200), {"slices": {"axis": "axial"}, "size": (4, 3)})
    out = files.translate(model, path, tmp_path / "out", ["t1"], ["t2"], num_samples=1, seed=0)
    found = nibabel.load(out / "t2" / "p1.nii.gz").get_fdata()
    np.testing.assert_allclose(found[:, 1:-1, :7], ramp[:, 1:-1, :7] + 2.5, atol=1e-3)  # 0.01 of the range is added
    np.testing.assert_allclose(found[..., 7:], -50)
    assert not (out / "t2_std").exists()


def test_one_volume_of_several_in_a_file(tmp_path):
    values = RNG.integers(0, 1000, (*SHAPE, 2)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, OBLIQUE), tmp_path / "p1.nii.gz")
    model = Identity(tmp_path / "run", SHAPE, (0, 1000), {"geometry": {"axes": None}})
    out = files.translate(model, tmp_path / "p1.nii.gz:1", tmp_path / "out", ["t1"], ["t2"], num_samples=2, seed=0)
    written = nibabel.load(out / "t2" / "p1.nii.gz")
    assert written.get_data_dtype() == np.int16
    np.testing.assert_array_equal(written.get_fdata(), values[..., 1])
    np.testing.assert_allclose(written.affine, OBLIQUE, atol=1e-5)
    for place, text in (("p1.nii.gz", "it holds 2 volumes"), ("p2.nii.gz:0", "p2.nii.gz: no such file")):
        with pytest.raises(MandorlaError, match=text):
            files.translate(model, tmp_path / place, tmp_path / "more", ["t1"], ["t2"], num_samples=1, seed=0)


@pytest.mark.parametrize("inputs", ["alone", "one folder each"])
@pytest.mark.parametrize("cut", ["whole", "slices"])
def test_a_folder_that_is_one_dicom_series(tmp_path, inputs, cut):
    values = RNG.integers(0, 1000, (5, 6, 8)).astype(np.uint16)
    case, given = tmp_path / "case", ["t1"] if inputs == "alone" else ["t1", "t2"]
    for name in given:
        folder = case if inputs == "alone" else case / name
        series = generate_uid()
        for number, pixels in enumerate(values):
            write_dicom(folder / f"{number}.dcm", pixels, (0, 0, 2.0 * number), series)
    settings = {"slices": {"keep": 0.0}} if cut == "slices" else {}
    model = Identity(tmp_path / "run", (6, 8) if settings else (5, 6, 8), (0, 1000), settings)
    model.modalities += (Modality("t3", 1, model.size),)
    model.intensity["t3"] = model.intensity["t2"]
    out = files.translate(model, case, tmp_path / "out", given, ["t3"], num_samples=2, seed=0)
    written, read = nibabel.load(out / "t3" / "case.nii.gz"), read_slices({"t1": str(folder)}, {}, FilesConfig())
    np.testing.assert_allclose(written.get_fdata(), values, atol=1)
    np.testing.assert_allclose(written.affine, read.way.grid.affine, atol=1e-5)


def test_a_bids_dataset_becomes_a_derivative_dataset(tmp_path):
    study, values = tmp_path / "study", {}
    for subject, session, suffixes in (
        ("01", "", ("T1w", "FLAIR")),
        ("02", "ses-a", ("T1w", "FLAIR")),
        ("03", "", ("T1w",)),
    ):
        names = [f"sub-{subject}", *filter(None, [session])]
        for suffix in suffixes:
            path = study.joinpath(*names, "anat", "_".join([*names, "space-MNI", suffix]) + ".nii.gz")
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(RNG.integers(0, 1000, SHAPE).astype(np.int16), OBLIQUE), path)
            values[subject, suffix] = nibabel.load(path).get_fdata()
    model = Identity(tmp_path / "run", SHAPE, (0, 1000), {"geometry": {"axes": None}})
    model.modalities = tuple(Modality(name, 1, SHAPE) for name in ("t1", "flair", "t2", "t1gd"))
    model.intensity = {m.name: model.intensity["t1"] for m in model.modalities}
    with pytest.warns(
        MandorlaWarning, match=r"study: 1 of 3 .*, such as sub-03 \(flair\): 2 from t1, flair; 1 from t1$"
    ):
        out = files.translate(
            model, study, tmp_path / "out", ["t1", "flair"], ["t2", "t1gd"], num_samples=2, seed=0, write=BOTH
        )
    names = [
        f"{place}_{more}"
        for place in ("sub-01/anat/sub-01", "sub-02/ses-a/anat/sub-02_ses-a", "sub-03/anat/sub-03")
        for ce, suffix in (("", "T2w"), ("ce-gadolinium_", "T1w"))
        for more in (f"{ce}space-MNI_desc-synthetic_{suffix}", f"{ce}space-MNI_desc-syntheticStd_{suffix}")
    ]
    found = [path.relative_to(out).as_posix() for path in out.rglob("*.*")]
    expected = [f"{name}{suffix}" for name in names for suffix in (".json", ".nii.gz")]
    assert sorted(found) == sorted(["dataset_description.json", *expected])
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["GeneratedBy"][0]["Name"] == "mandorla"
    assert json.loads((out / f"{names[-4]}.json").read_text())["given"] == ["t1"]
    note = json.loads((out / f"{names[4]}.json").read_text())
    assert note["given"] == ["t1", "flair"] and note["Sources"] == [
        f"sub-02/ses-a/anat/sub-02_ses-a_space-MNI_{suffix}.nii.gz" for suffix in ("T1w", "FLAIR")
    ]
    written = nibabel.load(out / f"{names[0]}.nii.gz")
    np.testing.assert_allclose(written.get_fdata(), values["01", "T1w"], atol=1)
    pairs = pair_bids(read_config({"kind": "bids", "root": str(out), "entities": {"desc": "synthetic"}}))
    assert (pairs.ids, list(pairs.files)) == (["sub-01", "sub-02/ses-a", "sub-03"], ["t1gd", "t2"]), (
        "it can be read again"
    )
    with pytest.raises(MandorlaError, match="no session of this dataset has t2; add files, or give others"):
        files.translate(model, study, tmp_path / "more", ["t2"], ["t1"], num_samples=1, seed=0)


def test_every_run_of_a_bids_session_is_filled_in(tmp_path):
    folder = tmp_path / "study" / "sub-01" / "anat"
    folder.mkdir(parents=True)
    runs = ("acq-fine_run-1", "acq-fine_run-2", "run-1_echo-1")
    for run in runs:
        volume = nibabel.Nifti1Image(RNG.integers(0, 1000, SHAPE).astype(np.int16), OBLIQUE)
        nibabel.save(volume, folder / f"sub-01_{run}_T1w.nii.gz")
    model = Identity(tmp_path / "run", SHAPE, (0, 1000), {"geometry": {"axes": None}})
    out = files.translate(model, tmp_path / "study", tmp_path / "out", ["t1"], ["t2"], num_samples=1, seed=0)
    for run in runs:
        made = nibabel.load(out / "sub-01" / "anat" / f"sub-01_{run}_desc-synthetic_T2w.nii.gz")
        given = nibabel.load(folder / f"sub-01_{run}_T1w.nii.gz")
        np.testing.assert_allclose(made.get_fdata(), given.get_fdata(), atol=20)
    (folder / f"sub-01_{runs[0]}_T1w.nii").touch()
    with pytest.raises(MandorlaError, match="would be called as what is made of sub-01_acq-fine_run-1_T1w.nii"):
        files.translate(model, tmp_path / "study", tmp_path / "more", ["t1"], ["t2"], num_samples=1, seed=0)


def test_several_given_modalities_belong_together_by_run(tmp_path):
    """Also one whose partner lacks a label; what has no partner is passed over, of two partners none is chosen."""
    folder, values = tmp_path / "study" / "sub-01" / "anat", {}
    folder.mkdir(parents=True)

    def write(name: str) -> None:
        volume = nibabel.Nifti1Image(RNG.integers(0, 1000, SHAPE).astype(np.int16), OBLIQUE)
        nibabel.save(volume, folder / f"sub-01_{name}.nii.gz")
        values[name] = volume.get_fdata()

    for name in ("run-2_T1w", "run-1_T1w", "run-3_T1w", "acq-b_run-1_FLAIR", "run-2_FLAIR", "T1w", "FLAIR"):
        write(name)
    model = Identity(tmp_path / "run", SHAPE, (0, 1000), {"geometry": {"axes": None}})
    model.modalities = tuple(Modality(name, 1, SHAPE) for name in ("t1", "flair", "t2"))
    model.intensity = {m.name: model.intensity["t1"] for m in model.modalities}
    asked = {"given": ["t1", "flair"], "wanted": ["t2"], "num_samples": 1, "seed": 0, "complete": True}
    with pytest.warns(MandorlaWarning, match=r"1 of 4 samples .* such as sub-01/run-3 \(flair\): passed over"):
        out = files.translate(model, tmp_path / "study", tmp_path / "out", **asked) / "sub-01" / "anat"
    made = {path.name: nibabel.load(path) for path in out.glob("*.nii.gz")}
    assert sorted(made) == [f"sub-01_{run}desc-synthetic_T2w.nii.gz" for run in ("", "run-1_", "run-2_")]
    for run in ("", "run-1_", "run-2_"):
        found = made[f"sub-01_{run}desc-synthetic_T2w.nii.gz"].get_fdata()
        np.testing.assert_allclose(found, values[f"{run}T1w"], atol=20)
        flair = "acq-b_run-1_FLAIR" if run == "run-1_" else f"{run}FLAIR"
        note = json.loads((out / f"sub-01_{run}desc-synthetic_T2w.json").read_text())
        assert [Path(source).name for source in note["Sources"]] == [
            f"sub-01_{name}.nii.gz" for name in (f"{run}T1w", flair)
        ]
    write("acq-a_run-1_FLAIR")
    with pytest.raises(
        MandorlaError, match="is flair of the same run as sub-01_acq-a_run-1_FLAIR.nii.gz; several given"
    ):
        files.translate(model, tmp_path / "study", tmp_path / "more", **asked)


def test_dicom_images_that_are_no_volume_stay_images(tmp_path):
    series = generate_uid()
    for number in range(3):
        write_dicom(tmp_path / "in" / f"{number}.dcm", np.full((6, 8), 100 * number, np.uint16), (0, 0, number), series)
    model = Identity(tmp_path / "run", (6, 8), (0, 1000), {})
    out = files.translate(model, tmp_path / "in", tmp_path / "out", ["t1"], ["t2"], num_samples=2, seed=0)
    assert sorted(path.name for path in (out / "t2").glob("*.png")) == ["0.png", "1.png", "2.png"]


PICTURES = {
    "8-bit PNG": (np.uint8, 1, ".png", ".png"),
    "colour PNG": (np.uint8, 3, ".png", ".png"),
    "colour TIFF": (np.uint8, 3, ".tif", ".tif"),
    "16-bit PNG": (np.uint16, 1, ".png", ".png"),
    "16-bit TIFF": (np.uint16, 1, ".tiff", ".tif"),
    "float TIFF": (np.float32, 1, ".tif", ".tif"),
}


@pytest.mark.parametrize(
    "intensity",
    [{"kind": "none"}, {"kind": "minmax"}, {"kind": "percentile", "high": 100, "low": 0, "foreground": False}],
)
@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_comes_back_on_its_scale_and_of_its_type(tmp_path, kind, intensity):
    dtype, channels, suffix, expected = PICTURES[kind]
    most = 1 if dtype == np.float32 else np.iinfo(dtype).max
    images = RNG.uniform(0.1, 0.4, (9, channels, 6, 8)) * most
    images = images.astype(dtype) if most == 1 else np.rint(images).astype(dtype)
    for name in ("t1", "t2"):
        (tmp_path / name).mkdir()
        for number, image in enumerate(images):
            write_pixels(tmp_path / name / f"{number}{suffix}", image)
    settings = {"kind": "folders", "root": str(tmp_path), "folders": {"t1": "t1", "t2": "t2"}, "intensity": intensity}
    config = read_config(settings | {"duplicates": "keep"})
    splits = load_data(config, 0)
    model = Identity(tmp_path / "run", (6, 8), (0, 1), {})
    model.run.mkdir()
    write_intensity(model.run, look(splits.intensity, splits.train))
    model.modalities, model.intensity = splits.modalities, read_intensity(model.run)
    model.recipe.data = config
    number = splits.train.ids[0]  # whose values surely lie in the range that was fitted
    out = files.translate(
        model,
        tmp_path / "t1" / f"{number}{suffix}",
        tmp_path / "out",
        ["t1"],
        ["t2"],
        num_samples=2,
        seed=0,
        write=BOTH,
    )
    written, before = decode_image(out / "t2" / f"{number}{expected}"), images[int(number)]
    scale = model.intensity["t2"].usual
    assert written.dtype == dtype
    with Image.open(out / "t2" / f"{number}{expected}") as picture:
        said = picture.text["mandorla"] if expected == ".png" else picture.tag_v2[270]
    assert json.loads(said)["synthetic"] is True
    rounding = 0.5 if dtype == np.uint8 else 0  # what 8 bits can hold
    np.testing.assert_allclose(written, before, rtol=0, atol=rounding + 1e-3 * (scale.high - scale.low))
    spread = decode_image(out / "t2_std" / f"{number}{expected}")
    expected_spread = np.sqrt(2) * 0.01 * (scale.high - scale.low)
    np.testing.assert_allclose(spread, expected_spread, rtol=0, atol=(0.5 if most > 1 else 0) + 1e-6 * most)
    drawn = files.sample(model, tmp_path / "drawn", num=1, seed=0, steps=None)
    with np.load(drawn / "samples.npz") as arrays:
        unit = arrays["t2"][0]
    pixels = 255 * unit if dtype == np.float32 else scale.invert(unit)  # a PNG has no floats
    np.testing.assert_allclose(decode_image(drawn / "t2" / "0000.png"), pixels, rtol=0, atol=0.5 + 1e-6 * most)


def test_integers_that_cannot_hold_the_values_become_floats(tmp_path):
    path = tmp_path / "in" / "p1.nii.gz"
    make(path, "uint8", OBLIQUE)
    values = RNG.uniform(-1000, 3000, (1, *SHAPE)).astype(np.float32)
    grid = read_slices({"t1": str(path)}, {}, FilesConfig()).way.grid
    for scale in (Intensity(-1000, 3000), Intensity(0, 1), None):
        write_volume(tmp_path / "out.nii.gz", values, grid, path, scale)
        written = nibabel.load(tmp_path / "out.nii.gz")
        assert written.get_data_dtype() == np.float32
        np.testing.assert_allclose(written.get_fdata(), values[0])


def test_channels_are_a_fourth_dimension_and_axes_are_said(tmp_path):
    values = RNG.random((2, 4, 5, 6)).astype(np.float32)
    write_volume(tmp_path / "a.nii", values, plain_grid((4, 5, 6), "IPL"))
    written = nibabel.load(tmp_path / "a.nii")
    np.testing.assert_array_equal(written.get_fdata(), np.moveaxis(values, 0, -1).astype(np.float64))
    assert nibabel.aff2axcodes(written.affine) == ("I", "P", "L")
    assert int(written.header["sform_code"]) == int(written.header["qform_code"]) == 1


def test_sampled_volumes_are_nifti(tmp_path, monkeypatch, capfd):
    model = Identity(tmp_path / "run", SHAPE, (100, 300), {})
    model.run.mkdir()
    out = files.sample(model, tmp_path / "out", num=2, seed=0, steps=None)
    with np.load(out / "samples.npz") as arrays:
        expected = 100 + 200 * arrays["t2"][1, 0]
    written = nibabel.load(out / "t2" / "0001.nii.gz")
    np.testing.assert_allclose(written.get_fdata(), expected, rtol=1e-5)
    assert nibabel.aff2axcodes(written.affine) == ("I", "P", "L")
    capfd.readouterr()
    assert SimpleITK.ReadImage(out / "t2" / "0001.nii.gz").GetSpacing() == (1, 1, 1)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.warns(MandorlaWarning, match="alone; this needs nibabel"):
        assert not (files.sample(model, tmp_path / "more", num=1, seed=0, steps=None) / "t1").exists()


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_sampled_slices_lie_in_the_plane_they_were_cut_in(tmp_path, plane):
    """The training's volume is bright at the top, and so are slices but axial ones: up in the volume, too."""
    bright = np.zeros(SHAPE, np.float32)
    bright[:, :, 6:] = 1
    nibabel.save(nibabel.Nifti1Image(bright, AFFINES["RAS"]), tmp_path / "t1.nii")
    config = READ.validate_python({"slices": {"axis": plane, "keep": 0}})
    values = read_slices({"t1": str(tmp_path / "t1.nii")}, {}, config).values["t1"]
    model = Identity(tmp_path / "run", values.shape[2:], (0, 1), config.model_dump())
    files.write_generated(tmp_path, {"t1": values[:1]}, model, "nifti", 0, {})
    written = nibabel.as_closest_canonical(nibabel.load(tmp_path / "t1" / "0000.nii.gz"))  # right, forward, up
    across = {"axial": 2, "coronal": 1, "sagittal": 0}[plane]
    assert written.shape == tuple(1 if axis == across else length for axis, length in enumerate(SHAPE))
    if plane != "axial":
        np.testing.assert_array_equal(written.get_fdata(), bright.take([0], across))


def test_axes_that_only_files_know_are_warned_of(tmp_path):
    model = Identity(tmp_path / "run", SHAPE, (0, 1), {"geometry": {"axes": None}})
    model.run.mkdir()
    with pytest.warns(MandorlaWarning, match="written as if theirs led to IPL: the recipe keeps the axes of the files"):
        files.sample(model, tmp_path / "out", num=1, seed=0, steps=None)


def test_a_grid_that_is_not_given_is_warned_of(tmp_path):
    make(tmp_path / "p1.nii.gz", "int16", OBLIQUE)
    model = Identity(tmp_path / "run", SHAPE[::-1], (0, 1), {"geometry": {"resample": "to_first"}})
    with pytest.warns(MandorlaWarning, match="to the grid of t1, which is not given"):
        find_inputs(model, tmp_path / "p1.nii.gz", ["t2"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_inputs(model, tmp_path / "p1.nii.gz", ["t1"])


def test_volumes_that_do_not_fit_are_named_and_nothing_is_written(tmp_path):
    path = tmp_path / "in" / "p1.nii.gz"
    make(path, "int16", OBLIQUE)
    nibabel.save(nibabel.Nifti1Image(np.zeros(SHAPE, np.uint8), OBLIQUE), tmp_path / "in" / "blank.nii.gz")
    model = Identity(tmp_path / "run", (5, 5), (0, 1), {})
    for settings, text in (
        ({}, r"p1.nii.gz: shape \(1, 1, 10, 8, 6\), expected \(N, 1, 5, 5\)"),
        ({"slices": {}}, "p1.nii.gz: size 8 x 6, but modality 't1' of this model has 5 x 5"),
        ({"slices": {"step": 2}}, "blank.nii.gz: no slice holds as much foreground"),
    ):
        model.recipe.data = READ.validate_python(settings)
        path = tmp_path / "in" / ("blank.nii.gz" if "step" in str(settings) else "p1.nii.gz")
        with pytest.raises(MandorlaError, match=text):
            files.translate(model, path, tmp_path / "out", ["t1"], ["t2"], num_samples=1, seed=0)
        assert not (tmp_path / "out").exists()
    model.modalities += (Modality("t3", 1, (5, 5)),)
    with pytest.raises(MandorlaError, match="one file, but several given"):
        files.translate(model, path, tmp_path / "out", ["t1", "t2"], ["t3"], num_samples=1, seed=0)
