"""Figures of a training reach every tracker that is asked for, stay on this machine, and what lacks is named."""

import json
import os
import shutil
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
from tiny import interrupted, tiny_recipe

import mandorla.track as track
from mandorla.cli import main
from mandorla.diffusion.training import train_diffusion
from mandorla.errors import MandorlaError
from mandorla.vae.training import fit_vae, load_data, train_vae


class Client:
    """Stand in for MLflow's client: keep what it is told, for all clients of an address together."""

    said: list = []

    def __init__(self, tracking_uri):
        self.uri = tracking_uri

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id="7") if ("experiment", name) in self.said else None

    def create_experiment(self, name):
        self.said.append(("experiment", name))
        return "7"

    def create_run(self, experiment, run_name):
        self.said.append(("run", self.uri, experiment, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

    def log_batch(self, run, metrics=(), params=()):
        self.said += [("metric", run, *metric) for metric in metrics] + [("param", run, *param) for param in params]

    def set_terminated(self, run):
        self.said.append(("end", run))


@pytest.fixture
def stand_ins(monkeypatch):
    """Put modules in the place of wandb and mlflow that note what they are told; return the notes of both."""
    for variable in (*track._QUIET, "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(variable, "x")  # so that it is as before in the end, whatever is set meanwhile
        monkeypatch.delenv(variable)
    Client.said, logged = [], []

    def init(**settings):
        logged.append(("init", settings, os.environ["WANDB_MODE"]))
        return SimpleNamespace(
            log=lambda figures, step: logged.append((step, figures)), finish=lambda: logged.append("end")
        )

    modules = {
        "wandb": {"init": init, "Settings": dict},
        "mlflow": {
            "MlflowClient": Client,
            "entities": SimpleNamespace(Metric=lambda *figure: figure, Param=lambda *pair: pair),
        },
    }
    for name, content in modules.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return SimpleNamespace(wandb=logged, mlflow=Client.said)


def test_every_tracker_gets_the_figures_of_the_log(tmp_path, stand_ins):
    recipe = tiny_recipe(tmp_path / "run", "polydigits", "track=[wandb, tensorboard, mlflow]")
    splits = load_data(recipe.data, recipe.seed)
    with interrupted(4):
        fit_vae(recipe, splits)
    fit_vae(recipe, splits)
    lines = [json.loads(line) for line in (tmp_path / "run" / "vae" / "metrics.jsonl").read_text().splitlines()]
    figures = {
        (line["step"], f"{line['part']}/{name}"): value
        for line in lines
        for name, value in line.items()
        if name not in ("step", "part")
    }
    first, again = [entry for entry in stand_ins.wandb if entry[0] == "init"]
    assert first[1]["id"] == again[1]["id"] and first[2] == "offline"
    assert first[1]["name"] == "run/vae" and first[1]["config"]["vae.training.steps"] == 6
    told = [entry for entry in stand_ins.wandb if isinstance(entry[0], int)]
    assert {(step, name): value for step, of in told for name, value in of.items()} == figures
    assert stand_ins.wandb[-1] == "end"
    runs = [entry for entry in stand_ins.mlflow if entry[0] == "run"]
    database = (tmp_path / "run" / "vae" / "mlflow.db").resolve()
    assert runs == [("run", f"sqlite:///{database}", "7", "run/vae")], "a resumed training goes on in its record"
    metrics = [entry for entry in stand_ins.mlflow if entry[0] == "metric"]
    assert {(step, name): value for _, run, name, value, _, step in metrics if run == "r1"} == figures
    assert ("param", "r1", "vae.training.steps", "6") in stand_ins.mlflow and stand_ins.mlflow[-1] == ("end", "r1")
    assert list((tmp_path / "run" / "vae" / "tensorboard").iterdir())
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true" and os.environ["WANDB_ERROR_REPORTING"] == "false"


def test_the_weaker_network_of_stage_2_is_named_as_it_lies(polydigits_run, copy_of, stand_ins):
    run = copy_of(polydigits_run)
    shutil.rmtree(run / "diffusion")
    train_diffusion(tiny_recipe(run, "polydigits", "diffusion.weak_share=0.5", "track=[wandb]"))
    begun = [settings for entry, settings, *_ in (e for e in stand_ins.wandb if e[0] == "init")]
    assert [settings["name"] for settings in begun] == [f"{run.name}/diffusion/weak", f"{run.name}/diffusion"]
    for settings in begun:
        assert settings["group"] == run.name and settings["config"]["diffusion.training.steps"] == 6


def test_only_who_asks_for_it_sends_anything(tmp_path, stand_ins, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    (tmp_path / "vae").mkdir()
    track.open_trackers(["wandb", "mlflow"], tmp_path / "vae", 0)
    assert stand_ins.wandb[0][2] == "online" and stand_ins.mlflow[1][1] == "http://127.0.0.1:1"


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_what_is_not_installed_is_named_before_anything_begins(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["train", "vae", "polydigits", "run=r", f"track=[{name}]"])
    line = f"mandorla: track: {name} is not installed: pip install {name}, or leave it out\n"
    assert (stop.value.code, capsys.readouterr().err, list(tmp_path.iterdir())) == (2, line, [])
    with pytest.raises(MandorlaError, match="is not installed"):
        train_vae(tiny_recipe(tmp_path / "run").model_copy(update={"track": (name,)}))


def test_a_tracker_that_fails_is_one_clear_line(tmp_path, stand_ins, monkeypatch):
    """At its beginning, as without an account, or later, as where its server is gone; then the same goes on."""

    def refuse(*args, **settings):
        raise ValueError("No API key configured")

    recipe = tiny_recipe(tmp_path / "run", "polydigits", "track=[wandb, mlflow]")
    splits = load_data(recipe.data, recipe.seed)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["wandb"], "init", refuse)
        with pytest.raises(MandorlaError, match=r"track: wandb fails \(No API key configured\)"):
            fit_vae(recipe, splits)
    for method in ("write", "close"):
        with monkeypatch.context() as patch:
            patch.setattr(track.MLflow, method, refuse)
            with pytest.raises(MandorlaError, match=r"track: MLflow fails"):
                fit_vae(recipe, splits)
    fit_vae(recipe, splits)
    assert (tmp_path / "run" / "vae" / "weights.safetensors").is_file()


def test_none_at_all(tmp_path):
    recipe = tiny_recipe(tmp_path / "run", "polydigits", "track=[]")
    fit_vae(recipe, load_data(recipe.data, recipe.seed))
    assert not (tmp_path / "run" / "vae" / "tensorboard").exists()
