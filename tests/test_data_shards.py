"""Packed data are the data: same samples, same division, same training, readable by the library of the format."""

import json
import os
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import POLYDIGITS, interrupted, same_training, scans_recipe, signals_recipe, tiny_recipe, write_scans

from mandorla.cli import main
from mandorla.data import load_data, pack_data, source_of
from mandorla.data.arrays import ArraysConfig
from mandorla.data.dataset import Splits
from mandorla.data.folders import FoldersConfig
from mandorla.data.record import check_splits, write_splits
from mandorla.data.shards import ARRAYS, INDEX, SUMS, ShardsConfig, pack
from mandorla.errors import MandorlaError
from mandorla.inputs import reading
from mandorla.recipe import Recipe
from mandorla.vae.training import train_vae

webdataset = pytest.importorskip("webdataset")


@pytest.fixture
def scans(tmp_path) -> Recipe:
    (tmp_path / "scans").mkdir()
    write_scans(tmp_path / "scans")
    return scans_recipe(tmp_path / "run", tmp_path / "scans")


def pack_and_load(recipe: Recipe, out: Path) -> tuple[Splits, Splits]:
    """Return the data of a recipe and what they are after packing them in small shards."""
    splits = load_data(recipe.data, recipe.seed)
    pack(splits, out, {}, 1)
    return splits, load_data(ShardsConfig(root=str(out.parent), folder=out.name), seed=99)


def assert_same(one: Splits, other: Splits) -> None:
    assert one.fingerprint == other.fingerprint and one.modalities == other.modalities
    assert one.classes == other.classes and one.intensity == other.intensity
    for part, dataset in one.parts.items():
        packed = other.parts[part]
        assert len(packed) == len(dataset) and list(packed.ids) == list(dataset.ids)
        for indices in (np.arange(len(dataset)), np.random.default_rng(0).permutation(len(dataset))[:7], [0, 0]):
            a, b = dataset.batch(indices), packed.batch(indices)
            assert a.ids == b.ids and list(a.x) == list(b.x) and list(a.factors) == list(b.factors)
            for name in a.x:
                assert torch.equal(a.x[name], b.x[name]) and torch.equal(a.present[name], b.present[name])
            for key, values in a.factors.items():
                values = np.asarray(values)
                assert values.dtype == b.factors[key].dtype or values.dtype.kind == "U"
                np.testing.assert_array_equal(values, b.factors[key])


def test_stored_data_come_back_bit_by_bit(scans, tmp_path):
    assert_same(*pack_and_load(scans, tmp_path / "packed"))


def test_missing_modalities_stay_missing(tmp_path):
    one, other = pack_and_load(signals_recipe(tmp_path / "run", tmp_path), tmp_path / "packed")
    assert not one.train.batch(np.arange(len(one.train))).present["flow"].all()
    assert_same(one, other)
    num_members = 0
    for path in (tmp_path / "packed").glob("*.tar"):
        with tarfile.open(path) as tar:
            num_members += sum(name.endswith(".flow.npy") for name in tar.getnames())
    assert num_members == one.train.present["flow"].sum()


@pytest.mark.parametrize("name", ["polydigits", "phantom"])
def test_composed_data_come_back_bit_by_bit(name, tmp_path):
    one, other = pack_and_load(tiny_recipe(tmp_path / "run", name), tmp_path / "packed")
    assert_same(one, other)
    assert (len(list((tmp_path / "packed").glob("train-*.tar"))) > 1) == (name == "polydigits")  # of several shards


def test_what_was_packed_again_is_the_same(scans, tmp_path):
    """Also the files: a copy can be told from a change."""
    pack_and_load(scans, tmp_path / "one")
    shards = ShardsConfig(root=str(tmp_path), folder="one")
    pack(load_data(shards, 3), tmp_path / "two", {}, 1)
    pack(load_data(scans.data, scans.seed), tmp_path / "three", {}, 1)
    assert (tmp_path / "one" / SUMS).read_text() == (tmp_path / "three" / SUMS).read_text()
    assert_same(load_data(shards, 0), load_data(ShardsConfig(root=str(tmp_path), folder="two"), 0))


def test_webdataset_reads_them(scans, tmp_path):
    splits, _ = pack_and_load(scans, tmp_path / "packed")
    urls = [str(path) for path in sorted((tmp_path / "packed").glob("train-*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert len(samples) == len(splits.train)
    for index, (sample, row) in enumerate(zip(samples, splits.train.rows, strict=True)):
        np.testing.assert_array_equal(sample["t1.npy"], splits.train.x["t1"][row])
        np.testing.assert_array_equal(sample["label_lesion_mask.npy"], splits.train.labels["lesion_mask"][row])
        assert sample["json"]["id"] == splits.train.ids[index] and sample["json"]["group"] == splits.train.groups[index]
        assert sample["json"]["labels"]["kind"] in ("small", "middle", "large")


def test_what_is_not_known_is_null_for_other_programs(tmp_path):
    ages = np.where(np.arange(20) % 2, 40.0, np.nan)
    np.savez(tmp_path / "all.npz", a=np.random.default_rng(0).random((20, 1, 8, 8)), age=ages)
    images = {"a": "all.npz:a", "b": "all.npz:a"}
    config = ArraysConfig(root=str(tmp_path), images=images, labels={"age": "all.npz:age"})
    pack(load_data(config, 0), tmp_path / "packed", {}, 1)
    (path,) = (tmp_path / "packed").glob("train-*.tar")
    with tarfile.open(path) as tar:
        texts = [tar.extractfile(name).read() for name in tar.getnames() if name.endswith(".json")]
    known = [json.loads(text, parse_constant=pytest.fail)["labels"]["age"] for text in texts]
    assert set(known) == {None, "40"}  # few values: classes


def on_shards(recipe: Recipe, run: Path, packed: Path) -> Recipe:
    data = ShardsConfig(root=str(packed.parent), folder=packed.name, augment=getattr(recipe.data, "augment", {}))
    return recipe.model_copy(update={"run": str(run), "data": data})


@pytest.mark.parametrize("source", ["scans", "polydigits"])
def test_training_on_shards_is_training_on_their_source(source, scans, tmp_path):
    recipe = scans if source == "scans" else tiny_recipe(tmp_path / "run")
    pack_data(recipe.data, recipe.seed, tmp_path / "packed", 1)
    packed = on_shards(recipe, tmp_path / "packed_run", tmp_path / "packed")
    train_vae(recipe)
    with interrupted(4):
        train_vae(packed)
    train_vae(packed)
    assert same_training(tmp_path / "run" / "vae", tmp_path / "packed_run" / "vae")
    one, other = (np.load(tmp_path / run / "latents" / "train-00000.npy") for run in ("run", "packed_run"))
    np.testing.assert_array_equal(one["shared"], other["shared"])
    for name in one.dtype.names:  # images of other strides are summed in another order
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-6)


def test_the_settings_of_the_source_are_kept(tmp_path):
    """A model that was trained on shards reads files as their source did: of that size, with that key."""
    for name in ("t1", "t2"):
        (tmp_path / name).mkdir()
        for k in range(12):
            pixels = np.random.default_rng(list(f"{name}{k}".encode())).integers(0, 255, (32, 32), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"p{k}.png")
    data = FoldersConfig(root=str(tmp_path), folders={"t1": "t1", "t2": "t2"}, size=(16, 16), augment={"flip": (1,)})
    pack_data(data, 0, tmp_path / "one", 64)
    shards = ShardsConfig(root=str(tmp_path), folder="one")
    pack_data(shards, 0, tmp_path / "two", 64)
    kept = data.model_copy(update={"root": None})
    assert source_of(data) == data and source_of(shards) == kept
    assert source_of(ShardsConfig(root=str(tmp_path), folder="two")) == kept
    assert reading(SimpleNamespace(recipe=SimpleNamespace(data=shards))) == kept


# --------------------------------------------------------------------------------------------------------------- faults


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def edit_index(folder, key, value):
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(index | {key: value}))


FAULTS = {
    "no index": (lambda f: (f / INDEX).unlink(), "index.json: no such file; give the folder"),
    "index cut short": (lambda f: (f / INDEX).write_text((f / INDEX).read_text()[:99]), "index.json cannot be read"),
    "index of another thing": (lambda f: (f / INDEX).write_text("{}"), "index.json does not hold"),
    "index of another version": (lambda f: edit_index(f, "version", 2), "of version 2"),
    "intensity changed": (lambda f: edit_index(f, "contents", "x"), "index.json: was changed"),
    "no arrays": (lambda f: (f / ARRAYS).unlink(), "index.npz: missing or damaged"),
    "arrays changed": (lambda f: flip(f / ARRAYS, 200), "index.npz: missing or damaged"),
    "no shard": (lambda f: (f / "val-000000.tar").unlink(), "val-000000.tar: missing"),
    "shard cut short": (lambda f: os.truncate(f / "val-000000.tar", 4096), "val-000000.tar: missing, or not of its"),
}


@pytest.mark.parametrize("change, text", FAULTS.values(), ids=FAULTS)
def test_damage_is_seen_at_once(change, text, scans, tmp_path):
    pack_and_load(scans, tmp_path / "packed")
    change(tmp_path / "packed")
    with pytest.raises(MandorlaError, match=text):
        load_data(ShardsConfig(root=str(tmp_path), folder="packed"), 0)


def test_a_shard_of_other_content_is_seen_when_read(scans, tmp_path):
    _, packed = pack_and_load(scans, tmp_path / "packed")
    path = tmp_path / "packed" / "train-000000.tar"
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(MandorlaError, match=r"train-000000.tar: damaged at byte"):
        packed.train.batch([0])


def test_a_leak_is_refused_as_of_any_source(scans, tmp_path):
    """The division is that of the source; a run compares it with what it began with."""
    splits, packed = pack_and_load(scans, tmp_path / "packed")
    write_splits(tmp_path, splits)
    assert check_splits(tmp_path, packed)
    packed.test.groups[0] = packed.train.groups[0]
    with pytest.raises(MandorlaError, match="lies in both train and test"):
        check_splits(tmp_path, packed)


def test_nothing_half_packed_stays(scans, tmp_path, monkeypatch):
    splits = load_data(scans.data, 0)
    out = tmp_path / "packed"
    monkeypatch.setattr("mandorla.data.shards._sum", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pack(splits, out, {}, 1)
    assert not out.exists() and not (tmp_path / ".packed.partial").exists()
    monkeypatch.undo()
    (tmp_path / ".packed.partial").mkdir()  # of a command that was killed
    (tmp_path / ".packed.partial" / "train-000000.tar").touch()
    (tmp_path / "packed.part").mkdir()  # of somebody
    (tmp_path / "packed.part" / "mine.txt").touch()
    pack(splits, out, {}, 1)
    assert load_data(ShardsConfig(root=str(tmp_path), folder="packed"), 0).fingerprint == splits.fingerprint
    assert (tmp_path / "packed.part" / "mine.txt").is_file()
    with pytest.raises(MandorlaError, match="packed exists already"):
        pack(splits, out, {}, 1)


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["data", "pack", "polydigits", "out", *POLYDIGITS[:3]])
    assert not stop.value.code
    said = capsys.readouterr().out
    assert "written: out" in said and 'data={kind: shards, folder: "out", root: .}' in said
    assert len(load_data(ShardsConfig(root=".", folder="out"), 0).train) == 200
    with pytest.raises(SystemExit) as stop:
        main(["data", "pack", "polydigits", "out"])
    assert stop.value.code == 2 and "out exists already" in capsys.readouterr().err


def test_the_library_is_asked_for(scans, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(MandorlaError, match=r"pip install -c constraints.txt 'mandorla\[stream\]'"):
        pack(load_data(scans.data, 0), tmp_path / "packed", {}, 1)
