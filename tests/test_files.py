"""Files in, files out: what is written, what is refused, and that nothing half-written stays."""

import csv
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import arguments_of, read_image

import mandorla
from mandorla import files, outputs
from mandorla.data import follow_record, keep_record, load_data
from mandorla.data.dataset import Batch, Modality
from mandorla.data.folders import FoldersConfig
from mandorla.data.images import write_image
from mandorla.data.intensity import UNIT, Fitted, Intensity, MinMax, Window, read_intensity
from mandorla.data.places import ReadOptions
from mandorla.data.readers import read
from mandorla.diffusion.samplers import SamplingConfig
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.inputs import find_inputs, read_input
from mandorla.model import Mandorla
from mandorla.storage import locked


class FakeTest:
    """Five samples whose every pixel says which one it is; sample 4 has no t2."""

    def __len__(self):
        return 5

    def batch(self, indices):
        value = torch.tensor(indices, dtype=torch.float32) / 10
        x = {"t1": value.view(-1, 1, 1, 1).expand(-1, 1, 6, 8), "t2": value.view(-1, 1, 1, 1).expand(-1, 3, 6, 8)}
        present = {"t1": torch.ones(len(indices)).bool(), "t2": torch.tensor(indices) < 4}
        return Batch(x, present)


@dataclass
class FakeModel:
    """The interface of `Mandorla` that `files` uses, with answers that can be checked."""

    run: Path
    modalities: tuple[Modality, ...] = (Modality("t1", 1, (6, 8)), Modality("t2", 3, (6, 8)), Modality("v", 2, ()))
    intensity: dict = field(default_factory=lambda: {"t1": UNIT, "t2": UNIT, "v": UNIT})
    recipe: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(data=None))

    to_unit = Mandorla.to_unit
    at_once, sampling, hashes, weights = 4, SamplingConfig(steps=3), {"vae": "v", "diffusion": "d"}, "v"
    refiner, hashes_of_decoding = None, {"vae": "v"}

    @property
    def arguments(self):
        return arguments_of(self.modalities)

    def strange(self, x):
        return ""

    def data(self):
        return SimpleNamespace(test=FakeTest())

    def sample(self, num, seed, steps, best_of, first, labels):
        def draw(shape):
            return torch.rand(100, *shape, generator=torch.Generator().manual_seed(seed))[first : first + num]

        return SimpleNamespace(x={m.name: draw(m.shape) for m in self.modalities})

    def translate(self, x, wanted, num_samples, seed, steps, keys, labels):
        level = torch.as_tensor(next(iter(x.values()))).mean(dim=(1, 2, 3))
        spread = torch.linspace(-0.1, 0.1, num_samples) if num_samples > 1 else torch.zeros(1)
        shapes = {m.name: m.shape for m in self.modalities}
        return {
            name: (spread[:, None] + level)
            .view(len(spread), -1, *[1] * len(shapes[name]))
            .expand(-1, -1, *shapes[name])
            for name in wanted
        }


@pytest.fixture
def model(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    return FakeModel(run)


@pytest.fixture
def t1(tmp_path):
    """A folder of three grey images, pixel values 0.2, 0.4, 0.6."""
    folder = tmp_path / "in"
    folder.mkdir()
    for stem, value in (("a", 0.2), ("b", 0.4), ("c", 0.6)):
        write_image(folder / f"{stem}.png", np.full((1, 6, 8), value))
    return folder


def translate(
    model, source, out, given=("t1",), wanted=("t2",), num_samples=2, write=("mean", "std"), seed=0, complete=False
):
    settings = {"num_samples": num_samples, "seed": seed, "write": write, "complete": complete}
    return files.translate(model, Path(source), Path(out), given, wanted, **settings)


def entries(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def table(path: Path) -> np.ndarray:
    return np.loadtxt(path, delimiter=",", skiprows=1)


def test_sample_writes_pictures_grid_and_arrays(model):
    out = files.sample(model, None, num=2, seed=3, steps=None)
    assert out == model.run / "samples"
    files_of = [f"{name}/000{n}.{kind}" for name in ("t1", "t2") for n in (0, 1) for kind in ("json", "png")]
    others = ["grid.png", "samples.json", "samples.npz", "t1", "t2", "v.csv", "v.json"]
    assert entries(out) == sorted([*others, *files_of])
    note = json.loads((out / "t2" / "0001.json").read_text())
    assert note.items() >= {"synthetic": True, "seed": 3, "steps": 3, "modality": "t2", "number": 1}.items()
    assert note["weights"] == model.hashes
    with np.load(out / "samples.npz") as arrays:
        assert {name: arrays[name].shape for name in arrays} == {"t1": (2, 1, 6, 8), "t2": (2, 3, 6, 8), "v": (2, 2)}
        assert np.abs(read_image(out / "t2" / "0001.png") - arrays["t2"][1]).max() <= 0.5 / 255 + 1e-6
        np.testing.assert_allclose(table(out / "v.csv"), np.column_stack([[0, 1], arrays["v"]]), rtol=1e-6)
    assert (out / "v.csv").read_text().startswith("sample,channel0,channel1\n0,")
    for name in ("grid.png", "t1/0000.png", "t2/0001.png"):
        with Image.open(out / name) as picture:
            assert json.loads(picture.text["mandorla"])["synthetic"] is True
    height, width = read_image(out / "grid.png").shape[1:]
    assert width > height > 2 * 6 * 8, "two rows of two tiles, each pixel at least eight times"


def test_samples_in_one_format(model, tmp_path):
    out = files.sample(model, tmp_path / "npz", num=2, seed=0, steps=7, format="npz")
    assert entries(out) == ["samples.json", "samples.npz"]
    assert json.loads((out / "samples.json").read_text())["steps"] == 7
    with pytest.warns(MandorlaWarning, match="--format png: v cannot be written so and is left out"):
        out = files.sample(model, tmp_path / "png", num=2, seed=0, steps=None, format="png")
    assert [path.suffix for path in out.rglob("*.*")].count(".png") == 4 and not list(out.glob("*.*"))
    pytest.importorskip("nibabel")
    with pytest.warns(MandorlaWarning, match="--format nifti"):
        out = files.sample(model, tmp_path / "nifti", num=9, seed=0, steps=None, format="nifti")
    with np.load(files.sample(model, tmp_path / "all", num=9, seed=0, steps=None) / "samples.npz") as arrays:
        for number in (0, 8):  # drawn in three parts, 4 at once
            found = read(str(out / "t2" / f"000{number}.nii.gz:0"), ReadOptions()).values
            np.testing.assert_allclose(found[0, 0], arrays["t2"][number, 0], atol=1e-6)
    model.modalities = model.modalities[2:]
    with pytest.raises(MandorlaError, match="--format png: v cannot be written so: use npz"):
        files.sample(model, tmp_path / "none", num=2, seed=0, steps=None, format="png")
    assert not (tmp_path / "none").exists()


def test_the_default_folder_is_replaced_and_a_named_one_never(model, tmp_path):
    for num in (3, 2):
        files.sample(model, None, num=num, seed=0, steps=None)
    assert len(list((model.run / "samples" / "t1").glob("*.png"))) == 2
    named = tmp_path / "named"
    named.mkdir()
    files.sample(model, named, num=1, seed=0, steps=None)
    with pytest.raises(MandorlaError, match="exists already"):
        files.sample(model, named, num=1, seed=0, steps=None)


def test_translate_a_folder_of_images(model, t1, tmp_path):
    (t1 / "notes.txt").write_text("no image")
    out = translate(model, t1, tmp_path / "new" / "out", wanted=("t2", "v"), write=("mean", "std", "draws"))
    kinds = ("", "_std", "_draw0", "_draw1")
    files_of = [f"{name}{kind}/{stem}" for name in ("t2", "v") for kind in kinds for stem in "abc"]
    suffixes = {"t": ".png", "v": ".csv"}
    expected = [f"{name}{suffix}" for name in files_of for suffix in (".json", suffixes[name[0]])]
    assert [name for name in entries(out) if "." in name] == sorted(["dataset_description.json", *expected])
    for kind, level in zip(kinds, (0.4, np.std([0.3, 0.5], ddof=1), 0.3, 0.5), strict=True):
        assert read_image(out / f"t2{kind}" / "b.png").mean() == pytest.approx(level, abs=0.51 / 255)
        np.testing.assert_allclose(table(out / f"v{kind}" / "b.csv"), np.full(2, level), atol=1e-2)
    note = json.loads((out / "t2_std" / "b.json").read_text())
    assert note["synthetic"] is True and note["Sources"] == ["b.png"] and note["statistic"] == "std"
    assert (note["given"], note["wanted"], note["seed"], note["steps"]) == (["t1"], ["t2", "v"], 0, 3)


def test_draws_of_an_input_do_not_depend_on_the_others(model, t1, tmp_path):
    seen = {}
    translate_as_ever = model.translate

    def spy(x, wanted, num_samples, seed, steps, keys, labels):
        for level, key in zip(x["t1"].mean((1, 2, 3)), keys, strict=True):
            seen.setdefault(round(float(level), 1), set()).add(key)
        return translate_as_ever(x, wanted, num_samples, seed, steps, keys, labels)

    model.translate = spy
    translate(model, t1, tmp_path / "all")
    model.at_once = 1
    translate(model, t1 / "b.png", tmp_path / "one", num_samples=3)
    (t1 / "a.png").unlink()
    translate(model, t1, tmp_path / "rest")
    assert {level: len(keys) for level, keys in seen.items()} == {0.2: 1, 0.4: 1, 0.6: 1}
    assert len(set().union(*seen.values())) == 3


def test_the_same_command_goes_on_and_another_is_refused(model, t1, tmp_path):
    out = translate(model, t1, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    for name in ("b.json", "b.png"):
        (out / "t2" / name).unlink()
    (out / "t2" / "b.png.part").touch()
    seen, usual = [], model.translate
    model.translate = lambda x, *more, **named: seen.append(len(x["t1"])) or usual(x, *more, **named)
    translate(model, t1, out)
    assert seen == [1], "only what is missing is drawn"
    changed = {path.name for path in out.rglob("*.png") if before.get(path) != path.stat().st_mtime_ns}
    assert changed == {"b.png"} and not list(out.rglob("*.part"))
    with pytest.raises(MandorlaError, match=r"out: was begun with seed 0, not 1; name a new folder"):
        translate(model, t1, out, seed=1)
    with pytest.raises(MandorlaError, match=r"out: was begun with write \["):
        translate(model, t1, out, write=("mean",))
    shutil.copytree(t1, tmp_path / "of another hospital")
    with pytest.raises(MandorlaError, match='out: was begun with Source "../in", not "../of another hospital"'):
        translate(model, tmp_path / "of another hospital", out)


def test_what_the_training_paired_by_a_key_is_paired_so_again(model, tmp_path):
    for case in ("p1", "p2"):
        for name in ("t1", "t2"):
            (tmp_path / "in" / name).mkdir(parents=True, exist_ok=True)
            write_image(tmp_path / "in" / name / f"{case}_{name}.png", np.zeros((1, 6, 8), np.float32))
    key = r"(?P<subject>p\d)"
    for pattern in (".+", key):
        model.recipe = SimpleNamespace(data=FoldersConfig(folders={"t1": "a", "t2": "b"}, key=pattern))
        if pattern != key:
            with pytest.raises(MandorlaError, match="in/t1: no file for p1_t2, p2_t2, which another given"):
                find_inputs(model, tmp_path / "in", ["t1", "t2"])
    found = find_inputs(model, tmp_path / "in", ["t1", "t2"])
    assert [(one.name, one.subject, one.places["t2"].name) for one in found] == [
        ("p1_t1", "p1", "p1_t2.png"),
        ("p2_t1", "p2", "p2_t2.png"),
    ]
    write_image(tmp_path / "in" / "t2" / "p1_again.png", np.zeros((1, 6, 8), np.float32))
    with pytest.raises(MandorlaError, match="no file for"):
        find_inputs(model, tmp_path / "in", ["t1", "t2"])


@pytest.mark.parametrize("bad", ["a", "b"])
def test_an_input_that_cannot_be_read_stops_no_other(model, t1, tmp_path, bad):
    whole = (t1 / f"{bad}.png").read_bytes()
    (t1 / f"{bad}.png").write_bytes(whole[:40])
    with pytest.raises(MandorlaError, match=rf"in/{bad}.png: cannot .*\(1 of 3 inputs failed; .* the same command"):
        translate(model, t1, tmp_path / "out")
    done = {path.stem for path in (tmp_path / "out" / "t2").glob("*.png")}
    assert done == {"a", "b", "c"} - {bad}
    (t1 / f"{bad}.png").write_bytes(whole)
    translate(model, t1, tmp_path / "out")
    assert len(list((tmp_path / "out" / "t2").glob("*.png"))) == 3


def test_memory_is_that_of_a_few_inputs(model, t1, tmp_path):
    most = []
    translate_as_ever = model.translate
    model.translate = lambda x, *more, **named: most.append(len(x["t1"])) or translate_as_ever(x, *more, **named)
    for number in range(30):
        write_image(t1 / f"more{number}.png", np.full((1, 6, 8), 0.5))
    translate(model, t1, tmp_path / "out")
    assert max(most) * 2 <= model.at_once and sum(most) == 33


def test_images_are_averaged_down_as_in_training(model, t1, tmp_path):
    checkers = np.indices((12, 16)).sum(0)[None] % 2 * 0.8
    write_image(t1 / "d.png", checkers.astype(np.float32))
    with pytest.raises(MandorlaError, match="size 12 x 16"):
        translate(model, t1 / "d.png", tmp_path / "out")
    model.recipe = SimpleNamespace(data=FoldersConfig(folders={"t1": "a", "t2": "b"}, size=(6, 8)))
    out = translate(model, t1, tmp_path / "out")
    assert read_image(out / "t2" / "d.png").mean() == pytest.approx(0.4, abs=1 / 255)


def test_a_guess_without_a_draw_is_one_file_for_each_input(model, t1, tmp_path):
    out = translate(model, t1, tmp_path / "out", num_samples=0, write=("mean", "draws"))
    assert {path.parent.name for path in out.rglob("*.png")} == {"t2", "t2_draw0"}
    note = json.loads((out / "t2" / "a.json").read_text())
    assert note["num_samples"] == 0 and note["weights"] == {"vae": "v"} and not {"sampler", "steps"} & note.keys()
    for how in ({"labels": {"age": 3}}, {"steps": 4}):
        with pytest.raises(MandorlaError, match="with num_samples 0 nothing is: leave"):
            files.translate(model, t1, tmp_path / "no", ["t1"], ["t2"], num_samples=0, seed=0, **how)
    assert not (tmp_path / "no").exists()
    np.savez(tmp_path / "in.npz", t1=np.zeros((3, 1, 6, 8), np.float32))
    translate(model, tmp_path / "in.npz", tmp_path / "arrays", num_samples=0, write=("mean",))
    with np.load(tmp_path / "arrays" / "samples.npz") as arrays:
        assert arrays["t2"].shape == (1, 3, 3, 6, 8)


def test_one_sample_has_no_spread(model, t1, tmp_path):
    with pytest.raises(MandorlaError, match="a standard deviation needs two samples"):
        translate(model, t1, tmp_path / "out", num_samples=1)
    assert not (translate(model, t1, tmp_path / "out", num_samples=1, write=("mean",)) / "t2_std").exists()


def test_translate_pairs_sub_folders_by_stem(model, t1, tmp_path):
    for name, channels in (("t1", 1), ("t2", 3)):
        (t1 / name).mkdir()
        for stem, value in (("y", 0.5), ("x", 0.1)):
            write_image(t1 / name / f"{stem}.png", np.full((channels, 6, 8), value))
    model.modalities += (Modality("t3", 1, (6, 8)),)
    model.intensity["t3"] = UNIT
    out = translate(model, t1, tmp_path / "out", given=("t1", "t2"), wanted=("t3",))
    assert sorted(path.name for path in (out / "t3").glob("*.png")) == ["x.png", "y.png"]
    assert json.loads((out / "t3" / "x.json").read_text())["Sources"] == ["t1/x.png", "t2/x.png"]
    assert read_image(out / "t3" / "x.png").mean() == pytest.approx(0.1, abs=0.5 / 255)
    write_image(t1 / "t2" / "z.png", np.full((3, 6, 8), 0))
    with pytest.warns(MandorlaWarning, match=r"in: 1 of 3 samples lack a modality, such as z \(t1\): passed over"):
        other = translate(model, t1, tmp_path / "other", given=("t1", "t2"), wanted=("t3",), complete=True)
    assert [path.name for path in sorted((other / "t3").glob("*.png"))] == ["x.png", "y.png"]
    for name in "xy":
        (t1 / "t1" / f"{name}.png").rename(t1 / "t1" / f"other {name}.png")
    with pytest.raises(MandorlaError, match=r"in/t1: no file for x, y, z, which another given modality has; add it"):
        translate(model, t1, tmp_path / "none", given=("t1", "t2"), wanted=("t3",))


def test_a_sample_is_made_of_what_it_has(model, tmp_path):
    """Each as if those that have the same were given alone; what lacks everything is no sample."""
    model.modalities = (*(Modality(name, 1, (6, 8)) for name in ("t1", "t2", "t3", "t4")), Modality("v", 2, ()))
    model.intensity |= {"t3": UNIT, "t4": UNIT}
    has = {"p0": "t1 t2 t3", "p1": "t2 t3", "p2": "t1 t2 t3", "p3": "t3", "p4": "t2 t3"}
    for place, case in (("in/{m}/{p}.png", None), ("alone/{m}/{p}.png", "p1"), ("alone/{m}/{p}.png", "p4")):
        for number, (name, modalities) in enumerate(has.items()):
            for modality in modalities.split() if case in (None, name) else ():
                path = tmp_path / place.format(m=modality, p=name)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_image(path, np.full((1, 6, 8), 0.1 * number + 0.2 * int(modality[1])))
    seen, usual = [], model.translate
    model.translate = lambda x, *more, **named: seen.append((tuple(x), len(named["keys"]))) or usual(x, *more, **named)
    asked = {"given": ("t1", "t2", "t3"), "wanted": ("t4",)}
    with pytest.warns(MandorlaWarning) as told:
        out = translate(model, tmp_path / "in", tmp_path / "out", **asked)
    text = r"in: 3 of 5 samples lack a modality, such as p1 (t1): 2 from t1, t2, t3; 2 from t2, t3; 1 from t3"
    assert [str(warning.message).removeprefix(f"{tmp_path}/") for warning in told] == [text]
    counts = {}
    for names, num in seen:
        counts[names] = counts.get(names, 0) + num
    assert counts == {("t1", "t2", "t3"): 2, ("t2", "t3"): 2, ("t3",): 1}
    notes = {name: json.loads((out / "t4" / f"{name}.json").read_text()) for name in has}
    assert {name: " ".join(note["given"]) for name, note in notes.items()} == has
    assert notes["p3"]["Sources"] == ["t3/p3.png"]
    alone = translate(model, tmp_path / "alone", tmp_path / "more", given=("t2", "t3"), wanted=("t4",))
    for name in ("p1", "p4"):
        assert (alone / "t4" / f"{name}.png").read_bytes() == (out / "t4" / f"{name}.png").read_bytes()
    with pytest.warns(MandorlaWarning, match="passed over"):
        whole = translate(model, tmp_path / "in", tmp_path / "whole", **asked, complete=True)
    assert sorted(path.stem for path in (whole / "t4").glob("*.png")) == ["p0", "p2"]
    for name in ("p0", "p2"):
        (tmp_path / "in" / "t1" / f"{name}.png").unlink()
    with pytest.raises(MandorlaError, match="t1: no file in this folder"):
        translate(model, tmp_path / "in", tmp_path / "none", **asked)
    write_image(tmp_path / "in" / "t1" / "p3.png", np.zeros((1, 6, 8)))
    with pytest.raises(
        MandorlaError, match=r"5 of 5 samples lack a modality, such as p0 \(t1\), and none has all: add"
    ):
        translate(model, tmp_path / "in", tmp_path / "none", **asked, complete=True)


def test_slices_of_a_subject_share_a_range_whatever_each_has(model, tmp_path):
    """The range of p1 in t1 is read off both its slices, in t2 off the one that has it."""
    model.recipe = SimpleNamespace(data=FoldersConfig(folders={}, key="(?P<subject>p.)_s."))
    model.modalities = (Modality("t1", 1, (6, 8)), Modality("t2", 1, (6, 8)), Modality("v", 2, ()))
    model.intensity["t1"] = Fitted(MinMax(per="subject"), Intensity(0.0, 255.0), {"p1": Intensity(0.0, 1.0)})
    for name, levels in {"t1/p1_s1": (0.0, 0.2), "t1/p1_s2": (0.2, 0.4), "t2/p1_s1": (0.2, 0.4)}.items():
        path = tmp_path / "in" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.full((1, 6, 8), levels[0])
        image[:, :3] = levels[1]
        write_image(path, image)
    with pytest.warns(MandorlaWarning, match="1 from t1, t2; 1 from t1"):
        out = translate(model, tmp_path / "in", tmp_path / "out", given=("t1", "t2"), wanted=("v",))
    found = [table(out / "v" / f"{name}.csv").mean() for name in ("p1_s1", "p1_s2")]
    np.testing.assert_allclose(found, [0.25, 0.75], atol=1e-6)


def test_a_key_pairs_also_where_some_have_no_partner(model, tmp_path):
    model.recipe = SimpleNamespace(data=FoldersConfig(folders={"t1": "a", "t2": "b"}, key=r"(?P<subject>p\d)"))
    for name in ("t1/p1_t1", "t1/p2_t1", "t2/p1_t2", "t2/p3_t2"):
        path = tmp_path / "in" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, np.zeros((1, 6, 8), np.float32))
    found = find_inputs(model, tmp_path / "in", ["t1", "t2"])
    assert {one.name: list(one.places) for one in found} == {"p1_t1": ["t1", "t2"], "p2_t1": ["t1"], "p3_t2": ["t2"]}


def test_one_file_per_modality_is_one_input(model, tmp_path):
    (tmp_path / "case").mkdir()
    for name, channels in (("t1", 1), ("t2", 3)):
        write_image(tmp_path / "case" / f"{name}.png", np.full((channels, 6, 8), 0.5))
    (tmp_path / "case" / "notes.csv").write_text("a\n1\n")
    out = translate(model, tmp_path / "case", tmp_path / "out", given=("t1", "t2"), wanted=("v",))
    assert [path.name for path in (out / "v").glob("*.csv")] == ["case.csv"]


def level_of(path: Path) -> float:
    return table(path).mean()


@pytest.mark.parametrize("names", [("t1", "t2", "seg"), ("T1", "T2", "labels"), ("T1w", "t2_w", "t1_mask")])
def test_what_is_called_like_another_modality_is_not_taken_for_the_given_one(model, tmp_path, names):
    (tmp_path / "case").mkdir()
    for name, value in zip(names, (0.2, 0.4, 0.6), strict=True):
        write_image(tmp_path / "case" / f"{name}.png", np.full((1, 6, 8), value))
    with pytest.warns(MandorlaWarning, match=r"case: 2 file\(s\) not called like t1 passed over, such as "):
        out = translate(model, tmp_path / "case", tmp_path / "out", wanted=("v",), write=("mean",))
    assert entries(out / "v") == ["case.csv", "case.json"] and level_of(out / "v" / "case.csv") == pytest.approx(0.2)
    (tmp_path / "case" / f"{names[0]}.png").rename(tmp_path / "case" / "p1.png")  # of no name it is given by itself
    with pytest.warns(MandorlaWarning, match=r"2 file\(s\) not called like t1"):
        out = translate(model, tmp_path / "case", tmp_path / "more", wanted=("v",), write=("mean",))
    assert entries(out / "v") == ["p1.csv", "p1.json"]
    (tmp_path / "case" / "p1.png").unlink()
    with pytest.raises(MandorlaError, match="case: all files are called like others than t1, such as"):
        translate(model, tmp_path / "case", tmp_path / "none", wanted=("v",))


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("{p}/{m}.png", "p{n}"),
        ("{p}/{p}-{M}.png", "p{n}/p{n}"),
        ("site/{p}_{m}w.png", "site/p{n}"),
        ("set-{M}/{p}.png", "set/p{n}"),
        ("{M}/{p}/scan.png", "p{n}/scan"),
        ("{m}/a/{p}.png", "a/p{n}"),
    ],
)
@pytest.mark.parametrize("given", [("t1",), ("t1", "t2")])
def test_folders_are_searched_as_in_training(model, tmp_path, place, name, given):
    model.modalities = (Modality("t1", 1, (6, 8)), Modality("t2", 1, (6, 8)), Modality("v", 2, ()))
    for number in (0, 1):
        for modality, value in (("t1", 0.2), ("t2", 0.6)):
            path = tmp_path / "in" / place.format(p=f"p{number}", m=modality, M=modality.upper())
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, np.full((1, 6, 8), value + 0.2 * number))
    out = translate(model, tmp_path / "in", tmp_path / "in" / "out", given, ("v",), write=("mean", "std"))
    for _ in range(2):  # what was made is not taken for an input of the same command
        made = {path.relative_to(out / "v").as_posix(): level_of(path) for path in (out / "v").rglob("*.csv")}
        assert made == pytest.approx({f"{name.format(n=n)}.csv": 0.2 + 0.2 * n for n in (0, 1)}, abs=1e-2)
        translate(model, tmp_path / "in", out, given, ("v",), write=("mean", "std"))


def test_two_files_for_one_name_are_refused(model, tmp_path):
    for name in ("t1", "T1w"):
        (tmp_path / name).mkdir()
        write_image(tmp_path / name / "a.png", np.zeros((1, 6, 8)))
    assert [one.places["t1"].parent.name for one in find_inputs(model, tmp_path, ["t1"])] == ["t1"]
    (tmp_path / "t1").rename(tmp_path / "T1")
    with pytest.raises(MandorlaError, match="T1w: T1 is t1 too; rename one"):
        find_inputs(model, tmp_path, ["t1"])
    write_image(tmp_path / "T1" / "b_t1.png", np.zeros((1, 6, 8)))
    write_image(tmp_path / "T1" / "b_T1w.png", np.zeros((1, 6, 8)))
    (tmp_path / "T1").rename(tmp_path / "in")
    with pytest.raises(MandorlaError, match="b_t1.png: b_T1w.png has the same stem, t1 aside: rename one"):
        find_inputs(model, tmp_path / "in", ["t1"])


def test_translate_an_npz(model, tmp_path):
    np.savez(tmp_path / "in.npz", t1=np.full((2, 1, 6, 8), 0.5), other=np.zeros(3))
    out = translate(model, tmp_path / "in.npz", tmp_path / "out", wanted=("t2", "v"))
    with np.load(out / "samples.npz") as arrays:
        assert {name: arrays[name].shape for name in arrays} == {"t2": (2, 2, 3, 6, 8), "v": (2, 2, 2)}
        np.testing.assert_allclose(arrays["t2"].mean((1, 2, 3, 4)), [0.4, 0.6], atol=1e-6)
    assert (out / "t2" / "0001.png").is_file() and (out / "t2_std" / "0000.json").is_file()
    assert json.loads((out / "samples.json").read_text())["Sources"] == ["in.npz"]
    assert not (out / "v").exists()


def npz(**arrays):
    def write(folder: Path) -> Path:
        np.savez(folder / "in.npz", **arrays)
        return folder / "in.npz"

    return write


def image(name: str, array: np.ndarray):
    def write(folder: Path) -> Path:
        write_image(folder / "in" / name, array)
        return folder / "in"

    return write


def text(name: str, content: str):
    def write(folder: Path) -> Path:
        (folder / name).write_text(content)
        return folder / name

    return write


def broken(folder: Path) -> Path:
    return text("in/0.png", "no image")(folder).parent


def alone(write):
    """Let what `write` writes into the folder of inputs be all that is in it."""

    def only(folder: Path) -> Path:
        path = write(folder)
        for other in path.glob("[abc].png"):
            other.unlink()
        return path

    return only


def empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


grey = np.full((2, 1, 6, 8), 0.5)


def npy(folder: Path) -> Path:
    with (folder / "in.npz").open("wb") as file:
        np.save(file, grey)
    return folder / "in.npz"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda folder: folder / "absent", "absent: no such file or folder"),
        (empty, "empty: no file in this folder that can be read"),
        (text("in.npz", "no archive"), "in.npz: not a whole .npz file"),
        (npz(t3=grey), "in.npz: expected arrays named t1, got t3"),
        (npz(), "in.npz: expected arrays named t1, got none"),
        (npz(t1=np.array([{}])), "in.npz: not a whole .npz file of plain arrays"),
        (npz(t1=grey[0]), r"array 't1': shape \(1, 6, 8\), expected \(N, 1, 6, 8\)"),
        (npz(t1=np.float32(0.5)), r"array 't1': shape \(\), expected"),
        (npz(t1=grey.repeat(3, 1)), "array 't1': channels: 3, but modality 't1' of this model has 1: convert"),
        (npz(t1=grey[..., :6]), "array 't1': size 6 x 6, but modality 't1' of this model has 6 x 8"),
        (npz(t1=grey[:0]), "array 't1': no samples"),
        (
            npz(t1=(grey * 255).astype(np.uint8)),
            r"array 't1': uint8 values, expected floating-point numbers in \[0, 1\]",
        ),
        (npz(t1=grey * np.nan), "array 't1': NaN or infinite values"),
        (npz(t1=grey * 4), r"array 't1': values from 2 to 2, expected \[0, 1\]"),
        (npz(t1=grey - 1), r"array 't1': values from -0.5 to -0.5, expected \[0, 1\]"),
        (alone(image("0.png", np.zeros((3, 6, 8)))), r"in/0.png: channels: 3, but modality 't1' of this model has 1"),
        (
            alone(image("0.png", np.zeros((1, 6, 9)))),
            r"in/0.png: size 6 x 9, but modality 't1' of this model has 6 x 8",
        ),
        (image("a.tif", np.zeros((1, 6, 8))), "in/a.tif: a.png has the same stem"),
        (alone(broken), "in/0.png: cannot be read as an image"),
        (text("in.npz", ""), "in.npz: not a whole .npz file"),
        (npy, "in.npz: not a whole .npz file"),
        (image("a\nb.png", np.zeros((1, 6, 8))), "unprintable characters in the name"),
    ],
)
def test_input_that_does_not_fit_is_refused_and_nothing_is_written(model, t1, tmp_path, source, message):
    path = source(tmp_path)
    before = entries(tmp_path)
    with pytest.raises(MandorlaError, match=message) as error:
        translate(model, path, tmp_path / "new" / "out")
    assert "\n" not in str(error.value)
    assert entries(tmp_path) == before


def test_translate_refuses_names_that_the_model_lacks(model, t1, tmp_path):
    for name in ("t22", "T2"):
        hint = rf"unknown modality '{name}', did you mean 't2'\?; this model has t1, t2, v"
        with pytest.raises(MandorlaError, match=hint):
            translate(model, t1, tmp_path / "out", wanted=(name,))
    with pytest.raises(MandorlaError, match="t1: no such folder; several given"):
        translate(model, t1, tmp_path / "out", given=("t1", "t2"), wanted=("v",))
    with pytest.raises(MandorlaError, match=r"a.png: shape \(1, 1, 6, 8\), expected \(N, 2\)"):
        translate(model, t1, tmp_path / "out", given=("v",))
    np.savez(tmp_path / "in.npz", t1=grey, t2=np.zeros((3, 3, 6, 8)))
    with pytest.raises(MandorlaError, match=r"arrays of different length \(t1 2, t2 3\)"):
        translate(model, tmp_path / "in.npz", tmp_path / "out", given=("t1", "t2"), wanted=("v",))
    with pytest.raises(MandorlaError, match="no array for v"):
        translate(model, tmp_path / "in.npz", tmp_path / "out", given=("v", "t1"))


def test_a_failure_while_writing_leaves_nothing(model, t1, tmp_path, monkeypatch):
    before = entries(tmp_path)
    monkeypatch.setattr(outputs, "write_image", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        translate(model, t1, tmp_path / "out")
    assert entries(tmp_path) == before


def test_a_full_disk_is_named_and_leaves_nothing(model, tmp_path, monkeypatch):
    def full(*args, **arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(MandorlaError, match="out cannot be written .*No space left on device"):
        files.sample(model, tmp_path / "out", num=2, seed=0, steps=None)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs a system that can keep room on a disk")
def test_arrays_take_their_room_before_they_are_filled(tmp_path):
    """A disk that has none for them says so: where it is full at a write to memory, the system kills the process."""
    with outputs.arrays_in(tmp_path / "samples.npz", {"t1": (50, 1, 64, 64), "t2": (50, 3)}):
        states = [path.stat() for path in tmp_path.iterdir()]
        assert len(states) == 2
        assert all(512 * state.st_blocks >= state.st_size for state in states)


def test_what_a_killed_command_left_is_removed(model, tmp_path):
    (tmp_path / ".out.partial" / "t1").mkdir(parents=True)
    (tmp_path / ".out.partial" / "samples.npz").touch()
    out = files.sample(model, tmp_path / "out", num=2, seed=0, steps=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    assert sorted(path.name for path in out.iterdir()) == [
        *("grid.png", "samples.json", "samples.npz", "t1", "t2", "v.csv", "v.json")
    ]


def test_old_samples_stay_until_new_ones_are_there(model, tmp_path, monkeypatch):
    out = files.sample(model, None, num=2, seed=0, steps=None)
    before = (out / "samples.npz").read_bytes()
    rename = Path.rename

    def refuse(path, target):
        if path.name.endswith(".partial"):
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(MandorlaError, match="No space left on device"):
        files.sample(model, None, num=3, seed=1, steps=None)
    assert (out / "samples.npz").read_bytes() == before
    monkeypatch.undo()
    files.sample(model, None, num=3, seed=1, steps=None)
    assert (out / "samples.npz").read_bytes() != before
    assert not list(out.parent.glob(".samples*"))


def test_two_commands_do_not_write_into_one_folder(model, tmp_path):
    (tmp_path / ".out.partial").mkdir()
    with locked(tmp_path / ".out.partial"), pytest.raises(MandorlaError, match="another command is writing here"):
        files.sample(model, tmp_path / "out", num=2, seed=0, steps=None)
    assert not (tmp_path / "out").exists()


def test_a_failure_takes_the_folders_that_were_made_for_it(model, tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()
    monkeypatch.setattr(model, "sample", lambda *_, **__: 1 / 0)
    for out in ("old/new/newer/out", "new/out"):
        with pytest.raises(ZeroDivisionError):
            files.sample(model, tmp_path / out, num=2, seed=0, steps=None)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["old", "run"]
    monkeypatch.undo()
    assert (files.sample(model, tmp_path / "new" / "newer" / "out", num=2, seed=0, steps=None) / "grid.png").is_file()


def test_pictures_get_the_intensity_of_the_training(model, t1, tmp_path):
    """A window of 51 to 153 makes of the grey levels 51, 102, 153 the values 0, 1/2, 1."""
    model.intensity["t1"] = Fitted(Window(low=51.0, high=153.0), Intensity(51.0, 153.0), {})
    out = translate(model, t1, tmp_path / "out", wanted=("v",))
    found = [table(out / "v" / f"{name}.csv").mean() for name in "abc"]
    np.testing.assert_allclose(found, [0, 0.5, 1], atol=1e-6)


@pytest.mark.parametrize("size", [(), (5,)])
def test_vectors_and_signals_are_tables_on_the_scale_of_the_training(model, t1, tmp_path, size):
    levels = [np.reshape(ends, (2, *[1] * len(size))).tolist() for ends in ([140.0, 2.0], [150.0, 2.5])]
    model.modalities = (*model.modalities[:2], Modality("v", 2, size))
    model.intensity["v"] = Fitted(MinMax(per="channel"), Intensity(*levels), {}, dtype="float64")
    out = translate(model, t1, tmp_path / "out", wanted=["v"], write=("mean", "std"))
    options = ReadOptions(dimensions=len(size))
    for name, value in (("v", [144, 2.2]), ("v_std", [10 * 0.02**0.5, 0.5 * 0.02**0.5])):  # of draws 0.3 and 0.5
        found = read(f"{out}/{name}/b.csv", options).values
        assert found.shape == (2, *size)
        np.testing.assert_allclose(found.reshape(2, -1).T, np.tile(value, (int(np.prod(size)), 1)), rtol=1e-5)


@pytest.mark.parametrize("where", ["whole", "named"])
def test_columns_are_those_of_the_training_whatever_their_order(model, tmp_path, where):
    """A run keeps their names; one that began before they were kept reads tables as they stand."""
    rng = np.random.default_rng(0)
    for name in ("t1", "v"):
        (tmp_path / name).mkdir()
        for number in range(9):
            rows = "".join(f"{x:.6f},{y:.6f},{z:.6f}\n" for x, y, z in rng.random((5, 3)))
            (tmp_path / name / f"{number}.csv").write_text(f'speed,"a, b",more\n{rows}')
    places = {name: f"{name}/*.csv:" + ('more,"a, b"' if name == "v" else "speed,more") for name in ("t1", "v")}
    folders = {"t1": "t1", "v": "v"} if where == "whole" else places
    expected = {"t1": ("speed", "a, b", "more"), "v": ("speed", "a, b", "more")}
    expected = expected if where == "whole" else {"t1": ("speed", "more"), "v": ("more", "a, b")}
    config = FoldersConfig(root=str(tmp_path), folders=folders)
    splits = keep_record(model.run, load_data(config, 0))
    model.modalities, model.intensity = splits.modalities, read_intensity(model.run)
    model.recipe = SimpleNamespace(data=config)
    assert {name: fitted.columns for name, fitted in model.intensity.items()} == expected
    (tmp_path / "new.csv").write_text('more,extra,"a, b",speed\n' + "0.3,9,0.2,0.1\n" * 5)
    values = {"speed": 0.1, "a, b": 0.2, "more": 0.3}
    found = read_input(model, {"v": tmp_path / "new.csv"}).values["v"][0, :, 0]
    np.testing.assert_allclose(found, [values[name] for name in expected["v"]])
    (tmp_path / "lacks.csv").write_text("more,speed,x\n" + "0.3,0.1,0\n" * 5)
    with pytest.raises(MandorlaError, match=r"no column\(s\) 'a, b'; it has more, speed, x"):
        read_input(model, {"v": tmp_path / "lacks.csv"})
    out = files.sample(model, None, num=1, seed=0, steps=None)
    written = read_input(model, {"v": out / "v" / "0000.csv"}).values["v"][0]
    np.testing.assert_allclose(written, table(out / "v" / "0000.csv").T)
    header = (out / "v" / "0000.csv").read_text().splitlines()[0]
    assert header == ('speed,"a, b",more' if where == "whole" else 'more,"a, b"')

    tree = json.loads((model.run / "intensity.json").read_text())
    old = {name: {key: value for key, value in each.items() if key != "columns"} for name, each in tree.items()}
    (model.run / "intensity.json").write_text(json.dumps(old))
    assert follow_record(model.run, load_data(config, 0)).fingerprint == splits.fingerprint
    model.intensity = read_intensity(model.run)
    shape = len(expected["v"]), 5
    (tmp_path / "old.csv").write_text(",".join("abc"[: shape[0]]) + "\n" + (",".join("012"[: shape[0]]) + "\n") * 5)
    assert read_input(model, {"v": tmp_path / "old.csv"}).values["v"].shape == (1, *shape)
    out = files.sample(model, None, num=1, seed=0, steps=None)
    assert (out / "v" / "0000.csv").read_text().startswith("channel0,channel1")


NEW = """protein, ward ,sodium,calcium,note
9,"a, b",139,2.4,x
,b,,,y
,b,141,2.3,
"""


def test_a_table_with_a_row_per_sample_becomes_one(tables_run, tmp_path):
    """With the columns that are no modality's, so that rows can be told; and, of pictures and all else, as an .npz."""
    model = mandorla.load(tables_run)
    (tmp_path / "new.csv").write_text(NEW)
    with pytest.warns(MandorlaWarning, match=r"new.csv: 1 of 3 rows have no value of blood: passed over"):
        out = translate(model, tmp_path / "new.csv", tmp_path / "out", ("blood",), ("urine",))
    written = {f"{name}.{kind}" for name in ("urine", "urine_std") for kind in ("csv", "json")}
    assert set(entries(out)) == written | {"samples.json", "samples.npz"}
    with (out / "urine.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [list(row) for row in rows] == [["ward", "note", "ph", "protein", "glucose"]] * 2
    assert [(row["ward"], row["note"]) for row in rows] == [("a, b", "x"), ("b", "")]
    found = np.array([[float(row[name]) for name in ("ph", "protein", "glucose")] for row in rows])
    x = model.to_unit({"blood": np.array([[139, 2.4], [141, 2.3]])})
    drawn = model.translate(x, ["urine"], 2, keys=[(0,), (2,)])["urine"]
    np.testing.assert_allclose(found, model.from_unit({"urine": drawn.mean(0)})["urine"], rtol=1e-5)
    with np.load(out / "samples.npz") as arrays:
        np.testing.assert_allclose(arrays["urine"], drawn, rtol=1e-5)
    note = json.loads((out / "urine.json").read_text())
    assert (note["given"], note["Sources"], note["statistic"]) == (["blood"], ["new.csv"], "mean")


def test_rows_of_a_table_may_have_different_modalities_and_no_names(tables_run, tmp_path):
    """Rows without other columns are told by their numbers."""
    model = mandorla.load(tables_run)
    lines = ["sodium;calcium;ph;protein;glucose", "139;2.4;6;0.4;5", "140;2.5;;;", ";;6;0.5;5", "141;2.3;6;0.6;5"]
    (tmp_path / "new.csv").write_text("\n".join(lines))
    with pytest.warns(
        MandorlaWarning, match=r"2 of 4 .* such as row 1 \(urine\): 2 from .*; 1 from blood; 1 from urine$"
    ):
        out = files.encode(model, tmp_path / "new.csv", tmp_path / "out", residual=True)
    with np.load(out / "latents.npz") as arrays:
        found = dict(arrays)
    assert found.pop("id_sample").tolist() == ["0", "1", "2", "3"]
    codes = [f"{kind}_{name}" for name in ("blood", "urine") for kind in ("shared_from", "private", "residual")]
    assert sorted(found) == sorted(["shared", *codes])
    missing = {name: [row for row in range(4) if np.isnan(z[row]).all()] for name, z in found.items()}
    assert missing == {"shared": []} | {name: [2] if "blood" in name else [1] for name in codes}
    np.testing.assert_allclose(found["shared"][1], found["shared_from_blood"][1], rtol=1e-4, atol=1e-6)
    both = model.to_unit({"blood": np.array([[139, 2.4]]), "urine": np.array([[6, 0.4, 5]])})
    latents = model.encode(both)
    np.testing.assert_allclose(found["shared"][:1], latents.shared, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["private_urine"][:1], latents.private["urine"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        found["residual_blood"][:1], model.to_residual(latents).private["blood"], rtol=1e-3, atol=1e-5
    )
    with (out / "private_blood.csv").open() as file:
        names, *rows = csv.reader(file)
    num = found["private_blood"].shape[1]
    assert names == ["sample", *(f"private_blood_{number}" for number in range(num))]
    assert rows[2] == ["2", *[""] * num]
    np.testing.assert_allclose(np.array(rows[0][1:], float), found["private_blood"][0], rtol=1e-6)
    note = json.loads((out / "dataset_description.json").read_text())
    assert (note["synthetic"], note["Sources"], sorted(note["weights"])) == (False, ["new.csv"], ["diffusion", "vae"])
    with pytest.warns(MandorlaWarning, match="passed over"):
        whole = files.encode(model, tmp_path / "new.csv", tmp_path / "whole", complete=True)
    with np.load(whole / "latents.npz") as arrays:
        assert arrays["id_sample"].tolist() == ["0", "3"] and not np.isnan(arrays["shared_from_urine"]).any()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sodium,ph\n1,2\n", "new.csv: no column 'calcium'; it has sodium, ph"),
        ("sodium,calcium\n1,x\n", "new.csv:2: 'x' in the column 'calcium' is no number"),
        ("sodium,calcium\n1,2\n1,\n", "new.csv:3: no 'calcium', but others of blood; fill it, or leave all of them"),
        ("sodium,calcium,id\n,,a\n", "new.csv: no row has a value of blood"),
        ("sodium,calcium\n", "new.csv: an empty table"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tables_run, tmp_path, content, message):
    model = mandorla.load(tables_run)
    (tmp_path / "new.csv").write_text(content)
    with pytest.raises(MandorlaError, match=message):
        translate(model, tmp_path / "new.csv", tmp_path / "out", ("blood",), ("urine",))
    assert entries(tmp_path) == ["new.csv"]


def test_a_table_of_which_nothing_is_known_is_not_guessed_at(tables_run, tmp_path):
    model = mandorla.load(tables_run)
    (tmp_path / "new.csv").write_text("a,b\n1,2\n")
    with pytest.raises(MandorlaError, match="are not those of the training .blood: sodium, calcium; urine: ph, "):
        files.encode(model, tmp_path / "new.csv", tmp_path / "out")


def test_a_table_with_some_columns_of_a_modality_says_that_it_is_not_read(tables_run, tmp_path):
    model = mandorla.load(tables_run)
    (tmp_path / "new.csv").write_text("sodium,calcium,ph,glucose\n139,2.4,6,5\n")
    with pytest.warns(MandorlaWarning, match=r"new.csv: no column 'protein', but others of urine: nothing is read of"):
        out = files.encode(model, tmp_path / "new.csv", tmp_path / "out")
    with np.load(out / "latents.npz") as arrays:
        assert sorted(arrays) == ["id_sample", "private_blood", "shared", "shared_from_blood"]


def test_codes_of_files_are_those_of_the_model(phantom_run, tmp_path):
    """Slices of volumes, one of which has t1 alone: maps, in an .npz with the names of the slices."""
    model = mandorla.load(phantom_run)
    data = FoldersConfig(folders={"t1": "a", "t2": "b"}, slices={"axis": 0, "keep": 0.0}, read={"dimensions": 3})
    model.recipe = model.recipe.model_copy(update={"data": data})
    x = np.random.default_rng(0).random((2, 2, 3, 18, 22), np.float32)
    for name, patient, values in (("t1", "p0", x[0, 0]), ("t2", "p0", x[1, 0]), ("t1", "p1", x[0, 1])):
        (tmp_path / "in" / name).mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "in" / name / f"{patient}.npy", values)
    with pytest.warns(MandorlaWarning, match=r"in: 1 of 2 samples lack a modality, such as p1 \(t2\)"):
        out = files.encode(model, tmp_path / "in", tmp_path / "out")
    assert entries(out) == ["dataset_description.json", "latents.npz"]
    with np.load(out / "latents.npz") as arrays:
        found = dict(arrays)
    assert found.pop("id_sample").tolist() == [f"p{p}/s00{s}" for p in (0, 1) for s in (0, 1, 2)]
    own = model.encode({"t1": x[0, 0][:, None], "t2": x[1, 0][:, None]})
    other = model.encode({"t1": x[0, 1][:, None]})
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(found["shared"], torch.cat([own.shared, other.shared]), **close)
    np.testing.assert_allclose(found["shared_from_t1"][3:], other.shared, **close)
    np.testing.assert_allclose(found["private_t1"], torch.cat([own.private["t1"], other.private["t1"]]), **close)
    np.testing.assert_allclose(found["private_t2"][:3], own.private["t2"], **close)
    assert np.isnan(found["private_t2"][3:]).all() and np.isnan(found["shared_from_t2"][3:]).all()
    one = files.encode(model, tmp_path / "in" / "t2" / "p0.npy", tmp_path / "one", ["t2"])
    with np.load(one / "latents.npz") as arrays:
        np.testing.assert_allclose(arrays["shared"], found["shared_from_t2"][:3], **close)
    with pytest.raises(MandorlaError, match=r"p0.npy: one file, which may be t1 or t2: say which is given"):
        files.encode(model, tmp_path / "in" / "t2" / "p0.npy", tmp_path / "none")
    (tmp_path / "in" / "t2" / "p1.npy").write_bytes(b"no array")
    with pytest.raises(MandorlaError, match=r"p1.npy: .*\(1 of 2 inputs failed; the others are there\)"):
        files.encode(model, tmp_path / "in", tmp_path / "rest")
    with np.load(tmp_path / "rest" / "latents.npz") as arrays:
        assert len(arrays["shared"]) == 3
    with pytest.raises(MandorlaError, match="exists already"):
        files.encode(model, tmp_path / "in" / "t1", tmp_path / "rest", ["t1"])
    (tmp_path / "bare").mkdir()
    np.save(tmp_path / "bare" / "p0.npy", x[0, 0])
    with pytest.raises(MandorlaError, match="bare: nothing in it is called like t1 or t2; say what is given"):
        files.encode(model, tmp_path / "bare", tmp_path / "none")


@pytest.mark.parametrize("num", [1, 3])
def test_each_draw_is_written_also_where_there_is_one(model, t1, tmp_path, num):
    out = translate(model, t1, tmp_path / "out", num_samples=num, write=("draws",))
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == [f"t2_draw{k}" for k in range(num)]


@pytest.mark.parametrize("size", [(5,), (4, 6, 8)])
def test_arrays_have_the_axes_of_the_model_where_the_training_read_no_files(model, tmp_path, size):
    model.modalities = (Modality("t1", 1, size),)
    values = np.random.default_rng(0).random(size, np.float32)
    np.save(tmp_path / "x.npy", values)
    read_in = read_input(model, {"t1": tmp_path / "x.npy"})
    np.testing.assert_array_equal(read_in.values["t1"], values[None, None])


def test_slices_of_one_subject_share_a_range(model, tmp_path):
    model.recipe = SimpleNamespace(data=FoldersConfig(folders={}, key="(?P<subject>p.)_s."))
    model.intensity["t1"] = Fitted(MinMax(per="subject"), Intensity(0.0, 255.0), {"p1": Intensity(0.0, 1.0)})
    (tmp_path / "in").mkdir()
    for stem, levels in {"p1_s1": (0.0, 0.2), "p1_s2": (0.2, 0.4), "p2_s1": (0.2, 0.4)}.items():
        image = np.full((1, 6, 8), levels[0])
        image[:, :3] = levels[1]
        write_image(tmp_path / "in" / f"{stem}.png", image)
    out = translate(model, tmp_path / "in", tmp_path / "out", wanted=("v",))
    found = [table(out / "v" / f"{name}.csv").mean() for name in ("p1_s1", "p1_s2", "p2_s1")]
    np.testing.assert_allclose(found, [0.25, 0.75, 0.5], atol=1e-6)
    (out / "v" / "p1_s2.json").unlink()
    translate(model, tmp_path / "in", out, wanted=("v",))
    assert table(out / "v" / "p1_s2.csv").mean() == pytest.approx(0.75), "the range is still that of the subject"
