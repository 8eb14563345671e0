"""What may happen to a training: killed at any moment, interrupted, a full disk, two at once, a folder of others."""

import json
import math
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import time
from contextlib import suppress
from functools import reduce
from operator import getitem
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny import same_training, tiny_recipe

import mandorla
from mandorla import files
from mandorla.checkpoint import load_tensors
from mandorla.cli import main
from mandorla.config import dump
from mandorla.diffusion.training import train_diffusion
from mandorla.errors import MandorlaError
from mandorla.refiner.training import train_refiner
from mandorla.storage import locked
from mandorla.vae.training import train_vae

NUM_KILLS = 30
LONG = [
    f"{stage}.training.{key}"
    for stage in ("vae", "diffusion", "refiner")
    for key in ("steps=24", "checkpoint_every=2", "validate_every=7")
]


STAGES = ("vae", "diffusion/weak", "diffusion", "refiner")


def train_all(recipe) -> None:
    train_vae(recipe)
    train_diffusion(recipe)
    train_refiner(recipe)


def in_child(work, moment=None) -> bool:
    """Do `work` in a process of its own, killed when `moment` returns; return whether it ended by itself, and well."""
    child = os.fork()
    if child == 0:
        try:
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, 1)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    if moment is not None:
        moment(lambda: os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "it failed by itself"
    return not os.WIFSIGNALED(status)


def step_of(run: Path) -> str:
    """Return how far a run has come."""
    for stage in STAGES[::-1]:
        for name in ("last", "previous"):
            with suppress(OSError), (run / stage / f"{name}.safetensors").open("rb") as file:  # it may just be renamed
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
                return f"{stage} {header['__metadata__']['step']}"
    return "nothing"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thirty_kills_over_all_stages(tmp_path, monkeypatch):
    """Whatever is being done when SIGKILL comes, the same command ends where an uninterrupted one does, bit by bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a fork has no other thread
    settings = [*LONG, "diffusion.weak_share=0.5"]
    whole, killed = (tiny_recipe(tmp_path / name, "polydigits", *settings) for name in ("whole", "killed"))
    rng, moments = random.Random(time.time_ns()), []

    def moment(ended) -> None:
        """Wait: sometimes for a moment while it starts, mostly until it has come further, and then a little longer."""
        before, began = step_of(Path(killed.run)), time.perf_counter()
        early = rng.uniform(0, seconds / 8) if rng.random() < 0.2 else math.inf
        while step_of(Path(killed.run)) == before and time.perf_counter() - began < early and not ended():
            time.sleep(0.005)
        time.sleep(rng.uniform(0, seconds / 80))

    try:
        began = time.perf_counter()
        assert in_child(lambda: train_all(whole))
        seconds = time.perf_counter() - began
        while len(moments) < NUM_KILLS:
            if not in_child(lambda: train_all(killed), moment):
                moments.append(step_of(Path(killed.run)))
            else:  # done before all kills were: once more
                assert_same(tmp_path)
                Path(killed.run).rename(tmp_path / f"done{len(moments)}")
        assert in_child(lambda: train_all(killed))
        print(f"{len(moments)} kills, after: {', '.join(moments)}")
        assert_same(tmp_path)
    finally:
        torch.set_num_threads(threads)


def assert_same(folder: Path) -> None:
    for stage in STAGES:
        assert same_training(folder / "whole" / stage, folder / "killed" / stage), stage
    files = [path.relative_to(folder / "whole") for path in (folder / "whole" / "latents").rglob("*") if path.is_file()]
    assert {path.name for path in files} > {"manifest.json", "statistics.safetensors"}
    for path in files:
        assert (folder / "whole" / path).read_bytes() == (folder / "killed" / path).read_bytes(), path
    whole, killed = (
        sorted(path.name for path in (folder / run).rglob("*") if path.name[0] == "." or path.suffix == ".part")
        for run in ("whole", "killed")
    )
    assert killed == whole, "nothing half-written stays"


# ------------------------------------------------------------------------------------------------------ one command


def run(folder: Path, *arguments: str, prepare=lambda: None, until=None) -> tuple[int, str]:
    """Run a command line in a process of its own; return its exit status and what it printed as errors.

    `prepare` is called in it first. `until()` true, it gets Control-C.
    """
    errors = folder / "errors.txt"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for number, place in ((1, os.devnull), (2, errors)):
                os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # pytest has put others there
            signal.signal(signal.SIGINT, signal.default_int_handler)
            prepare()
            main(arguments)
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    while until and not until():
        time.sleep(0.01)
    if until:
        os.kill(child, signal.SIGINT)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), errors.read_text()


@pytest.fixture
def recipe(tmp_path):
    """Write a tiny recipe and return the arguments that train its stage 1."""
    (tmp_path / "tiny.yaml").write_text(dump(tiny_recipe(tmp_path / "run", "polydigits", *LONG)))
    return ["train", "vae", str(tmp_path / "tiny.yaml")]


def interrupt(tmp_path: Path, recipe: list[str]) -> tuple[int, str]:
    """Run a training, and Control-C once it has a line of figures."""
    log = tmp_path / "run" / "vae" / "metrics.jsonl"
    return run(tmp_path, *recipe, until=lambda: log.is_file() and log.read_text())


def test_control_c_saves_and_exits_with_130(tmp_path, recipe):
    status, errors = interrupt(tmp_path, recipe)
    assert status == 130
    assert errors.splitlines()[-1] == "mandorla: interrupted; the same command takes the work up again"
    assert step_of(tmp_path / "run") not in ("nothing", "vae 24")


def test_a_full_disk_is_one_line_and_harms_nothing(tmp_path, recipe):
    """No file may grow beyond a limit, as on a disk that is full: the state before it stays, and is gone on from."""
    interrupt(tmp_path, recipe)
    state = tmp_path / "run" / "vae" / "last.safetensors"
    before = state.read_bytes()

    def fill_the_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, resource.RLIM_INFINITY))

    status, errors = run(tmp_path, *recipe, prepare=fill_the_disk)
    assert status == 2
    lines = [line for line in errors.splitlines() if line.startswith("mandorla:")]
    assert len(lines) == 1 and "cannot be written" in lines[0] and "File too large" in lines[0], errors
    assert "Traceback" not in errors
    assert state.read_bytes() == before
    assert not list((tmp_path / "run").rglob("*.part"))
    assert run(tmp_path, *recipe)[0] == 0
    assert load_tensors(state)[1]["step"] == "24"


def test_two_commands_on_one_run_folder(tmp_path, recipe):
    (tmp_path / "run" / "vae").mkdir(parents=True)
    with locked(tmp_path / "run" / "vae"):
        status, errors = run(tmp_path, *recipe)
    assert status == 2 and "another command is writing here; wait for it, or stop it" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("stage", ["vae", "diffusion", "refiner"])
def test_a_training_that_is_refused_changes_nothing(copy_of, polydigits_run, stage):
    """Another has begun there and kept nothing so far: its settings, record and description are what it goes by."""
    run_folder = copy_of(polydigits_run)
    shutil.rmtree(run_folder / stage, ignore_errors=True)
    (run_folder / stage).mkdir()
    (run_folder / stage / "model.json").write_text("{}")
    if stage != "vae":
        (run_folder / stage / "model.json").write_text((polydigits_run / "diffusion" / "model.json").read_text())
    other = tiny_recipe(run_folder, "polydigits", "data.size=32" if stage == "vae" else f"{stage}.training.steps=3")
    before = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
    train = {"vae": train_vae, "diffusion": train_diffusion, "refiner": train_refiner}[stage]
    with locked(run_folder / stage), pytest.raises(MandorlaError, match="another command is writing here"):
        train(other)
    assert {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_one_line(tmp_path, recipe):
    tmp_path.chmod(0o500)
    status, errors = run(Path(os.environ.get("TMPDIR", ".")), *recipe)
    tmp_path.chmod(0o700)
    assert status == 2 and errors.count("\n") == 1


# ------------------------------------------------------------------------------------------------ a folder of others


HOSTILE = {
    "config.yaml": [
        "!!python/object/apply:os.system ['touch owned']\n",
        "run: .\ndata: !!python/object/new:os.system ['touch owned']\nvae: {}\ndiffusion: {}\n",
        "a: &a [x, x]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b, *b]\n",
    ],
    "vae/weights.safetensors": [
        pickle.dumps({"__reduce__": "owned"}),
        b"\xff" * 8 + b"{}",
        b"\x08" + bytes(7) + b"{}      ",
    ],
    "diffusion/weights.safetensors": [b"", b"\xff\xff\xff\x7f" + bytes(4)],
    "vae/model.json": [
        "{}",
        '{"modalities": 3}',
        '{"modalities": [{"name": "a", "channels": -1, "size": []}]}',
        "[" * 10**5,
    ],
    "intensity.json": ["{}", "[]", '{"view0": 3}'],
    "splits.json": ["{}", "[]", '{"train": 3}'],
    "latents/manifest.json": ["{}", '{"weights": 1}'],
    "diffusion/model.json": ["[]", '{"vae_weights": 3}'],
}


@pytest.mark.parametrize(("name", "content"), [(name, c) for name, all in HOSTILE.items() for c in all])
def test_a_hostile_run_folder_is_an_error_and_runs_nothing(
    copy_of, polydigits_run, monkeypatch, tmp_path, name, content
):
    """Whatever a run folder holds in the place of a file: MandorlaError, no code of it run, nothing written outside."""
    run_folder = copy_of(polydigits_run)
    (run_folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = sorted(tmp_path.rglob("*"))

    def use() -> None:
        model = mandorla.load(run_folder)
        model.sample(1, steps=1)
        model.data().test.batch([0])
        model.whitening  # noqa: B018

    with pytest.raises(MandorlaError) as error:
        use()
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "key", ["diffusion.network.depth", "diffusion.network.width", "vae.model.encoder_decoder.hidden"]
)
def test_networks_that_the_weights_do_not_fill_are_not_built(copy_of, polydigits_run, key):
    """A run folder cannot make its reader build until memory ends."""
    run_folder = copy_of(polydigits_run)
    config = yaml.safe_load((run_folder / "config.yaml").read_text())
    *outer, last = key.split(".")
    reduce(getitem, outer, config)[last] = 2**24  # of blocks: hours; of numbers: terabytes
    (run_folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(MandorlaError, match=f"does not fit {key.partition('.')[0]}.* train stage . again"):
        mandorla.load(run_folder).sample(1, steps=1)


def test_arrays_of_objects_are_refused(copy_of, polydigits_run):
    """An .npy may hold a pickle: it is not opened."""
    run_folder = copy_of(polydigits_run)
    np.save(run_folder / "latents" / "train-00000.npy", np.array([Owned()], dtype=object), allow_pickle=True)
    with pytest.raises(MandorlaError, match="is missing or damaged"):
        mandorla.load(run_folder).whitening  # noqa: B018


class Owned:
    """Fail the test where it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("code of a file was run",))


def test_paths_of_a_run_lead_nowhere_else(copy_of, polydigits_run, tmp_path):
    """What a run folder calls its run is not where later commands write."""
    run_folder = copy_of(polydigits_run)
    config = run_folder / "config.yaml"
    config.write_text(config.read_text().replace("run: .", f"run: {tmp_path / 'elsewhere'}", 1))
    files.sample(mandorla.load(run_folder), None, num=1, seed=0, steps=1)
    assert (run_folder / "samples").is_dir() and not (tmp_path / "elsewhere").exists()
