"""Samples out of samples: what is read, what is written, and that it is what the model makes of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import read_image

import mandorla
from mandorla import edits
from mandorla.data.images import write_image
from mandorla.errors import MandorlaError, MandorlaWarning


@pytest.fixture(scope="module", params=["polydigits_run", "phantom_run", "signals_run", "volumes_run"])
def model(request):
    return mandorla.load(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def heads(phantom_run):
    return mandorla.load(phantom_run)


@pytest.fixture
def paints(heads, monkeypatch):
    """The model of heads, taken to have been trained with regions."""
    monkeypatch.setattr(heads.diffusion, "config", heads.diffusion.config.model_copy(update={"region_share": 0.2}))
    return heads


def of_test(model, *indices: int) -> dict[str, torch.Tensor]:
    """Return samples of the test split, of the modalities that all of them have."""
    batch = model.data().test.batch(list(indices))
    return {name: x for name, x in batch.x.items() if batch.present[name].all()}


def saved(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


def equal(found: dict[str, np.ndarray], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x.numpy(), name)


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_swap_of_two_test_samples(model):
    out = edits.swap(model, "1", "3", None)
    assert out == model.run / "swap"
    expected = model.swap(of_test(model, 1), of_test(model, 3))
    equal(saved(out / "swap.npz"), expected)
    assert entries(out) == {"grid.png", "swap.npz", "swap.json", *expected}
    note = json.loads((out / "swap.json").read_text())
    assert note["weights"] == {"vae": model.weights}, "nothing was drawn"
    assert note["shared_from"] == "1" and note["synthetic"]


def test_swap_passes_only_what_is_present(heads, tmp_path):
    x = of_test(heads, 0)
    np.savez(tmp_path / "a.npz", t1=x["t1"])
    np.savez(tmp_path / "b.npz", t2=x["t2"])
    out = edits.swap(heads, str(tmp_path / "a.npz"), str(tmp_path / "b.npz"), tmp_path / "out")
    equal(saved(out / "swap.npz"), heads.swap({"t1": x["t1"]}, {"t2": x["t2"]}))
    pixels = read_image(out / "t2" / "0000.png")
    np.testing.assert_allclose(pixels, saved(out / "swap.npz")["t2"][0], atol=0.5 / 255 + 1e-6)
    assert read_image(out / "grid.png").shape[1] > 3 * 18, "three rows"
    with Image.open(out / "grid.png") as picture:
        assert json.loads(picture.text["mandorla"])["synthetic"] is True


def test_variations(model):
    out = edits.vary(model, "2", None, strength=0.4, part="private", num=3, seed=5)
    expected = model.vary(of_test(model, 2), 0.4, "private", 5, num=3).x
    found = saved(out / "vary.npz")
    equal({name: values[:, 0] for name, values in found.items()}, expected)
    assert all(len(np.unique(values.reshape(3, -1), axis=0)) == 3 for values in found.values()), "no two draws alike"
    assert entries(out) == {"grid.png", "vary.npz", "vary.json", "draw0", "draw1", "draw2"}
    assert entries(out / "draw2") == set(expected)
    note = json.loads((out / "vary.json").read_text())
    assert note.items() >= {"source": "2", "strength": 0.4, "part": "private", "seed": 5, "steps": 3}.items()
    assert note["weights"] == model.hashes


def test_of_several_samples_draws_come_first(heads, tmp_path):
    x = of_test(heads, 0, 1)
    np.savez(tmp_path / "a.npz", **x)
    out = edits.vary(heads, str(tmp_path / "a.npz"), tmp_path / "out", strength=0, part="both", num=3, seed=0)
    for name, values in saved(out / "vary.npz").items():
        assert values.shape == (3, *x[name].shape)
        for draw in values:  # of no strength: all draws of a sample are its reconstruction
            np.testing.assert_allclose(draw, heads.decode(heads.encode(x))[name].numpy(), atol=1e-4)
    assert entries(out / "draw1" / "t1") == {"0000.png", "0000.json", "0001.png", "0001.json"}


def test_a_way(model):
    out = edits.interpolate(model, "1", "3", None, part="shared", num=4)
    expected = model.interpolate(of_test(model, 1), of_test(model, 3), 4, "shared")
    equal(saved(out / "interpolate.npz"), expected)
    assert entries(out) == {"grid.png", "interpolate.npz", "interpolate.json", *(f"step{k}" for k in range(4))}
    assert json.loads((out / "interpolate.json").read_text())["weights"] == {"vae": model.weights}


def test_a_region_drawn_anew(paints, tmp_path):
    region = np.zeros((18, 22))
    region[3:9, 4:12] = 1
    write_image(tmp_path / "region.png", region[None])
    np.save(tmp_path / "region.npy", region)
    found = {}
    for file in ("region.png", "region.npy"):
        out = edits.inpaint(paints, "0", tmp_path / file, tmp_path / file[-3:], part="both", num=2, seed=1)
        found[file] = saved(out / "inpaint.npz")
    x = of_test(paints, 0)
    for name, values in found["region.png"].items():
        np.testing.assert_array_equal(values, found["region.npy"][name])
        assert values.shape == (2, 1, 1, 18, 22)
        outside = np.broadcast_to(region == 0, values.shape)
        np.testing.assert_array_equal(values[outside], x[name].expand(2, 1, 1, 18, 22).numpy()[outside])
        assert not np.array_equal(values[0], values[1]) and not np.array_equal(values[0], x[name].numpy())
    assert json.loads((out / "inpaint.json").read_text())["region"] == str(tmp_path / "region.npy")


def test_regions_that_fit_nothing(paints, signals_run, tmp_path):
    def inpaint(model, region: str):
        edits.inpaint(model, "0", tmp_path / region, tmp_path / "out", part="both", num=1, seed=0)

    write_image(tmp_path / "small.png", np.ones((1, 9, 22)))
    write_image(tmp_path / "empty.png", np.zeros((1, 18, 22)))
    with pytest.raises(MandorlaError, match=r"small.png: size 9 x 22, but samples have 18 x 22: resize it"):
        inpaint(paints, "small.png")
    with pytest.raises(MandorlaError, match=r"empty.png: nothing in it is above zero"):
        inpaint(paints, "empty.png")
    with pytest.raises(MandorlaError, match=r"absent.png: no such file"):
        inpaint(paints, "absent.png")
    with pytest.raises(MandorlaError, match="signals and vectors have no regions"):
        inpaint(mandorla.load(signals_run), "small.png")
    assert not (tmp_path / "out").exists()


def test_stage_2_must_know_regions(heads, tmp_path):
    write_image(tmp_path / "region.png", np.ones((1, 18, 22)))
    with pytest.raises(MandorlaError, match="never saw regions: train it with diffusion.region_share"):
        edits.inpaint(heads, "0", tmp_path / "region.png", tmp_path / "out", part="both", num=1, seed=0)
    assert not (tmp_path / "out").exists()


def test_samples_in_folders(heads, tmp_path):
    """A folder with a file of each modality is a sample; with a folder of each, one for each name."""
    x = of_test(heads, 0, 1)
    for name, images in x.items():
        (tmp_path / "many" / name).mkdir(parents=True)
        for number, image in enumerate(images.numpy()):
            write_image(tmp_path / "many" / name / f"p{number}.png", image)
        (tmp_path / "one").mkdir(exist_ok=True)
        write_image(tmp_path / "one" / f"{name}.png", images[1].numpy())
    (tmp_path / "one" / "notes.txt").write_text("not a modality")
    expected = {name: (images * 255).round() / 255 for name, images in x.items()}
    out = edits.interpolate(heads, str(tmp_path / "many"), str(tmp_path / "many"), None, part="both", num=2)
    for name, values in heads.decode(heads.encode(expected)).items():
        np.testing.assert_allclose(saved(out / "interpolate.npz")[name][0], values.numpy(), atol=1e-4)
    out = edits.swap(heads, str(tmp_path / "one"), "1", None)
    alone = heads.swap({name: values[1:] for name, values in expected.items()}, of_test(heads, 1))
    for name, values in alone.items():
        np.testing.assert_allclose(saved(out / "swap.npz")[name], values.numpy(), atol=1e-4)


def test_what_is_made_of_files_is_called_like_them(heads, tmp_path):
    x = of_test(heads, 0, 1)
    for name, images in x.items():
        (tmp_path / "in" / name).mkdir(parents=True)
        for stem, image in zip("ba", images.numpy(), strict=True):
            write_image(tmp_path / "in" / name / f"{stem}.png", image)
    out = edits.vary(heads, str(tmp_path / "in"), tmp_path / "out", strength=0.2, part="both", num=2, seed=0)
    assert entries(out / "draw1" / "t2") == {"a.png", "a.json", "b.png", "b.json"}
    pixels = read_image(out / "draw1" / "t2" / "b.png")
    np.testing.assert_allclose(pixels, saved(out / "vary.npz")["t2"][1, 1], atol=0.5 / 255 + 1e-6)
    note = json.loads((out / "draw1" / "t2" / "b.json").read_text())
    assert note.items() >= {"which": "draw1", "modality": "t2", "Sources": ["b.png", "b.png"]}.items()


def test_one_file_of_a_modality_is_one_sample_whatever_lies_beside_it(heads, tmp_path):
    x = of_test(heads, 0)
    for name in ("t1", "t22", "mask"):
        write_image(tmp_path / f"{name}.png", x["t1"][0].numpy())
    (tmp_path / "mask.csv").write_text("1,2")
    with pytest.warns(MandorlaWarning, match="no t2, did you mean 't22'"):
        out = edits.swap(heads, str(tmp_path), "0", tmp_path / "out")
    assert saved(out / "swap.npz")["t2"].shape == (1, 1, 18, 22)
    (tmp_path / "t22.png").rename(tmp_path / "T2w.png")
    out = edits.vary(heads, str(tmp_path), tmp_path / "vary", strength=0, part="both", num=1, seed=0)
    assert set(saved(out / "vary.npz")) == {"t1", "t2"}, "names that training knows are read as those of modalities"
    (tmp_path / "t2").mkdir()
    with pytest.raises(MandorlaError, match=r"files of some modalities, folders of others \(t1, t2\): make them alike"):
        edits.swap(heads, str(tmp_path), "0", tmp_path / "other")


def test_rows_of_a_table_are_samples_and_keep_their_names(tables_run, tmp_path):
    model = mandorla.load(tables_run)
    lines = ["who,sodium,calcium,ph,protein,glucose", "a,139,2.4,6,0.4,5", "b,140,2.5,,,", "c,141,2.3,6,0.6,5"]
    (tmp_path / "new.csv").write_text("\n".join(lines))
    with pytest.warns(MandorlaWarning, match=r"1 of 3 samples lack a modality, such as row 1 \(urine\): passed over"):
        settings = {"strength": 0.5, "part": "private", "num": 2, "seed": 0}
        out = edits.vary(model, str(tmp_path / "new.csv"), tmp_path / "out", **settings)
    assert entries(out) == {"draw0", "draw1", "grid.png", "vary.json", "vary.npz"}
    assert entries(out / "draw0") == {f"{name}.{kind}" for name in ("blood", "urine") for kind in ("csv", "json")}
    rows = [line.split(",") for line in (out / "draw1" / "blood.csv").read_text().splitlines()]
    assert rows[0] == ["who", "sodium", "calcium"] and [row[0] for row in rows[1:]] == ["a", "c"]
    made = model.from_unit({"blood": saved(out / "vary.npz")["blood"][1]})["blood"]
    np.testing.assert_allclose(np.array([row[1:] for row in rows[1:]], float), made, rtol=1e-5)


def test_both_sides_of_a_swap_are_shown(heads, tmp_path):
    x = of_test(heads, 0)
    np.savez(tmp_path / "a.npz", t1=x["t1"])
    np.savez(tmp_path / "b.npz", t2=x["t2"])
    whole = read_image(edits.swap(heads, "0", "0", tmp_path / "both") / "grid.png").shape
    parts = read_image(edits.swap(heads, str(tmp_path / "a.npz"), str(tmp_path / "b.npz"), None) / "grid.png").shape
    assert parts == whole, "a column for each modality, with empty places"


def test_a_region_lies_on_the_grid_of_the_scans(volumes_run, tmp_path, monkeypatch):
    """Volumes are turned to the model's axes, their region with them, and what is made of them is turned back."""
    nibabel = pytest.importorskip("nibabel")
    model = mandorla.load(volumes_run)
    monkeypatch.setattr(model.diffusion, "config", model.diffusion.config.model_copy(update={"region_share": 0.2}))
    affine = np.array([[-1.5, 0, 0, 10], [0, 0, 2, -4], [0, -1, 0, 7], [0, 0, 0, 1.0]])  # another order and direction
    x = {name: volume[0, 0].numpy() for name, volume in of_test(model, 0).items()}
    region = np.zeros((16, 18, 17), np.uint8)
    region[:4, :5, :6] = 1
    turns = {"region": region, **x}
    (tmp_path / "in").mkdir()
    ways = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("IPL"), nibabel.orientations.io_orientation(affine)
    )
    for name, volume in turns.items():
        stored = nibabel.orientations.apply_orientation(volume, ways)
        nibabel.save(nibabel.Nifti1Image(stored, affine), tmp_path / "in" / f"{name}.nii.gz")
    mask = tmp_path / "in" / "region.nii.gz"
    out = edits.inpaint(model, str(tmp_path / "in"), mask, tmp_path / "out", part="both", num=1, seed=0)
    made = saved(out / "inpaint.npz")
    marked = nibabel.load(mask).get_fdata() > 0
    for name, volume in x.items():
        changed = np.abs(made[name][0, 0] - volume) > 1e-6
        assert changed.any() and not changed[region == 0].any()
        written = nibabel.load(out / name / "in.nii.gz")
        np.testing.assert_allclose(written.affine, affine)
        before = nibabel.load(tmp_path / "in" / f"{name}.nii.gz").get_fdata()
        np.testing.assert_allclose(written.get_fdata()[~marked], before[~marked], atol=1e-3)
        assert np.abs(written.get_fdata() - before)[marked].max() > 1e-3


@pytest.mark.parametrize("part", ["both", "shared"])
def test_a_stage_2_of_private_parts_says_so(heads, tmp_path, monkeypatch, part):
    changed = heads.diffusion.config.model_copy(update={"region_share": 0.2, "mode": "private"})
    monkeypatch.setattr(heads.diffusion, "config", changed)
    write_image(tmp_path / "region.png", np.ones((1, 18, 22)))
    with pytest.raises(MandorlaError, match="trained in mode 'private' and draws private parts alone: give part priv"):
        edits.inpaint(heads, "0", tmp_path / "region.png", None, part=part, num=1, seed=0)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("10", "no sample 10 in the test split: it has 10"),
        (5000 * "7", "no sample 777777777...77777777 in the test split: it has 10"),
        ("absent.npz", "absent.npz: no such file"),
        (".", r"expected a file or a folder of files called like a modality \(t1, t2\)"),
        ("b.npz", "0 holds 1 samples, b.npz holds 2: give as many"),
    ],
)
def test_sources_that_are_none(heads, tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    if source == "b.npz":
        np.savez("b.npz", t1=np.zeros((2, 1, 18, 22)))
    with pytest.raises(MandorlaError, match=message):
        edits.swap(heads, "0", source, Path("out"))
    assert not Path("out").exists()
