"""Processes of one command: how they meet, that one speaks for all, and that none is left waiting."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import several
import torch
from several import Ended
from tiny import signals_changes

import mandorla.training
from mandorla import cli, processes
from mandorla.checkpoint import load_tensors
from mandorla.data.images import write_image
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.evaluate import gather, judges
from mandorla.evaluate.figures import fidelity
from mandorla.model import Mandorla
from mandorla.training import TrainerConfig
from mandorla.vae import encoding


def command(num: int, folder: Path, *arguments: str, before=lambda rank: None) -> list[Ended]:
    """Run the command line on `num` processes, each after `before(rank)`; the third has to end by itself too."""

    def work(rank: int) -> None:
        before(rank)
        cli.main(arguments)

    return several.together(num, folder, work)


def said(ended: list[Ended]) -> list[str]:
    return [line for one in ended for line in one.err.splitlines()]


def training(run: Path, *more: str) -> list[str]:
    """Return the arguments of a training on signals, which lie beside the run."""
    changes = signals_changes(run, run.parent, *more)
    others = ("diffusion.", "refiner.")
    return ["train", "vae", "polydigits", *(change for change in changes if not change.startswith(others))]


def at_step(step: int, act) -> None:
    """Call `act()` when the batch of a step is asked for."""
    indices = mandorla.training.batch_indices

    def watched(seed: int, at: int, *rest: int):
        if at == step:
            act()
        return indices(seed, at, *rest)

    mandorla.training.batch_indices = watched


def test_a_training_speaks_once_and_writes_each_latent_once(tmp_path):
    """Also that what three processes write is what one writes, of the same weights."""
    run, encoded = tmp_path / "run", tmp_path / "encoded"

    def before(rank: int) -> None:
        encode = encoding._encode

        def note(vae, dataset, indices, records):
            with encoded.open("a") as file:
                file.write(f"{dataset.batch(indices[:1]).ids[0]}\n")
            encode(vae, dataset, indices, records)

        encoding._MOST, encoding._PER_SHARD, encoding._encode = 16, 2, note

    ended = command(3, tmp_path, *training(run), before=before)
    assert [one.status for one in ended] == [0, 0, 0]
    assert "stage 1 (vae) is trained in" in ended[0].out
    assert not said(ended)
    assert [one.out for one in ended[1:]] == ["", ""]
    assert len(json.loads((run / "vae" / "environment.json").read_text())) == 1
    assert len(list((run / "vae" / "tensorboard").iterdir())) == 1
    samples = encoded.read_text().splitlines()
    assert len(samples) == len(set(samples)) > 3
    written = {path.name: path.read_bytes() for path in (run / "latents").iterdir()}
    shutil.rmtree(run / "latents")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "_MOST", 16)
        patch.setattr(encoding, "_PER_SHARD", 2)
        encoding.write_latents(run)
    assert {path.name: path.read_bytes() for path in (run / "latents").iterdir()} == written


def test_a_mistake_of_all_is_said_once(tmp_path):
    ended = command(3, tmp_path, "train", "vae", "nothing")
    assert [one.status for one in ended] == [2, 2, 2]
    (line,) = said(ended)
    assert "no recipe 'nothing'" in line
    ended = command(2, tmp_path, "train", "--no-such-option")
    assert [one.status for one in ended] == [2, 2]
    assert len(said(ended)) == 1


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_mistake_of_one_ends_all(tmp_path, culprit):
    def fail() -> None:
        raise MandorlaError("the disk of this one is full")

    def before(rank: int) -> None:
        if rank == culprit:
            at_step(2, fail)

    ended = command(3, tmp_path, *training(tmp_path / "run"), before=before)
    assert [one.status for one in ended] == [2, 2, 2]
    assert said(ended) == ["mandorla: the disk of this one is full"]


def test_a_warning_is_said_once(tmp_path):
    """Of two that all have, and one that the third has alone."""

    def before(rank: int) -> None:
        for step in (2, 3):
            at_step(step, lambda: warnings.warn("odd", MandorlaWarning, stacklevel=1))
        if rank == 2:
            at_step(4, lambda: warnings.warn("odder", MandorlaWarning, stacklevel=1))

    ended = command(3, tmp_path, *training(tmp_path / "run"), before=before)
    assert [one.status for one in ended] == [0, 0, 0]
    assert sorted(said(ended)) == ["mandorla: warning: odd", "mandorla: warning: odder"]


def test_one_that_is_killed_ends_all(tmp_path):
    def before(rank: int) -> None:
        if rank == 1:
            at_step(2, lambda: os.kill(os.getpid(), signal.SIGKILL))

    ended = command(3, tmp_path, *training(tmp_path / "run"), before=before)
    assert [one.status for one in ended] == [2, -signal.SIGKILL, 2], said(ended)
    (line,) = said(ended)
    assert "another process of this command has ended without a word; the same command takes the work up" in line


def test_control_c_at_one_stops_all_at_the_same_step(tmp_path):
    def before(rank: int) -> None:
        if rank == 1:
            at_step(3, lambda: os.kill(os.getpid(), signal.SIGINT))

    ended = command(2, tmp_path, *training(tmp_path / "run", "vae.training.checkpoint_every=100"), before=before)
    assert [one.status for one in ended] == [130, 130]
    assert said(ended) == ["mandorla: interrupted; the same command takes the work up again"]
    assert load_tensors(tmp_path / "run" / "vae" / "last.safetensors")[1]["step"] in {"2", "3"}


def test_what_cannot_be_divided_the_first_does_alone(tmp_path):
    ended = command(2, tmp_path, "--version")
    assert [one.status for one in ended] == [0, 0]
    assert [one.out.strip() for one in ended] == [mandorla.__version__, ""]
    ended = command(2, tmp_path, *training(tmp_path / "run"), "--sweep")
    assert [one.status for one in ended] == [2, 2]
    assert "--sweep and --ablate train on one process" in said(ended)[0]


def test_machines_that_do_not_share_the_folder_are_told(tmp_path):
    def before(rank: int) -> None:
        mandorla.checkpoint._find_state = lambda folder: ({}, {"step": str(rank), "best": "1", "waiting": "[]"})

    ended = command(2, tmp_path, *training(tmp_path / "run"), before=before)
    assert [one.status for one in ended] == [2, 2]
    (line,) = said(ended)
    assert "the machines see different states here: use a folder that they share" in line


def test_slurm_says_what_torchrun_would(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "x")  # so that what is set below is taken back
        monkeypatch.delenv(name)
    processes._read_slurm()
    assert "RANK" not in os.environ
    slurm = {
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": "gpu-b[07,09-10],cpu1",
        "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
        "SLURM_JOB_ID": "123456",
    }
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    processes._read_slurm()
    found = [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")]
    assert found == ["5", "8", "1", "4", "gpu-b07"]
    assert os.environ["MASTER_PORT"] == "23456"


def test_several_machines_need_a_place_to_meet():
    with pytest.raises(MandorlaError, match="need trainer.rendezvous=host:port"):
        processes.start(TrainerConfig(num_nodes=2), [])
    with pytest.raises(ValueError, match="rendezvous"):
        TrainerConfig(rendezvous="host")


def start(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "mandorla", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_the_command_starts_its_processes_itself(tmp_path):
    """Under torch's launcher, which says nothing of its own."""
    run = tmp_path / "run"
    process = start(*training(run, "trainer.devices=2"))
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert out.count("stage 1 (vae) is trained in") == 1
    assert load_tensors(run / "vae" / "last.safetensors")[1]["step"] == "6"
    assert json.loads((run / "vae" / "environment.json").read_text())[0]["machine"]["processes"] == 2


@pytest.mark.slow
def test_two_machines_meet(tmp_path):
    """Each is a command of its own that starts one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"trainer.rendezvous=127.0.0.1:{free.getsockname()[1]}"
    arguments = training(tmp_path / "run", "trainer.num_nodes=2", place)
    ended = [process.communicate() + (process.returncode,) for process in (start(*arguments), start(*arguments))]
    assert [(err, status) for _, err, status in ended] == [("", 0), ("", 0)]
    assert "".join(out for out, _, _ in ended).count("stage 1 (vae) is trained in") == 1
    assert json.loads((tmp_path / "run" / "vae" / "environment.json").read_text())[0]["machine"]["processes"] == 2


@pytest.mark.slow
def test_a_mistake_under_the_launcher_is_one_line(tmp_path):
    process = start(*training(tmp_path / "run", "trainer.devices=2", "vae.model.shared.stride=2"))
    _, err = process.communicate()
    assert process.returncode == 2
    (line,) = err.splitlines()
    assert "a shared map needs modalities of one size" in line


@pytest.mark.slow
def test_control_c_under_the_launcher(tmp_path):
    run = tmp_path / "run"
    process = start(*training(run, "trainer.devices=2", "vae.training.steps=100000"))
    while not (run / "vae" / "last.safetensors").is_file():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, "mandorla: interrupted; the same command takes the work up again\n")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def few_at_once(monkeypatch):
    """Let no more than six samples through the networks at once."""
    monkeypatch.setattr(Mandorla, "at_once", 6)


def test_samples_are_divided_and_the_same_bytes(polydigits_run, tmp_path, few_at_once):
    """Twenty: six, six, six and two, by three processes."""
    asked = ["sample", str(polydigits_run), "--num", "20", "--out"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*asked, str(tmp_path / "alone")])
    assert not stop.value.code
    drawn = tmp_path / "drawn"

    def before(rank: int) -> None:
        draw = Mandorla.sample

        def note(self, num, *, first, **more):
            with drawn.open("a") as file:
                file.write(f"{rank} {first} {num}\n")
            return draw(self, num, first=first, **more)

        Mandorla.sample = note

    ended = command(3, tmp_path, *asked, str(tmp_path / "together"), before=before)
    assert [one.status for one in ended] == [0, 0, 0], said(ended)
    assert sorted(drawn.read_text().splitlines()) == ["0 0 6", "0 18 2", "1 6 6", "2 12 6"]
    assert sum("written:" in one.out for one in ended) == 1
    assert files(tmp_path / "together") == files(tmp_path / "alone")
    assert len(files(tmp_path / "alone")) > 3 * 20
    again = command(2, tmp_path, *asked, str(tmp_path / "together"))
    assert [one.status for one in again] == [2, 2]
    (line,) = said(again)
    assert "together: exists already" in line


@pytest.mark.parametrize("kind", ["png", "npz"])
def test_translations_are_divided_and_the_same_bytes(polydigits_run, tmp_path, few_at_once, kind):
    """Of eleven pictures, three at a time, one cannot be read: that is said once, the others are there."""
    x = mandorla.load(polydigits_run).data().test.batch(range(11)).x["view0"].numpy()
    source = tmp_path / f"in.{kind}"
    if kind == "npz":
        np.savez(source, view0=x)
    else:
        source.mkdir()
        for number, image in enumerate(x):
            write_image(source / f"{number:02d}.png", image)
        (source / "07.png").write_bytes(b"no picture")
    asked = [
        "translate",
        str(polydigits_run),
        str(source),
        "--given",
        "view0",
        "--wanted",
        "view1",
        "--num-samples",
        "2",
    ]
    with pytest.raises(SystemExit) as stop:
        cli.main([*asked[:3], str(tmp_path / "alone"), *asked[3:]])
    ended = command(3, tmp_path, *asked[:3], str(tmp_path / "together"), *asked[3:])
    assert [one.status for one in ended] == [stop.value.code or 0] * 3 == [2 * (kind == "png")] * 3, said(ended)
    assert files(tmp_path / "together") == files(tmp_path / "alone")
    assert len(files(tmp_path / "alone")) > 2 * 10
    if kind == "png":
        (line,) = said(ended)
        assert "07.png" in line and "1 of 11 inputs failed" in line


def test_codes_of_files_are_the_same_bytes(polydigits_run, tmp_path, few_at_once):
    """Of eleven pictures, three at a time, one cannot be read: all processes know it, and one says so."""
    x = mandorla.load(polydigits_run).data().test.batch(range(11)).x["view0"].numpy()
    (tmp_path / "in").mkdir()
    for number, image in enumerate(x):
        write_image(tmp_path / "in" / f"{number:02d}.png", image)
    (tmp_path / "in" / "07.png").write_bytes(b"no picture")
    asked = ["encode", str(polydigits_run), str(tmp_path / "in")]
    with pytest.raises(SystemExit) as stop:
        cli.main([*asked, str(tmp_path / "alone"), "--given", "view0"])
    ended = command(3, tmp_path, *asked, str(tmp_path / "together"), "--given", "view0")
    assert [one.status for one in ended] == [stop.value.code] * 3 == [2] * 3, said(ended)
    assert files(tmp_path / "together") == files(tmp_path / "alone")
    (line,) = said(ended)
    assert "07.png" in line and "1 of 11 inputs failed; the others are there" in line
    with np.load(tmp_path / "together" / "latents.npz") as arrays:
        assert len(arrays["shared"]) == len(arrays["id_sample"]) == 10


def test_an_evaluation_is_divided_and_finds_the_same(polydigits_run, copy_of, tmp_path, few_at_once, monkeypatch):
    """Of 40 training samples, seven at a time, each of three has 14, 14 or 12; of few translations one has none."""
    run, read = copy_of(polydigits_run), tmp_path / "read"
    for module in (gather, fidelity):
        monkeypatch.setattr(module, "_CHUNK", 7)
    few = "num_train=40 num_test=20 num_residual=10 num_generated=25 num_translated=3 num_samples=2 judge_steps=3"
    asked = [*(f"evaluate.{change}" for change in few.split()), "--out"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", str(run), *asked, str(tmp_path / "alone")])
    assert not stop.value.code
    shutil.rmtree(run / "evaluate")  # the classifiers: trained by the first, found by the others

    def before(rank: int) -> None:
        encode, train = mandorla.engine.encode_batch, judges.train_judges

        def note(vae, x, present):
            with read.open("a") as file:
                file.write(f"{rank} {len(next(iter(x.values())))}\n")
            return encode(vae, x, present)

        def train_first(*arguments):
            assert rank == 0
            return train(*arguments)

        mandorla.engine.encode_batch, judges.train_judges = note, train_first

    ended = command(3, tmp_path, "evaluate", str(run), *asked, str(tmp_path / "together"), before=before)
    assert [one.status for one in ended] == [0, 0, 0], said(ended)
    assert not said(ended)
    assert [bool(one.out) for one in ended] == [True, False, False]
    found = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("alone", "together")]
    assert len(found[0]["records"]) > 50
    for name in ("records", "pictures", "settings", "changed"):
        assert found[0][name] == found[1][name]
    assert files(tmp_path / "alone" / "pictures") == files(tmp_path / "together" / "pictures")
    encoded = np.array([line.split() for line in read.read_text().splitlines()], int)
    shares = np.bincount(encoded[:, 0], encoded[:, 1]) / encoded[:, 1].sum()
    assert shares.max() < 0.5, shares


def test_a_machine_with_fewer_gpus_than_processes_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(mandorla.device, "world", lambda: 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(
        MandorlaError, match="4 processes, but 2 GPUs: start as many as there are, or set device to cpu"
    ):
        mandorla.device.choose_device("auto")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert mandorla.device.choose_device("auto") == torch.device("cuda", 0), "SLURM shows each process its own"
