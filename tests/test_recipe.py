"""Recipes: those that ship are valid, a run folder is one, and a folder belongs to what it was begun with."""

import json
from pathlib import Path

import pytest

from mandorla.config import load_settings
from mandorla.errors import MandorlaError
from mandorla.recipe import SHIPPED, Recipe, claim_run, read_recipe, run_config

ALL = ("data", "vae", "seed")


@pytest.mark.parametrize("name", sorted(file.stem for file in SHIPPED.glob("*.yaml")))
def test_shipped_recipes(name):
    recipe = read_recipe(name)
    assert recipe.run == f"runs/{name}"
    assert recipe.seed == 0
    text = (SHIPPED / f"{name}.yaml").read_text()
    assert text.startswith("# "), "a header says what for"
    assert f"mandorla train vae {name}" in text
    assert read_recipe(name, ["seed=3"]).seed == 3


def test_a_file_comes_before_a_name_and_a_folder_is_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("phantom").write_text("{run: mine, seed: 7}")
    assert read_recipe("phantom").seed == 7
    run = claim_run(read_recipe("polydigits", [f"run={json.dumps(str(tmp_path / 'a run'))}"]), ALL)
    again = read_recipe(str(run))
    assert again == load_settings(Recipe, path=run / "config.yaml")
    run.rename("moved")
    assert read_recipe("moved").run == "moved", "a run folder may move"
    assert read_recipe("moved", ["run=other"]).run == "other"


def test_unknown_recipe(tmp_path):
    with pytest.raises(MandorlaError, match="no recipe 'polydigit': give a YAML file, .* or one of .*phantom"):
        read_recipe("polydigit")
    with pytest.raises(MandorlaError, match="is not a run folder"):
        read_recipe(str(tmp_path))
    with pytest.raises(MandorlaError, match="is not a run folder"):
        run_config(tmp_path)


def claimed(run: Path, *changes: str, blocks=ALL) -> Path:
    return claim_run(read_recipe("polydigits", [f"run={json.dumps(str(run))}", *changes]), blocks)


def test_claim_writes_the_resolved_recipe(tmp_path):
    run = claimed(tmp_path / "deep" / "run", "vae.model.shared.channels=9")
    assert load_settings(Recipe, path=run / "config.yaml").vae.model.shared.channels == 9
    environment = json.loads((run / "environment.json").read_text())
    assert environment["seed"] == 0
    assert "torch" in environment["packages"]
    assert not list(run.glob("*.part"))


def test_settings_may_change_until_something_is_trained_with_them(tmp_path):
    claimed(tmp_path)
    claimed(tmp_path, "vae.training.steps=5")
    assert read_recipe(str(tmp_path)).vae.training.steps == 5
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "model.json").write_text("{}")
    claimed(tmp_path, "vae.training.steps=5", "device=cpu", "evaluate.judge_steps=3")
    assert read_recipe(str(tmp_path)).device == "cpu"
    with pytest.raises(MandorlaError, match="begun with vae.training.steps=5, not 6.* delete .*vae to train it anew"):
        claimed(tmp_path, "vae.training.steps=6")


@pytest.mark.parametrize(
    ("begun", "now", "message"),
    [
        ("data.size=30", "data={kind: phantom}", "data"),
        ("seed=1", "seed=2", "seed=1, not 2"),
        (
            "vae.model.encoder_decoder={kind: 'a:B', options: {x: 1}}",
            "vae.model.encoder_decoder={kind: 'a:B', options: {x: 2}}",
            r"vae.model.encoder_decoder.options=\{x: 1\}, not \{x: 2\}",
        ),
        ("vae.model.private_of={view0: {channels: 3}}", "vae.model.private_of={}", "vae.model.private_of"),
    ],
)
def test_the_difference_is_named(tmp_path, begun, now, message):
    claimed(tmp_path, begun)
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "model.json").write_text("{}")
    with pytest.raises(MandorlaError, match=f"was begun with {message}"):
        claimed(tmp_path, now)


@pytest.mark.parametrize("change", ["run=''", 'run="a\\0b"', "seed=9223372036854775808"])
def test_impossible_values_are_refused(change):
    with pytest.raises(MandorlaError, match="^[^\n]*on the command line: `(run|seed)`"):
        read_recipe("phantom", [change])


def test_a_stage_changes_its_own_block_only(tmp_path):
    claimed(tmp_path, "vae.training.steps=5")
    claimed(tmp_path, "vae.training.steps=6", "diffusion.mode=private", blocks=("diffusion",))
    recipe = read_recipe(str(tmp_path))
    assert (recipe.vae.training.steps, recipe.diffusion.mode) == (5, "private")
