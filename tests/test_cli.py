"""The command line: it starts fast, parses, delegates, and reports mistakes in one line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

import mandorla
from mandorla import edits, files
from mandorla.cli import main
from mandorla.config import Settings, load_settings
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.training import TrainerConfig

VERBS = [
    "demo",
    "train vae",
    "train diffusion",
    "encode",
    "sample",
    "translate",
    "swap",
    "vary",
    "interpolate",
    "inpaint",
    "evaluate",
    "audit",
    "compare",
    "serve",
    "config",
]


class Recipe(Settings):
    """Stand in for the real recipe: the command line only passes it on."""

    trainer: ClassVar[TrainerConfig] = TrainerConfig()
    run: str = "runs/x"
    seed: int = 0
    """Seed of everything random, :key: [a]."""


def run(*arguments: str) -> int:
    """Return the exit status of a command line."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code or 0


@pytest.fixture
def calls(monkeypatch):
    """Put recorders in the place of what the verbs delegate to; return what they were called with."""
    calls = []

    def recorder(name: str):
        def record(*args, **kwargs):
            calls.append((name, args, kwargs))
            return Path(name)

        return record

    def read_recipe(source, overrides, stage=None):
        calls.append(("read_recipe", (source, overrides, stage), {}))
        return load_settings(Recipe, overrides=overrides)

    for module, names in {
        "demo": ["run_demo"],
        "vae.training": ["train_vae"],
        "diffusion.training": ["train_diffusion"],
        "vae.encoding": ["write_latents"],
        "evaluate": ["evaluate", "audit_run"],
        "serve": ["serve"],
        "compare": ["compare"],
    }.items():
        stub = SimpleNamespace(**{name: recorder(name) for name in names})
        monkeypatch.setitem(sys.modules, f"mandorla.{module}", stub)
    recipe = SimpleNamespace(Recipe=Recipe, read_recipe=read_recipe)
    monkeypatch.setitem(sys.modules, "mandorla.recipe", recipe)
    monkeypatch.setitem(vars(mandorla), "load", lambda run: SimpleNamespace(loaded=run))
    for name in ("sample", "translate", "encode"):
        monkeypatch.setattr(files, name, recorder(name))
    for name in ("swap", "vary", "interpolate", "inpaint"):
        monkeypatch.setattr(edits, name, recorder(name))
    return calls


def python(*arguments: str) -> str:
    """Return what a new Python process prints that finds the package."""
    environment = {**os.environ, "PYTHONPATH": str(Path(mandorla.__file__).parents[1])}
    command = [sys.executable, *arguments]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert result.returncode == 0
    return result.stdout


def test_help_imports_nothing_heavy():
    code = f"""
import sys
from mandorla.cli import main
for verb in {["", *VERBS]!r}:
    try:
        main([*verb.split(), "--help"])
    except SystemExit as stop:
        assert not stop.code, verb
heavy = [name for name in ("torch", "numpy", "scipy", "sklearn", "matplotlib") if name in sys.modules]
assert not heavy, heavy
import mandorla
assert "load" in dir(mandorla)
"""
    python("-c", code)


def test_the_module_runs_and_knows_its_version():
    assert python("-m", "mandorla", "--version").strip() == mandorla.__version__


def test_public_names():
    assert mandorla.Latents.__name__ == "Latents"
    assert callable(mandorla.register)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        mandorla.lod  # noqa: B018


@pytest.mark.parametrize(("verb", "target"), [("vae", "train_vae"), ("diffusion", "train_diffusion")])
def test_train_passes_recipe_overrides_and_run(calls, verb, target):
    assert run("train", verb, "lgg", "seed=3", "--run", "runs/0 1") == 0
    assert calls[0] == ("read_recipe", ("lgg", ["seed=3", 'run="runs/0 1"'], verb), {})
    assert calls[1] == (target, (Recipe(run="runs/0 1", seed=3),), {})


@pytest.mark.parametrize("verb", ["vae", "diffusion"])
def test_train_needs_a_recipe(capsys, verb):
    assert run("train", verb, "seed=1") == 2
    assert capsys.readouterr().err.startswith(
        "mandorla: no recipe is named: give a YAML file, a run folder, or one of "
    )


@pytest.mark.parametrize(("option", "kind"), [("--sweep", "sweep"), ("--ablate", "ablate")])
def test_trials_get_a_reader_of_the_changed_recipe(calls, monkeypatch, capsys, option, kind):
    seen = []
    stub = SimpleNamespace(
        size_trials=lambda read, grid: [SimpleNamespace(name=text, changes=(text,)) for text in grid],
        ablation_trials=lambda read: [SimpleNamespace(name="full", changes=())],
        run_trials=lambda *args: seen.append(args),
    )
    monkeypatch.setitem(sys.modules, "mandorla.trials", stub)
    grid = ["--grid", "vae.a=1,2", "--grid", "vae.b=3"] if kind == "sweep" else []
    command = ["train", "vae", "lgg", "seed=3", "--run", "runs/0 1", option, *grid]
    assert run(*command, "--dry-run") == 0
    expected = "vae.a=1,2: vae.a=1,2\nvae.b=3: vae.b=3\n" if grid else "full: as it is\n"
    assert capsys.readouterr().out == expected and not seen
    assert run(*command, "--seeds", "2") == 0
    ((got, trials, read, seeds),) = seen
    assert (got, len(trials), seeds) == (kind, 2 if grid else 1, 2)
    calls.clear()
    assert read(["run=there"]) == Recipe(run="there", seed=3)
    assert calls == [("read_recipe", ("lgg", ["seed=3", 'run="runs/0 1"', "run=there"], "vae"), {})]


@pytest.mark.parametrize(
    "options", [["--seeds", "2"], ["--grid", "a=1"], ["--sweep", "--ablate"], ["--ablate", "--grid", "a=1"]]
)
def test_options_of_trials_that_do_not_go_together(calls, capsys, options):
    assert run("train", "vae", *options) == 2
    assert "--sweep" in capsys.readouterr().err and not calls


def test_a_run_folder_may_be_called_like_a_setting(calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1").mkdir()
    assert run("train", "diffusion", "lr=0.1", "seed=3") == 0
    assert calls[0] == ("read_recipe", ("lr=0.1", ["seed=3"], "diffusion"), {})


def test_a_long_change_is_no_file(calls):
    long = f"run={'x' * 5000}"
    assert run("train", "vae", "mine.yaml", long) == 0
    assert calls[0] == ("read_recipe", ("mine.yaml", [long], "vae"), {})


def test_a_terminal_that_cannot_show_a_sign_gets_another():
    text = "import mandorla.cli\ntry: mandorla.cli.main(['--version'])\nfinally: print('\\u2192')"
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, check=True)
    assert done.stdout.endswith(b"?\n")


def test_dry_run_prints_the_configuration_and_trains_nothing(calls, capsys):
    assert run("train", "vae", "--dry-run", "seed=3") == 0
    assert capsys.readouterr().out == "run: runs/x\nseed: 3\n"
    assert [name for name, *_ in calls] == ["read_recipe"]


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        (["demo"], ("run_demo", (Path("runs/demo"), 0, [], "both"), {})),
        (
            ["demo", "--seed", "2", "--run", "r", "--part", "phantom", "vae.steps=1"],
            ("run_demo", (Path("r"), 2, ["vae.steps=1"], "phantom"), {}),
        ),
        (["encode", "r"], ("write_latents", (Path("r"),), {})),
        (["evaluate", "r"], ("evaluate", (Path("r"), [], None, None, None), {})),
        (
            ["evaluate", "r", "evaluate.num_test=9", "--suite", "audit, fidelity", "--num-samples", "3"]
            + ["--data", "d", "--baseline", "b", "--out", "o"],
            (
                "evaluate",
                (
                    Path("r"),
                    ["evaluate.num_test=9", 'evaluate.suites=["audit", "fidelity"]', "evaluate.num_samples=3"],
                    "d",
                    Path("b"),
                    Path("o"),
                ),
                {},
            ),
        ),
        (["audit", "r"], ("audit_run", (Path("r"), [], 0.05, None), {})),
        (
            ["audit", "r", "evaluate.num_test=9", "--threshold", ".1", "--out", "o"],
            ("audit_run", (Path("r"), ["evaluate.num_test=9"], 0.1, Path("o")), {}),
        ),
        (["compare", "r", "s"], ("compare", (Path("r"), Path("s"), Path("compare.png")), {})),
        (["serve", "r", "--port", "0"], ("serve", (Path("r"), 0), {})),
        (
            ["sample", "r", "--num", "4", "--seed", "1", "--steps", "8", "--label", "a=b=c", "--out", "o"],
            (
                "sample",
                (SimpleNamespace(loaded=Path("r")), Path("o")),
                {"num": 4, "seed": 1, "steps": 8, "format": None, "labels": {"a": "b=c"}, "best_of": 1},
            ),
        ),
        (
            ["translate", "r", "in", "out", "--given", "a, b", "--wanted", "c", "--num-samples", "2", "--label", "d=e"],
            (
                "translate",
                (SimpleNamespace(loaded=Path("r")), Path("in"), Path("out"), ["a", "b"], ["c"]),
                {
                    "num_samples": 2,
                    "seed": 0,
                    "steps": None,
                    "write": ["mean"],
                    "labels": {"d": "e"},
                    "complete": False,
                },
            ),
        ),
        (
            ["encode", "r", "in", "out"],
            (
                "encode",
                (SimpleNamespace(loaded=Path("r")), Path("in"), Path("out"), []),
                {"residual": False, "complete": False},
            ),
        ),
        (
            ["encode", "r", "in", "out", "--given", "a,b", "--residual", "--complete"],
            (
                "encode",
                (SimpleNamespace(loaded=Path("r")), Path("in"), Path("out"), ["a", "b"]),
                {"residual": True, "complete": True},
            ),
        ),
        (
            ["swap", "r", "--shared-from", "1", "--private-from", "b.npz"],
            ("swap", (SimpleNamespace(loaded=Path("r")), "1", "b.npz", None), {}),
        ),
        (
            ["vary", "r", "1", "--strength", ".3", "--part", "both", "--out", "o", "--label", "d=e"],
            (
                "vary",
                (SimpleNamespace(loaded=Path("r")), "1", Path("o")),
                {"strength": 0.3, "part": "both", "num": 4, "seed": 0, "labels": {"d": "e"}},
            ),
        ),
        (
            ["interpolate", "r", "1", "b.npz", "--num", "3"],
            ("interpolate", (SimpleNamespace(loaded=Path("r")), "1", "b.npz", None), {"part": "both", "num": 3}),
        ),
        (
            ["inpaint", "r", "1", "--region", "m.png", "--seed", "2"],
            (
                "inpaint",
                (SimpleNamespace(loaded=Path("r")), "1", Path("m.png"), None),
                {"part": "both", "num": 4, "seed": 2, "labels": {}},
            ),
        ),
    ],
)
def test_verbs_delegate(calls, arguments, call):
    assert run(*arguments) == 0
    assert calls == [call]


def test_all_suites_are_those_of_the_settings(calls):
    from mandorla.evaluate.settings import SUITES

    assert run("evaluate", "r", "--suite", "all") == 0
    assert calls[0][1][1] == [f"evaluate.suites={json.dumps(SUITES)}"]


@pytest.mark.parametrize(("passed", "status"), [(True, 0), (False, 1)])
def test_an_audit_that_finds_copies_ends_with_status_1(calls, monkeypatch, passed, status):
    monkeypatch.setattr(sys.modules["mandorla.evaluate"], "audit_run", lambda *_: passed)
    assert run("audit", "r") == status


def test_config_lists_every_key(calls, capsys):
    assert run("config") == 0
    assert "seed: 0  (int)\n    Seed of everything random, :key: [a].\n" in capsys.readouterr().out
    assert run("config", "lgg", "seed=7") == 0
    assert "seed: 7  (int)" in capsys.readouterr().out
    assert run("config", "--schema") == 0
    assert json.loads(capsys.readouterr().out)["properties"]["seed"]["type"] == "integer"


def test_a_mistake_is_one_line_and_status_2(calls, capsys):
    assert run("train", "vae", "sed=1") == 2
    captured = capsys.readouterr()
    assert captured.err == "mandorla: on the command line: unknown key `sed`; did you mean `seed`?\n"
    assert captured.out == ""
    assert run("train", "vae", "lgg", "phantom") == 2
    assert "one recipe at a time, got lgg phantom" in capsys.readouterr().err


def test_a_warning_is_one_line_and_the_work_goes_on(calls, monkeypatch, capsys):
    def warn(*_, **__):
        warnings.warn("12 samples look odd", MandorlaWarning, stacklevel=1)
        warnings.warn("old", UserWarning, stacklevel=1)

    monkeypatch.setattr(sys.modules["mandorla.vae.encoding"], "write_latents", warn)
    assert run("encode", "runs/x") == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "mandorla: warning: 12 samples look odd" and "UserWarning: old" in lines[1]


@pytest.mark.parametrize("arguments", [["--debug", "train", "vae", "sed=1"], ["train", "vae", "sed=1", "--debug"]])
def test_debug_shows_the_traceback_as_well(calls, capsys, arguments):
    assert run(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):" and lines[-1].startswith("mandorla: on the command line")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["tran"], "No such command 'tran'"),
        (["swap", "runs/x"], "Missing option '--shared-from'"),
        (["sample", "--num", "0", "r"], "Invalid value for '--num'"),
        (["sample", "--best-of", "1001", "r"], "Invalid value for '--best-of'"),  # whose memory nobody has
        (["vary", "r", "0", "--num", "1001"], "Invalid value for '--num'"),
        (["sample", "r", "--label", "age"], "Invalid value: --label age: write it as NAME=VALUE"),
        (["train", "vae", "--sweeep"], "No such option"),
    ],
)
def test_wrong_usage_is_one_line_too(capsys, arguments, line):
    assert run(*arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"mandorla: {line}") and message.count("\n") == 1
    assert message.endswith("--help`\n")


@pytest.mark.parametrize("arguments", [[], ["train"], ["data"]])
def test_nothing_said_shows_the_help(capfd, arguments):
    assert run(*arguments) == 2
    assert "Usage" in "".join(capfd.readouterr())


def test_a_folder_that_may_not_be_written_is_one_line_too(calls, monkeypatch, capsys):
    def refuse(recipe):
        raise PermissionError(13, "Permission denied", "runs/x")

    monkeypatch.setattr(sys.modules["mandorla.vae.training"], "train_vae", refuse)
    assert run("train", "vae") == 2
    assert capsys.readouterr().err == "mandorla: runs/x: Permission denied\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device"), "a file cannot be read or written: No space left on device"),
        (OSError("512 requested and 0 written"), "a file cannot be read or written: 512 requested and 0 written"),
        (RuntimeError("can't allocate memory"), "not enough memory: lower data.size, training.batch_size"),
        (MandorlaError("a\nb.png: broken"), "a b.png: broken"),
    ],
)
def test_other_failures_are_one_line_too(calls, monkeypatch, capsys, error, line):
    def fail(recipe):
        raise error

    monkeypatch.setattr(sys.modules["mandorla.vae.training"], "train_vae", fail)
    assert run("train", "vae") == 2
    message = capsys.readouterr().err
    assert message.startswith(f"mandorla: {line}") and message.count("\n") == 1


def test_a_current_folder_that_is_gone_does_no_harm(tmp_path, monkeypatch, calls):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run("train", "vae", "--dry-run") == 0


def test_an_interrupted_command_says_how_to_go_on(calls, monkeypatch, capsys):
    def interrupt(recipe):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["mandorla.vae.training"], "train_vae", interrupt)
    assert run("train", "vae") == 130
    assert "the same command" in capsys.readouterr().err


def test_interrupted_while_it_starts_it_ends_without_a_word(tmp_path):
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    source = Path(mandorla.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(source)])}
    for start in (["-m", "mandorla"], [str(source.parent / "vae_uv" / "vae_train.py")]):
        result = subprocess.run([sys.executable, *start], env=environment, capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (-signal.SIGINT, "")


def test_training_says_what_comes_next(calls, capsys):
    assert run("train", "vae", "--run", "runs/my scans") == 0
    assert capsys.readouterr().out.endswith(
        "trained in runs/my scans; next: mandorla train diffusion 'runs/my scans'\n"
    )
    assert run("train", "diffusion", "--run", "r") == 0
    assert capsys.readouterr().out.endswith("trained in r; next: mandorla evaluate r\n")


def test_wrong_arguments_are_refused(capsys):
    assert run("smaple", "r") == 2
    assert run("sample") == 2
    assert run("sample", "r", "--num", "0") == 2
    assert run("translate", "r", "in", "out", "--given", "a") == 2
    assert run("encode", "r", "in") == 2
    assert "samples of your own need a place for their latents: mandorla encode RUN IN OUT" in capsys.readouterr().err
    assert run("encode", "r", "--residual") == 2
    assert "are for samples of your own: name IN and OUT too" in capsys.readouterr().err


SMALL = """
run: {run}
data: {{kind: polydigits, num_train: 64, num_val: 16, num_test: 16}}
vae:
  model: {{encoder_decoder: {{kind: convolutional, patch: 4, channels: [8, 8]}}}}
  training: {{steps: 2, batch_size: 16}}
diffusion:
  network: {{width: 32, depth: 1}}
  training: {{steps: 2, batch_size: 16}}
"""


def test_the_whole_path(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL.format(run="r"))
    assert run("train", "vae", "small.yaml") == 0
    assert run("train", "diffusion", "r") == 0
    assert run("encode", "r") == 0
    assert run("sample", "r", "--num", "2", "--steps", "2") == 0
    assert run("translate", "r", "r/samples", "out", "--given", "view0,view2", "--wanted", "view1") == 0
    assert run("swap", "r", "--shared-from", "0", "--private-from", "r/samples/samples.npz") == 2
    assert "holds 1 samples" in capsys.readouterr().err
    assert run("swap", "r", "--shared-from", "0", "--private-from", "15") == 0
    assert run("vary", "r", "0", "--num", "2") == 0
    assert run("interpolate", "r", "0", "15") == 0
    assert run("inpaint", "r", "0", "--region", "r/samples/view0/0000.png") == 2
    assert "no part is a map: vectors have no regions" in capsys.readouterr().err
    for path in ("r/samples/grid.png", "r/samples/view0/0001.png", "out/view1/0001.png", "r/swap/swap.npz"):
        assert Path(path).is_file(), path
    for path in Path("r/diffusion").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run("sample", "r", "--out", "zz/x") == 2
    assert "run `mandorla train diffusion r` first" in capsys.readouterr().err
    assert not Path("zz").exists()
    assert run("sample", "out") == 2
    assert "not a run folder" in capsys.readouterr().err
