"""The recipes of the multiple sclerosis set, on its real NIfTI files where they are at hand: slices, and volumes."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import latents_of

from mandorla.data import load_data, pair_files
from mandorla.errors import MandorlaError
from mandorla.recipe import read_recipe
from mandorla.vae.training import train_vae

SHARED_DATA = Path(os.environ.get("MANDORLA_DATA") or Path(__file__).parents[2] / "shared" / "data")
NAMES = ("T1w", "T1wGd", "T2w", "FLAIR", "lesion")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not (SHARED_DATA / "open_ms").exists(), reason="no open_ms under MANDORLA_DATA"),
]


def add_mirrored(folder: Path, patient: str, axis: int) -> None:
    """Write one more patient into `folder`, the mirror image of another at other intensities."""
    nibabel = pytest.importorskip("nibabel")
    (folder / patient).mkdir()
    for name in NAMES:
        image = nibabel.load(folder / "sub-19" / f"sub-19_{name}.nii.gz")
        values = np.flip(np.asarray(image.dataobj), axis)
        values = values if name == "lesion" else np.sqrt(np.maximum(values, 0))
        mirrored = nibabel.Nifti1Image(values.astype(image.get_data_dtype()), image.affine)
        nibabel.save(mirrored, folder / patient / f"{patient}_{name}.nii.gz")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a folder with the two patients and a third."""
    root = tmp_path_factory.mktemp("data")
    shutil.copytree(SHARED_DATA / "open_ms", root / "open_ms")
    add_mirrored(root / "open_ms", "sub-98", axis=0)
    return root


def settings(name: str, root: Path, *more: str):
    return read_recipe(name, [f"data.root={json.dumps(str(root))}", "device=cpu", *more])


def test_files_are_paired_by_patient():
    pairs = pair_files(settings("open-ms", SHARED_DATA).data)
    assert list(pairs.files) == ["t1", "t1gd", "t2", "flair"]
    assert list(pairs.masks) == ["lesion_mask"]
    assert pairs.report.paired == len(pairs.groups) == len(set(pairs.groups))
    for row, patient in enumerate(pairs.groups):
        assert all(patient in Path(places[row]).name for places in (*pairs.files.values(), *pairs.masks.values()))


def test_two_patients_are_too_few(root, tmp_path):
    for patient in ("sub-07", "sub-19"):
        shutil.copytree(root / "open_ms" / patient, tmp_path / "open_ms" / patient)
    with pytest.raises(MandorlaError, match="2 group.s. are too few to divide into train, val and test"):
        load_data(settings("open-ms", tmp_path, "data.slices.step=30").data, seed=0)


def test_slices(root, tmp_path):
    recipe = settings("open-ms", root, f"run={json.dumps(str(tmp_path))}", "data.slices.step=8", "vae.training.steps=2")
    splits = load_data(recipe.data, seed=0)
    assert [(m.name, m.shape) for m in splits.modalities] == [(n, (1, 96, 80)) for n in ("t1", "t1gd", "t2", "flair")]
    assert {len(set(part.groups)) for part in splits.parts.values()} == {1}
    for part in splits.parts.values():
        batch = part.batch(range(len(part)))
        assert len(part) > 10
        lesion = batch.factors["lesion_mask"].astype(bool)
        flair = batch.x["flair"][:, 0].numpy()
        assert flair[lesion].mean() > flair[(flair > 0.05) & ~lesion].mean() + 0.1, "lesions are bright in FLAIR"
    train_vae(recipe)
    assert latents_of(tmp_path)[0]["val"].batch(np.arange(1)).latents.shared.shape == (1, 8, 24, 20)


def test_volumes(root, tmp_path):
    """Of four patients, since one alone trains nothing."""
    shutil.copytree(root / "open_ms", tmp_path / "open_ms")
    add_mirrored(tmp_path / "open_ms", "sub-99", axis=1)
    run = tmp_path / "run"
    train_vae(settings("open-ms-3d", tmp_path, f"run={json.dumps(str(run))}", "vae.training.steps=2"))
    assert latents_of(run)[0]["val"].batch(np.arange(1)).latents.shared.shape == (1, 8, 10, 12, 10)
