"""Datasets of the user's own: read as they are, divided by group, and refused in one line where something is wrong."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mandorla.check import find_out
from mandorla.data import load_data, pack_data, read_config
from mandorla.data.dataset import Modality
from mandorla.data.python import DATASETS, PythonConfig, gather_samples
from mandorla.errors import MandorlaError
from mandorla.recipe import read_recipe


def sample(i: int) -> dict:
    """Return one of three slices of each patient: uint8 images, a signal that every second patient lacks, a mask."""
    rng = np.random.default_rng(i)
    mask = np.zeros((6, 5), bool)
    mask[2, i % 5] = i % 2
    return {
        "images": {
            "t1": rng.integers(0, 256, (1, 6, 5), np.uint8),
            "pulse": None if i // 3 % 2 else torch.from_numpy(rng.random((2, 7), np.float32)),
        },
        "group": f"p{i // 3:02d}",
        "labels": {"age": 40.5 + i // 3, "sex": "fm"[i // 3 % 2], "sick": bool(i % 2), "lesion_mask": mask},
    }


class Slices(torch.utils.data.Dataset):
    """Samples, as torch's datasets give them."""

    def __init__(self, root, num: int = 60):
        self.root, self.num = root, num

    def __len__(self):
        return self.num

    def __getitem__(self, i):
        return sample(i)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(DATASETS.named, "slices", Slices)


def listed(monkeypatch, samples, **more) -> PythonConfig:
    """Return the settings of a dataset that is a list, which a function gives."""

    def give(root):
        return samples

    monkeypatch.setitem(DATASETS.named, "listed", give)
    return PythonConfig(dataset="listed", **more)


def test_samples_are_what_the_dataset_gives():
    splits = load_data(PythonConfig(dataset="slices", options={"num": 30}), 0)
    assert [(m.name, m.shape) for m in splits.modalities] == [("t1", (1, 6, 5)), ("pulse", (2, 7))]
    parts = {name: {g.item() for g in part.batch(range(len(part))).whose} for name, part in splits.parts.items()}
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 10, "a patient is in one part"
    for part in splits.parts.values():
        batch = part.batch(range(len(part)))
        for row, name in enumerate(batch.ids):
            group, _, number = name.partition("-")
            true = sample(int(number))
            assert group == true["group"] == batch.whose[row]
            np.testing.assert_allclose(batch.x["t1"][row], true["images"]["t1"] / np.float32(255), rtol=1e-6)
            there = true["images"]["pulse"] is not None
            assert batch.present["pulse"][row] == there
            assert torch.equal(batch.x["pulse"][row], true["images"]["pulse"] if there else torch.zeros(2, 7))
            known = {key: batch.factors[key][row] for key in ("age", "sex", "sick", "lesion_present")}
            assert known == {
                "age": true["labels"]["age"],
                "sex": "fm".index(true["labels"]["sex"]),
                "sick": int(number) % 2,
                "lesion_present": int(number) % 2,
            }
            assert (batch.factors["lesion_mask"][row] == true["labels"]["lesion_mask"]).all()
    assert splits.classes["sex"] == ("f", "m")


def test_what_all_sources_have(monkeypatch, tmp_path):
    """Size, intensity, exclusion, given parts, a fingerprint; and another place of the data is no other data."""
    config = PythonConfig(dataset="slices", root=str(tmp_path), intensity={"kind": "minmax"}, exclude=["p03"])
    splits = load_data(config, 0)
    assert "p03" not in {group for part in splits.parts.values() for group in part.batch(range(len(part))).whose}
    assert splits.intensity["t1"].settings.kind == "minmax"
    again = load_data(config.model_copy(update={"root": None}), 0)
    assert (splits.fingerprint, splits.contents) == (again.fingerprint, again.contents)
    assert load_data(PythonConfig(dataset="slices", options={"num": 57}), 0).fingerprint != splits.fingerprint

    images = [{"images": {name: sample(3 * i)["images"]["t1"] + j for j, name in enumerate("ab")}} for i in range(12)]
    given = [image | {"split": ("train", "val", "test")[i % 3], "id": i} for i, image in enumerate(images)]
    divided = load_data(listed(monkeypatch, given, size=(3, 5)), 0)
    assert divided.train.ids == ["0", "3", "6", "9"]
    assert divided.modalities[0].shape == (1, 3, 5)
    with pytest.raises(MandorlaError, match="data.dataset: sample '1' has the split None; give train, val or test"):
        load_data(listed(monkeypatch, [given[0], images[1], *given[2:]]), 0)
    with pytest.raises(MandorlaError, match=r"data.dataset: 2 image\(s\) lie in two parts, such as a of samples"):
        load_data(listed(monkeypatch, [*given, given[0] | {"id": "copy", "split": "test"}]), 0)


def test_the_folder_comes_first(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(Slices, "__init__", lambda self, root: seen.append(root) or setattr(self, "num", 2))
    gather_samples(PythonConfig(dataset="slices", root=str(tmp_path)))
    monkeypatch.setenv("MANDORLA_DATA", str(tmp_path / "elsewhere"))
    gather_samples(PythonConfig(dataset="slices"))
    assert seen == [tmp_path, tmp_path / "elsewhere"]


def test_they_can_be_checked_and_packed(monkeypatch, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("data: {kind: python, dataset: slices, numbers: [age]}")
    findings = find_out(str(recipe))
    assert not findings.num_mend, findings.problems
    assert {m.name: m.shape for m in findings.facts.modalities} == {"t1": (1, 6, 5), "pulse": (2, 7)}
    config = PythonConfig(dataset="slices")
    pack_data(config, 0, tmp_path / "packed", 1)
    DATASETS.named.pop("slices")
    packed = load_data(read_config({"kind": "shards", "root": str(tmp_path), "folder": "packed"}), 0)
    monkeypatch.setitem(DATASETS.named, "slices", Slices)
    assert packed.fingerprint == load_data(config, 0).fingerprint


def test_the_example_in_the_readme(monkeypatch, tmp_path):
    text = (Path(__file__).parents[1] / "data" / "README.md").read_text(encoding="utf-8")
    (python,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "class Study" in block]
    (recipe,) = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.S) if "kind: python" in block]
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "study.py").write_text(python)
    (tmp_path / "project" / "mine.yaml").write_text("imports: [study.py]\n" + recipe)
    (tmp_path / "data" / "study").mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (2, 30, 1, 6, 5), np.uint8)
    patient = np.arange(30) // 3
    np.savez(tmp_path / "data" / "study" / "2024.npz", t1=images[0], t2=images[1], patient=patient, age=40.5 + patient)
    monkeypatch.chdir(tmp_path)
    splits = load_data(read_recipe("project/mine.yaml").data, 0)
    assert splits.train.modalities == (Modality("t1", 1, (6, 5)), Modality("t2", 1, (6, 5)))
    batch = splits.train.batch([0])
    assert batch.factors["age"][0] == 40.5 + int(batch.whose[0])


def change(**more):
    """Return a change of sample 4 of a list."""
    return lambda samples: samples[4].update(more)


def image(name: str, value) -> object:
    """Return a change of one image of sample 4."""
    return lambda samples: samples[4]["images"].update({name: value})


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (
            image("t1", np.zeros((1, 6, 4), np.uint8)),
            r"sample 4 has 't1' as uint8 \[1, 6, 4\], those before it as uint8",
        ),
        (image("t1", np.zeros((1, 6, 5), np.float32)), r"sample 4 has 't1' as float32 .*: make them alike"),
        (image("t1", "t1.png"), r"sample 4: 't1': expected numbers \(C, \*size\), got <U6 of shape \[\]"),
        (image("t1", np.zeros((0, 6, 5))), r"sample 4: 't1': expected numbers"),
        (image("t1", torch.zeros(2, requires_grad=True)), "sample 4: 't1' is no array .*requires grad.*: convert it"),
        (image("t3", None), "no sample has 't3': leave it out"),
        (image("pulse", np.full((2, 7), np.nan, np.float32)), "data.dataset, modality pulse: NaN .* in sample 'p01-4'"),
        (lambda samples: samples[4]["images"].clear(), "sample 4 has no modality: leave it out"),
        (lambda samples: [s["images"].pop("pulse") for s in samples], "two modalities or more, its samples have: t1"),
        (lambda samples: samples.clear(), "two modalities or more, its samples have: none"),
        (lambda samples: samples.__setitem__(4, (1, 2)), 'sample 4: expected {"images": .*, got a tuple'),
        (lambda samples: samples[4].pop("images"), "sample 4: expected .*, got keys group, labels"),
        (change(goup="p1"), "sample 4: unknown key 'goup', did you mean 'group'. a sample has images, id, group"),
        (change(group=None), "sample 4 has no group, others do: give it one"),
        (change(id="p00-0"), r"1 id\(s\) of several samples, such as 'p00-0'"),
        (change(labels={"age": {}}), "sample 4: label 'age': a dict is no label: give a name, a number or an array"),
        (
            lambda samples: samples[4]["labels"].update(age="old"),
            "data.labels.age: both names, such as 'old', and numbers",
        ),
        (change(labels={}), "label 'lesion_mask' is an array, but not of one shape and type in all samples"),
    ],
)
def test_samples_with_a_mistake_are_named(monkeypatch, mistake, message):
    samples = [sample(i) for i in range(30)]
    samples = [s | {"images": dict(s["images"]), "labels": dict(s["labels"])} for s in samples]
    load_data(listed(monkeypatch, samples), 0)
    mistake(samples)
    with pytest.raises(MandorlaError, match=message) as caught:
        load_data(listed(monkeypatch, samples), 0)
    assert "\n" not in str(caught.value)


def test_a_dataset_with_a_mistake_is_named(monkeypatch):
    def load(name: str, **options):
        gather_samples(PythonConfig(dataset=name, options=options))

    for name, thing, message in (
        (
            "files",
            lambda root: (root / "none").read_text(),
            "'files' cannot be built: FileNotFoundError: .*; mend .*data.options",
        ),
        ("numbers", lambda root: (n for n in range(3)), "'numbers' gives a generator, not a dataset with __len__"),
        ("random", lambda root: Drawn(), "sample 0 is another each time: what is random belongs to data.augment"),
        ("broken", lambda root: Broken(), r"sample 0 cannot be had \(ZeroDivisionError: .*\): mend the dataset"),
    ):
        monkeypatch.setitem(DATASETS.named, name, thing)
        with pytest.raises(MandorlaError, match=message):
            load(name)
    with pytest.raises(MandorlaError, match="'slices' cannot be built: .*'size'; mend its constructor or data.options"):
        load("slices", size=3)
    with pytest.raises(MandorlaError, match="data.dataset 'slises' is not known: use one of .*slices.*, or package"):
        load("slises")
    with pytest.raises(MandorlaError, match="'torch.nn:Linear' is not a class with __len__ and __getitem__, nor a"):
        load("torch.nn:Linear")


class Drawn(Slices):
    """Random images."""

    def __init__(self):
        super().__init__(None)

    def __getitem__(self, i):
        return {"images": {name: np.random.rand(1, 4, 4) for name in "ab"}}


class Broken(Drawn):
    """Samples that cannot be had."""

    def __getitem__(self, i):
        return 1 / 0
