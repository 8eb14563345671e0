"""Recipes: those that ship are valid, a run folder is one, and a folder belongs to what it was begun with."""

import json
import re
import shlex
from itertools import takewhile
from pathlib import Path

import pytest

from mandorla.config import load_settings
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.recipe import SHIPPED, Recipe, claim_run, read_evaluation, read_recipe, read_run, run_config


@pytest.mark.parametrize("name", sorted(file.stem for file in SHIPPED.glob("*.yaml")))
def test_shipped_recipes(name):
    recipe = read_recipe(name)
    assert recipe.run == f"runs/{name}"
    assert recipe.seed == 0
    assert read_recipe(name, ["seed=3"]).seed == 3


@pytest.mark.parametrize("name", sorted(file.stem for file in SHIPPED.glob("*.yaml")))
def test_headers_of_recipes(name):
    """What for; which data, on what, how long, what comes out; and the commands, which read this recipe."""
    lines = takewhile(lambda line: line.startswith("# "), (SHIPPED / f"{name}.yaml").read_text().splitlines())
    purpose, *parts = re.split(r"(Data|Hardware|Minutes|Expect|Command): ", " ".join(line[2:] for line in lines))
    header = dict(zip(parts[::2], parts[1::2], strict=True))
    assert len(purpose.split()) > 5 and purpose.rstrip().endswith(".")
    assert list(header) == ["Data", "Hardware", "Minutes", "Expect", "Command"]
    assert "CPU" in header["Hardware"] or "GPU" in header["Hardware"]
    for key in ("Minutes", "Expect"):
        assert re.search(r"\d|not measured", header[key]), f"{key}: a number"
    commands = [shlex.split(command) for command in header["Command"].split(" && ")]
    assert [command[1:4] for command in commands[:2]] == [["train", "vae", name], ["train", "diffusion", name]]
    assert commands[2][1:] == ["evaluate", f"runs/{name}"]


def test_a_file_comes_before_a_name_and_a_folder_is_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("phantom").write_text("{run: mine, seed: 7}")
    assert read_recipe("phantom").seed == 7
    run = claim(read_recipe("polydigits", [f"run={json.dumps(str(tmp_path / 'a run'))}"]), "vae")
    again = read_recipe(str(run))
    assert again == load_settings(Recipe, path=run / "config.yaml")
    run.rename("moved")
    assert read_recipe("moved").run == "moved", "a run folder may move"
    assert read_recipe("moved", ["run=other"]).run == "other"


def test_a_run_without_a_name_is_called_like_its_recipe_or_its_data(tmp_path, monkeypatch):
    """Never like a recipe that ships: data of one's own would be looked for, and lie, in a run of other data."""
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    own = "data: {kind: folders, folders: {t1: a, t2: b}}"
    Path("mine/heads.yaml").write_text(own)
    Path("mine/more.yaml").write_text("{base: heads.yaml, seed: 3}")
    Path("mine/named.yaml").write_text(f"run: runs/x\n{own}")
    assert read_recipe("mine/heads.yaml").run == "runs/heads"
    assert read_recipe("mine/more.yaml").run == "runs/more"
    assert read_recipe("mine/named.yaml").run == "mine/runs/x"
    assert read_recipe("mine/named.yaml", ["run=y"]).run == "y"
    for given in (["data.kind=folders", "data.folders={a: b, c: d}"], ["data={kind: folders, folders: {a: b, c: d}}"]):
        assert read_recipe("polydigits", given).run == "runs/folders"
        assert read_recipe("mine/named.yaml", given).run == "mine/runs/x"
    assert read_recipe("polydigits", ["data.num_train=9"]).run == "runs/polydigits"


def test_a_folder_called_like_a_recipe_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("phantom").mkdir()
    assert read_recipe("phantom").data.kind == "phantom"


def test_unknown_recipe(tmp_path):
    with pytest.raises(MandorlaError, match="no recipe 'polydigit': give a YAML file, .* or one of .*phantom"):
        read_recipe("polydigit")
    with pytest.raises(MandorlaError, match="is not a run folder"):
        read_recipe(str(tmp_path))
    with pytest.raises(MandorlaError, match="is not a run folder"):
        run_config(tmp_path)


def test_a_file_that_is_not_there_is_no_name_of_a_recipe(tmp_path):
    (tmp_path / "rows.yaml").touch()
    with pytest.raises(MandorlaError, match="rows2.yaml: no such file, did you mean 'rows.yaml'[?]$"):
        read_recipe(str(tmp_path / "rows2.yaml"))
    with pytest.raises(MandorlaError, match="none/my.yml: no such file$"):
        read_recipe("none/my.yml")


def trained(run: Path) -> None:
    """Make it look as if stage 1 had been trained."""
    (run / "vae").mkdir()
    (run / "vae" / "weights.safetensors").touch()


def claim(recipe: Recipe, stage: str) -> Path:
    with claim_run(recipe, stage) as run:
        return run


def claimed(run: Path, *changes: str, stage="vae") -> Path:
    return claim(read_recipe("polydigits", [f"run={json.dumps(str(run))}", *changes]), stage)


def test_claim_writes_the_resolved_recipe(tmp_path):
    run = claimed(tmp_path / "deep" / "run", "vae.model.shared.channels=9")
    assert load_settings(Recipe, path=run / "config.yaml").vae.model.shared.channels == 9
    assert not list(run.glob("*.part"))


def test_how_often_and_how_samples_are_drawn_may_change_at_any_time(tmp_path):
    changes = ("diffusion.sampling={sampler: euler, steps: 3}", "diffusion.training.picture_every=7")
    claimed(tmp_path)
    trained(tmp_path)
    (tmp_path / "diffusion").mkdir()
    (tmp_path / "diffusion" / "weights.safetensors").touch()
    claimed(tmp_path, *changes, stage="diffusion")
    assert read_recipe(str(tmp_path)).diffusion.sampling.sampler == "euler"
    claimed(tmp_path, "vae.training.checkpoint_every=9", "vae.training.cuda_graph=false", "vae.training.compile=true")
    claimed(tmp_path, "vae.copies=3")
    with pytest.warns(MandorlaWarning, match="begun with vae.copies=3, .*: stage 2 follows what was trained"):
        claimed(tmp_path, *changes, "vae.copies=2", stage="diffusion")
    with pytest.raises(MandorlaError, match="begun with diffusion.training.steps"):
        claimed(tmp_path, "diffusion.training.steps=2", stage="diffusion")


def test_what_ended_before_anything_was_kept_may_be_begun_otherwise(tmp_path):
    claimed(tmp_path, "vae.training.learning_rate=1e30")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "model.json").write_text("{}")
    claimed(tmp_path, "vae.training.learning_rate=1e-3")


def test_what_a_stage_trains_first_counts(tmp_path):
    claimed(tmp_path)
    claimed(tmp_path, "diffusion.mode=private", stage="diffusion")
    (tmp_path / "diffusion" / "weak").mkdir(parents=True)
    (tmp_path / "diffusion" / "weak" / "last.safetensors").touch()
    with pytest.raises(MandorlaError, match="begun with diffusion.mode=private, not joint: .* delete .*diffusion to"):
        claimed(tmp_path, "diffusion.mode=joint", stage="diffusion")


def test_what_can_be_no_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    for place in ("file", "file/run"):
        with pytest.raises(MandorlaError, match="cannot be a run folder .*: choose another by run="):
            claimed(tmp_path / place)


def test_settings_may_change_until_something_is_trained_with_them(tmp_path):
    claimed(tmp_path)
    claimed(tmp_path, "vae.training.steps=5")
    assert read_recipe(str(tmp_path)).vae.training.steps == 5
    trained(tmp_path)
    claimed(tmp_path, "vae.training.steps=5", "device=cpu", "evaluate.judge_steps=3")
    assert read_recipe(str(tmp_path)).device == "cpu"
    with pytest.raises(MandorlaError, match="begun with vae.training.steps=5, not 6.* delete .*vae to train it anew"):
        claimed(tmp_path, "vae.training.steps=6")


@pytest.mark.parametrize(
    ("begun", "now", "message"),
    [
        ("data.size=30", "data={kind: phantom}", "data"),
        ("data={kind: arrays, images: {a: a.npy, b: b.npy}}", "data.size=30", "data.kind=arrays, not polydigits:"),
        ("data.size=30", "data={kind: arrays, images: {a: a.npy, b: b.npy}}", "data.kind=polydigits, not arrays:"),
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
    trained(tmp_path)
    with pytest.raises(MandorlaError, match=f"was begun with {message}"):
        claimed(tmp_path, now)


@pytest.mark.parametrize("change", ["run=''", 'run="a\\0b"', "seed=9223372036854775808"])
def test_impossible_values_are_refused(change):
    with pytest.raises(MandorlaError, match="^[^\n]*on the command line: `(run|seed)`"):
        read_recipe("phantom", [change])


def test_a_stage_changes_its_own_block_only(tmp_path):
    claimed(tmp_path, "vae.training.steps=5")
    trained(tmp_path)
    with pytest.warns(
        MandorlaWarning, match="begun with vae.training.steps=5, not 6: stage 2 follows what was trained"
    ):
        claimed(tmp_path, "vae.training.steps=6", "diffusion.mode=private", stage="diffusion")
    recipe = read_recipe(str(tmp_path))
    assert (recipe.vae.training.steps, recipe.diffusion.mode) == (5, "private")


def test_a_run_can_be_used_from_any_folder(tmp_path, monkeypatch):
    """Where its data lay is written down; if they moved, MANDORLA_DATA or `data.root` says where to."""
    monkeypatch.delenv("MANDORLA_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    claim(read_recipe("folders", ["run=r"]), "vae")
    assert read_run(Path("r")).data.root == str(tmp_path / "data")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    run = Path("../r")
    assert read_run(run).data.root == str(tmp_path / "data")
    assert Path(read_run(run).run).resolve() == tmp_path / "r"
    monkeypatch.setenv("MANDORLA_DATA", str(tmp_path / "moved"))
    assert read_run(run).data.root == str(tmp_path / "data"), "what was trained on, as long as it is there"
    (tmp_path / "data").rename(tmp_path / "moved")
    assert read_run(run).data.root == str(tmp_path / "moved")
    trained(tmp_path / "r")
    Path("here").mkdir()
    claim(read_recipe("../r", ["data.root=here", "data.workers=2", "data.cache=.kept"]), "vae")
    assert read_run(run).data.root == str(tmp_path / "elsewhere" / "here"), "the data of a trained run may move"


def test_a_later_stage_keeps_where_the_data_lay(tmp_path, monkeypatch):
    """Its drive may be absent, and MANDORLA_DATA be of other data: stage 2 needs neither."""
    monkeypatch.setenv("MANDORLA_DATA", str(tmp_path / "others"))
    (tmp_path / "others").mkdir()
    run = claim(read_recipe("folders", [f"run={json.dumps(str(tmp_path / 'r'))}", "data.root=/drive/mine"]), "vae")
    assert read_run(run).data.root == str(tmp_path / "others")
    for stage in ("diffusion", "refiner"):
        claim(read_recipe(str(run)), stage)
        assert load_settings(Recipe, path=run / "config.yaml").data.root == "/drive/mine"


def test_nothing_is_written_where_something_else_refuses(tmp_path):
    run = claimed(tmp_path / "run")
    before = (run / "config.yaml").read_text()
    with pytest.raises(MandorlaError), claim_run(read_recipe(str(run), ["seed=1"]), "vae"):
        raise MandorlaError("other data")
    assert (run / "config.yaml").read_text() == before


def test_paths_in_a_recipe_are_relative_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("vae_uv").mkdir()
    Path("vae_uv/vae.yaml").write_text(
        "{run: ../runs/mine, data: {kind: folders, root: ../data, folders: {a: a, b: b}}}"
    )
    for source in ("vae_uv/vae.yaml", str(tmp_path / "vae_uv" / "vae.yaml")):
        recipe = read_recipe(source)
        assert (recipe.run, recipe.data.root) == (str(tmp_path / "runs" / "mine"), str(tmp_path / "data"))
    monkeypatch.chdir("vae_uv")
    assert Path(read_recipe("vae.yaml").run).resolve() == tmp_path / "runs" / "mine"
    assert read_recipe("vae.yaml", ["run=../r"]).run == "../r"
    assert read_recipe("folders").run == "runs/folders", "those that ship start at the current folder"


@pytest.mark.parametrize("text", ["", "# all gone\n", "seed: 3\n"])
def test_a_damaged_run_is_no_default_run(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    for read in (read_run, lambda run: read_recipe(str(run)), lambda run: claimed(run)):
        with pytest.raises(MandorlaError, match=r"config.yaml is empty or damaged \(it has no `data`\): restore it"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("stage", "key", "other"),
    [
        ("vae", "diffusion.training.steps=5", "diffusion"),
        ("diffusion", "vae.training.steps=5", "vae"),
        ("diffusion", "data.num_train=5", "vae"),
        ("diffusion", "imports=[]", "vae"),
    ],
)
def test_a_key_of_the_other_stage_is_refused(stage, key, other):
    name = key.partition("=")[0]
    with pytest.raises(MandorlaError, match=f"`{name}` is used by `mandorla train {other}`, not by .* {stage}`"):
        read_recipe("polydigits", [key], stage)
    read_recipe("polydigits", ["run=x", "seed=1", "device=cpu", "evaluate.num_test=10"], stage)
    with pytest.raises(MandorlaError, match="unknown key `vea`"):
        read_recipe("polydigits", ["vea.training.steps=5"], stage)


def test_the_last_command_says_what_is_evaluated(tmp_path):
    claimed(tmp_path, "evaluate.num_test=20")
    claimed(tmp_path, "evaluate.num_test=30", "device=cpu", "vae.training.steps=7", stage="diffusion")
    recipe = read_run(tmp_path)
    assert (recipe.evaluate.num_test, recipe.device, recipe.vae.training.steps) == (30, "cpu", 900)


def test_what_is_measured_may_change_for_one_call(tmp_path):
    run = claim(read_recipe("polydigits", [f"run={json.dumps(str(tmp_path / 'r'))}"]), "vae")
    before = (run / "config.yaml").read_text()
    settings = read_evaluation(run, ["evaluate.num_test=77", "evaluate.suites=[audit]"])
    assert settings.num_test == 77 and settings.suites == ("audit",)
    assert (run / "config.yaml").read_text() == before and read_evaluation(run).num_test != 77


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("vae.training.steps=3", "`vae.training.steps` belongs to `mandorla train vae`; "),
        ("diffusion.mode=private", "`diffusion.mode` belongs to `mandorla train diffusion`; "),
        ("data.root=x", "`data.root` belongs to `mandorla train vae`: to measure other data, give --data RECIPE; "),
        ("seed=3", "`seed` was settled when the run was trained; "),
        ("device=cpu", "`device` was settled"),
        ("run=x", "`run` is the folder that is given first"),
        ("imports=[a.py]", "`imports` belongs"),
        ("num_test=3", "unknown key `num_test`; did you mean `evaluate.num_test`"),
        ("evaluate.num_tets=3", "unknown key `evaluate.num_tets`; did you mean `evaluate.num_test`"),
        ("evaluate.suites=[fidelty]", "expected disentanglement | .*got fidelty; did you mean `fidelity`"),
        ("evaluate.suites=[]", "nothing is measured: name some of disentanglement"),
        ("evaluate.features={judge: a.onnx}", "a space cannot be called 'judge'"),
        ("evaluate.features={a b: a.onnx}", "a space cannot be called 'a b'"),
    ],
)
def test_keys_of_no_use_to_an_evaluation_say_where_they_belong(tmp_path, override, text):
    run = claim(read_recipe("polydigits", [f"run={json.dumps(str(tmp_path / 'r'))}"]), "vae")
    with pytest.raises(MandorlaError, match=f"on the command line: .*{text}"):
        read_evaluation(run, [override])


def test_files_of_features_are_found_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = claim(read_recipe("polydigits", ["run=r", "evaluate.features={net: nets/a.onnx}"]), "vae")
    assert read_run(run).evaluate.features == {"net": str(tmp_path / "nets" / "a.onnx")}
