"""The README as a newcomer follows it: every command as typed, on tiny settings, and both blocks of Python."""

import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mandorla.serve
from mandorla.cli import main
from mandorla.data import load_data
from mandorla.data.images import write_image
from mandorla.data.python import DATASETS
from mandorla.diffusion.samplers import SAMPLERS, SamplingConfig, time_grid
from mandorla.nets.diffusion_network import DIFFUSION_NETWORKS
from mandorla.nets.encoder_decoder import ENCODER_DECODERS
from mandorla.recipe import read_recipe

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition(" #")[0].strip() for line in TEXT.splitlines() if re.match(r" {4}(make|pip|cd|mandorla) ", line)
]

SMALL = "evaluate={num_train: 20, num_test: 10, num_generated: 10, num_translated: 2, num_samples: 2, judge_steps: 2}"
VAE = ["vae.model.encoder_decoder.channels=[8]", "vae.training={steps: 2, batch_size: 16}", SMALL]
DIFFUSION = [
    "diffusion.network={width: 16, depth: 1, heads: 2, patch: 4}",
    "diffusion.training={steps: 2, batch_size: 16}",
    "diffusion.sampling.steps=2",
    SMALL,
]
REFINER = ["refiner={network: {channels: [8]}, steps: 1, training: {steps: 2, batch_size: 8}}"]
DIGITS = ["data.num_train=64", "data.num_val=16", "data.num_test=20"]


def block(language: str, word: str) -> str:
    """Return the one code block of a language that has `word` in it."""
    (text,) = [text for text in re.findall(rf"```{language}\n(.*?)```", TEXT, re.S) if word in text]
    return text


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Return an empty folder, current, with the images that the README speaks of."""
    rng = np.random.default_rng(0)
    for folder, num in {"my/images/t1": 12, "my/images/t2": 12, "my/new/t1": 2}.items():
        (tmp_path / folder).mkdir(parents=True)
        for index in range(num):
            write_image(tmp_path / folder / f"{index:02d}.png", rng.random((1, 64, 64)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MANDORLA_DATA", raising=False)
    monkeypatch.setattr(mandorla.serve, "serve", lambda run, port: mandorla.load(run))  # it would not end
    return tmp_path


def shell(command: str) -> None:
    """Run lines of shell in the current folder, with this Python and without the package on its path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    result = subprocess.run(["bash", "-ec", command], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_no_command_is_left_out():
    tested = ("make ", "pip install -r requirements.txt", "cd vae_uv", "cd ../diffusion_uv", "mandorla ")
    assert all(command.startswith(tested) for command in COMMANDS)
    assert len(COMMANDS) > 10


def test_commands(world):
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        if program == "mandorla":
            small = {("train", "vae"): VAE, ("train", "diffusion"): DIFFUSION, ("train", "refiner"): REFINER}
            arguments += small.get(tuple(arguments[:2]), [])
            with pytest.raises(SystemExit) as stop:
                main(arguments)
            assert not stop.value.code, command
    for path in ("samples/t2/0015.png", "swap/grid.png", "metrics.json", "report.html", "pictures"):
        assert (world / "runs" / "mine" / path).exists(), path
    assert sorted(path.name for path in (world / "out" / "t2").glob("*.png")) == ["00.png", "01.png"]


def test_both_scripts_from_their_folders(world):
    for name in ("vae_uv", "diffusion_uv"):
        shutil.copytree(ROOT / name, name)
    Path("src").symlink_to(ROOT / "src")
    (stage_1,) = (command for command in COMMANDS if command.startswith("cd vae_uv"))
    (stage_2,) = (command for command in COMMANDS if command.startswith("cd ../diffusion_uv"))
    tiny = (shlex.join([*DIGITS, *VAE]), shlex.join(DIFFUSION))
    shell(f"{stage_1} {tiny[0]}\n{stage_2} {tiny[1]}")
    assert (world / "runs" / "mine" / "diffusion" / "weights.safetensors").is_file()
    assert sorted(path.name for path in world.iterdir()) == ["diffusion_uv", "my", "runs", "src", "vae_uv"]
    assert Path(read_recipe("vae_uv/vae.yaml").run) == world / "runs" / "mine", "from elsewhere it is the same"


def test_the_data_that_the_yaml_of_stage_1_suggests(world):
    """It lies in the folder `data`, wherever the script is called from."""
    shutil.copytree(ROOT / "vae_uv", "vae_uv")
    text = Path("vae_uv/vae.yaml").read_text()
    for place in re.findall(r"mydata/\w+", text):
        (world / "data" / place).mkdir(parents=True)
        for index in range(12):
            image = np.random.default_rng(index).random((1, 128, 128))
            write_image(world / "data" / place / f"{index:02d}.png", image)
    Path("vae_uv/vae.yaml").write_text(re.sub(r"data:.*\n  kind: polydigits # (.*)", r"data: \1", text))
    recipe = read_recipe("vae_uv/vae.yaml")
    assert recipe.data.kind == "folders"
    assert [m.shape for m in load_data(recipe.data, 0).modalities] == [(1, 128, 128)] * 2


def test_make_and_pip():
    if shutil.which("make"):
        for target, command in {"demo": "bin/mandorla demo", "test": "bin/python -m pytest"}.items():
            assert f"make {target}" in COMMANDS
            planned = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True)
            assert command in planned.stdout
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert {"-c constraints.txt", "-e ."} <= set(lines)


@pytest.mark.slow
def test_demo(world):
    with pytest.raises(SystemExit) as stop:
        main(["demo", *DIGITS, *VAE, "diffusion.training={steps: 2, batch_size: 16}"])
    assert not stop.value.code
    for path in re.findall(r"`(runs/demo/.*?report.html)`", TEXT):
        assert Path(path).stat().st_size > 1000


def test_python(world, polydigits_run):
    shutil.copytree(polydigits_run, "runs/demo")
    names: dict = {}
    exec(block("python", "mandorla.load"), names)
    assert {name: tuple(x.shape) for name, x in names["filled"].items()} == {"view2": (8, 4, 3, 24, 24)}
    assert tuple(names["new"]["view0"].shape) == (16, 3, 24, 24)
    assert tuple(names["x"]["view0"].shape) == (4, 3, 24, 24)
    for result, num in (("swapped", 4), ("images", 4), ("between", 8)):
        assert len(names[result]["view0"]) == num, result


def test_measuring_anybodys_arrays(world, capsys):
    exec(block("python", "mandorla.evaluate"), {})
    assert "'frechet': " in capsys.readouterr().out


def test_own_dataset_and_networks(world):
    Path("mynets.py").write_text(block("python", "@register"))
    Path("mine.yaml").write_text(block("yaml", "imports:"))
    recipe = read_recipe("mine.yaml")
    network = recipe.vae.model.encoder_decoder_of["t1"]
    assert ENCODER_DECODERS.named[network.kind].__name__ == "Mine"
    assert network.options == {"width": 64}
    flow = recipe.diffusion.network
    for own, options, name in (
        (ENCODER_DECODERS.named[network.kind], network.options, "Mine"),
        (DATASETS.named[recipe.data.dataset], recipe.data.options, "Pairs"),
        (DIFFUSION_NETWORKS.named[flow.kind], flow.options, "Flow"),
    ):
        assert own.__name__ == name
        assert list(inspect.signature(own).parameters)[-1:] == list(options)


def test_a_sample_takes_as_many_evaluations_as_it_says():
    config, times = SamplingConfig(), []

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        times.append(t)
        return x

    SAMPLERS[config.sampler]().integrate(velocity, torch.ones(1, 1), time_grid(config.steps))
    assert f"A sample takes {len(times)} network evaluations" in TEXT


def test_the_tree_names_what_is_there():
    tree = TEXT.partition("## The tree\n")[2].partition("A run folder")[0]
    names = re.findall(r"\b(\w+(?:\.py|\.md|/))(?=[\s:,;.)])", tree)
    places = ("", "src", "src/mandorla", "src/mandorla/evaluate", "experiments", "benchmarks")
    assert len(names) > 40
    assert not [name for name in names if not any((ROOT / place / name).exists() for place in places)]
