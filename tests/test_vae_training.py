"""Stage 1 from settings to a run folder: what is written, what is refused, and exact resume."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import interrupted, latents_of, same_training, signals_recipe, tiny_recipe

import mandorla
from mandorla.config import load_settings
from mandorla.data.intensity import UNIT
from mandorla.data.stored import StoredDataset
from mandorla.errors import MandorlaError
from mandorla.recipe import Recipe
from mandorla.vae.training import _Task, fit_vae, train_vae


def test_a_validation_looks_at_samples_in_no_order():
    """The leak is foretold of one half from the other: of sorted data these would be of different classes."""
    label = np.repeat(np.arange(10), 40).astype(np.float32)
    x = {"t1": label[:, None, None, None] / 10 + np.zeros((400, 1, 4, 4), np.float32)}
    ids = np.arange(400).astype(str)
    val = StoredDataset(x, {"t1": np.ones(400, bool)}, {"t1": UNIT}, {"class": label}, list(ids), ids, np.arange(400))
    task = _Task(0, SimpleNamespace(train=val, val=val), None, torch.device("cpu"))
    first, second = np.split(task.check.factors["class"], 2)
    assert sorted(task.check.ids) == sorted(ids)
    assert np.bincount(first.astype(int)).min() > 5 and np.bincount(second.astype(int)).min() > 5


def test_one_training_sample_is_refused(tmp_path):
    with pytest.raises(MandorlaError, match="there is 1 training sample"):
        fit_vae(tiny_recipe(tmp_path / "run"), SimpleNamespace(train=range(1)))
    assert not (tmp_path / "run").exists()


def test_a_run_folder_holds_everything(polydigits_run):
    expected = {"config.yaml", "splits.json", "vae", "latents", "diffusion"}
    assert expected <= {path.name for path in polydigits_run.iterdir()}
    for stage in ("vae", "diffusion"):
        names = {path.name for path in (polydigits_run / stage).iterdir()}
        assert {
            "weights.safetensors",
            "model.json",
            "metrics.jsonl",
            "environment.json",
            "tensorboard",
            "pictures",
        } <= names
        lines = [json.loads(line) for line in (polydigits_run / stage / "metrics.jsonl").read_text().splitlines()]
        assert {line["part"] for line in lines} == {"train", "val"}
        assert lines[-1]["step"] == 6
        (picture,) = (polydigits_run / stage / "pictures").iterdir()
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert not list(polydigits_run.rglob("*.part"))
    recipe = load_settings(Recipe, path=polydigits_run / "config.yaml")
    assert recipe == tiny_recipe(polydigits_run)
    splits = json.loads((polydigits_run / "splits.json").read_text())
    assert {part: len(splits[part]) for part in ("train", "val", "test")} == {"train": 200, "val": 40, "test": 20}


@pytest.mark.parametrize("name", ["polydigits", "phantom"])
def test_resumed_equals_uninterrupted(name, tmp_path, request):
    """Bitwise, with the settings that users run: bfloat16, batch statistics, weights that lie channels-last."""
    whole = request.getfixturevalue(f"{name}_run")
    with interrupted(5):
        train_vae(tiny_recipe(tmp_path, name))
    assert not (tmp_path / "latents").exists()
    train_vae(tiny_recipe(tmp_path, name))
    assert same_training(tmp_path / "vae", whole / "vae")
    parts = (latents_of(run)[0]["val"].shards for run in (tmp_path, whole))
    for one, other in zip(*parts, strict=True):
        assert (one == other).all()


def test_another_seed_is_another_training(polydigits_run, tmp_path):
    train_vae(tiny_recipe(tmp_path, "polydigits", "seed=1", "vae.training.steps=1"))
    first = [(run / "vae" / "metrics.jsonl").read_text().splitlines()[0] for run in (tmp_path, polydigits_run)]
    assert first[0] != first[1]


def test_signals_are_pictured_while_they_train(signals_run):
    for stage in ("vae", "diffusion"):
        assert (signals_run / stage / "weights.safetensors").is_file()
        assert list((signals_run / stage / "pictures").glob("*.png"))


def test_volumes(tmp_path):
    recipe = tiny_recipe(
        tmp_path,
        "phantom",
        "data={kind: phantom, size: [16, 17, 18], num_train: 8, num_val: 4, num_test: 4}",
        "vae.training.steps=1",
    )
    train_vae(recipe)
    assert (tmp_path / "vae" / "pictures" / "step_000001.png").is_file()
    assert latents_of(tmp_path)[0]["val"].batch(np.arange(4)).latents.shared.shape == (4, 3, 4, 5, 5)


def test_a_run_is_not_shared_by_two_settings(polydigits_run, copy_of):
    run = copy_of(polydigits_run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for change, message in {
        "vae.training.steps=7": "vae.training.steps=6, not 7",
        "data.num_train=300": "data.num_train=200, not 300",
        "vae.model.encoder_decoder={kind: perceptron}": "vae.model.encoder_decoder",
        "seed=1": "seed=0, not 1",
    }.items():
        with pytest.raises(MandorlaError, match=f"was begun with {message}.*: choose another run folder, or delete"):
            train_vae(tiny_recipe(run, "polydigits", change))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_changed_data_are_refused(tmp_path):
    recipe = signals_recipe(tmp_path / "run", tmp_path, "vae.training.steps=1")
    train_vae(recipe)
    splits, archive = tmp_path / "run" / "splits.json", tmp_path / "signals.npz"
    arrays = dict(np.load(archive))
    np.savez(archive, **{name: array[:-3] for name, array in arrays.items()})
    with pytest.raises(MandorlaError, match="the data changed since this run began"):
        train_vae(recipe)
    np.savez(archive, **arrays)
    parts = json.loads(splits.read_text())
    parts["test"].append(parts["train"].pop())
    splits.write_text(json.dumps(parts))
    for use in (lambda: train_vae(recipe), mandorla.load(tmp_path / "run").data):
        with pytest.raises(MandorlaError, match="splits.json: its hash does not fit"):
            use()


def test_data_that_are_refused_are_not_written_down(tmp_path):
    recipe = signals_recipe(tmp_path / "run", tmp_path, "vae.training.steps=1")
    train_vae(recipe)
    config = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "other").mkdir()
    other = signals_recipe(tmp_path / "run", tmp_path / "other", "vae.training.steps=1")
    archive = tmp_path / "other" / "signals.npz"
    np.savez(archive, **{name: array[:-3] for name, array in np.load(archive).items()})
    with pytest.raises(MandorlaError, match="the data changed since this run began"):
        train_vae(other)
    assert (tmp_path / "run" / "config.yaml").read_text() == config


@pytest.mark.parametrize("kept", ["weights.safetensors", "last.safetensors"])
def test_images_of_another_size_are_refused_and_the_run_stays_usable(tmp_path, kept):
    recipe = signals_recipe(tmp_path / "run", tmp_path, "vae.training.steps=1")
    train_vae(recipe)
    for name in {"weights.safetensors", "last.safetensors"} - {kept}:
        (tmp_path / "run" / "vae" / name).unlink()
    arrays = dict(np.load(tmp_path / "signals.npz"))
    np.savez(tmp_path / "signals.npz", **arrays | {"a": arrays["a"].repeat(2, 1)})
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    was, now = (rf"pressure \(1, {size}\), flow \(2, 11\)" for size in (19, 38))
    with pytest.raises(MandorlaError, match=f"vae was trained on {was}, and the data hold {now}: restore them"):
        train_vae(recipe)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_another_seed_after_stage_1_is_deleted_as_the_error_advises(tmp_path):
    """It divides these data otherwise, which is as it should be where nothing is trained."""
    train_vae(signals_recipe(tmp_path / "run", tmp_path, "vae.training.steps=1"))
    before = json.loads((tmp_path / "run" / "splits.json").read_text())
    again = signals_recipe(tmp_path / "run", tmp_path, "vae.training.steps=1", "seed=1")
    with pytest.raises(MandorlaError, match="delete .*vae to train it anew"):
        train_vae(again)
    shutil.rmtree(tmp_path / "run" / "vae")
    train_vae(again)
    splits = json.loads((tmp_path / "run" / "splits.json").read_text())
    assert splits["test"] != before["test"]
    assert {part: len(splits[part]) for part in ("train", "val")} == {p: len(before[p]) for p in ("train", "val")}


def test_nothing_is_written_where_settings_do_not_fit_the_data(tmp_path):
    recipe = tiny_recipe(tmp_path / "run", "polydigits", "vae.model.private_of={t1: {channels: 3}}")
    with pytest.raises(MandorlaError, match="'t1' that the data does not have: view0, view1, view2"):
        train_vae(recipe)
    assert not Path(recipe.run).exists()
    recipe = signals_recipe(tmp_path / "run", tmp_path, "data.augment={flip: [0]}")
    with pytest.raises(MandorlaError, match=r"data\.augment"):
        train_vae(recipe)
    assert not Path(recipe.run).exists()


def test_stage_1_anew_after_its_folder_is_deleted(polydigits_run, copy_of):
    run = copy_of(polydigits_run)
    shutil.rmtree(run / "vae")
    train_vae(tiny_recipe(run, "polydigits", "vae.training.steps=2"))
    assert load_settings(Recipe, path=run / "config.yaml").vae.training.steps == 2
    latents_of(run)
