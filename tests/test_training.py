"""The loop of both stages: keyed batches, moving average, and a resumed training that equals an uninterrupted one."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import interrupted, same_training
from torch import nn

import mandorla
from mandorla import checkpoint, training
from mandorla.checkpoint import load_tensors
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.training import Task, TrainingConfig, alone_in, batch_indices, fit, lr_schedule

X = torch.randn(50, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    """Return a network with what can go wrong in a resume: statistics, and weights that lie channels-last in memory."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.SiLU(), nn.Conv2d(3, 2, 3)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


class Denoising(Task):
    """The noise comes from the generator that `fit` keys; the loss of step `bad_step` is no number."""

    title, key, seed, num_samples = "test", "test.training", 3, len(X)

    def __init__(self, steps: int, bad_step: int):
        self.steps, self.bad_step = steps, bad_step

    def fetch(self, indices, step):
        return X[indices]

    def loss(self, module, inputs, progress):
        value = (module(inputs + torch.randn_like(inputs)) - inputs[..., 2:-2, 2:-2]).square().mean()
        if round(progress * self.steps) == self.bad_step:
            value = value * torch.nan
        return value, {"loss": value.detach(), "progress": torch.tensor(progress)}

    def validate(self, module):
        return {"loss": module(X).square().mean().item()}

    def picture(self, module):
        return b"picture"


def train(folder: Path, module: nn.Module | None = None, *, bad_step: int = -1, **settings) -> nn.Module:
    """Train to denoise."""
    module = module or network()
    config = TrainingConfig(**({"steps": 12, "batch_size": 8, "checkpoint_every": 4, "validate_every": 5} | settings))
    fit(Denoising(config.steps, bad_step), module, config, folder)
    return module


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumed_equals_uninterrupted(tmp_path, precision):
    """Bitwise: weights, moving average, optimiser, best weights and every figure."""
    train(tmp_path / "whole", precision=precision)
    for step in (6, 9, 11):
        with interrupted(step):
            train(tmp_path / "parts", precision=precision)
        assert load_tensors(tmp_path / "parts" / "last.safetensors")[1]["step"] == str(step // 4 * 4)
    train(tmp_path / "parts", precision=precision)
    assert same_training(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_is_that_of_the_arithmetic(tmp_path, precision):
    module, types = network(), set()
    module[0].register_forward_hook(lambda layer, x, y: types.add(y.dtype) if layer.training else None)
    train(tmp_path, module, precision=precision, steps=2)
    assert types == {torch.float32 if precision == "fp32" else torch.bfloat16}


def test_volumes_on_a_cpu_keep_float32(tmp_path):
    """torch's own gradients of wide three-dimensional convolutions are wrong there, as `trains_in_bf16` says."""
    module, types = network(), set()
    module.append(nn.Sequential(nn.Unflatten(1, (1, 2)), nn.Conv3d(1, 1, 1), nn.Flatten(1, 2)))
    module[0].register_forward_hook(lambda layer, x, y: types.add(y.dtype) if layer.training else None)
    train(tmp_path, module, precision="bf16", steps=2)
    assert types == {torch.float32}


def test_a_finished_training_is_left_alone(tmp_path):
    train(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    train(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times


_KILLED = """
import sys
from pathlib import Path
from test_training import train
train(Path(sys.argv[1]), steps=60, checkpoint_every=3, validate_every=7)
"""


def test_killed_training_goes_on_as_if_nothing_had_happened(tmp_path):
    """SIGKILL at a random moment: whatever was being written, the next call ends where an uninterrupted one does."""
    train(tmp_path / "whole", steps=60, checkpoint_every=3, validate_every=7)
    paths = [str(Path(mandorla.__file__).parents[1]), str(Path(__file__).parent)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "killed")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while not (tmp_path / "killed" / "last.safetensors").is_file():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.4))
    process.send_signal(signal.SIGKILL)
    process.wait()
    train(tmp_path / "killed", steps=60, checkpoint_every=3, validate_every=7)
    assert same_training(tmp_path / "killed", tmp_path / "whole")


def test_half_a_line_of_figures_is_dropped(tmp_path):
    train(tmp_path / "whole")
    with interrupted(9):
        train(tmp_path / "parts")
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "part": "tr')
    train(tmp_path / "parts")
    assert same_training(tmp_path / "parts", tmp_path / "whole")


def test_figures_are_means_since_the_last_line_and_parts_do_not_mix(tmp_path):
    train(tmp_path, steps=30, checkpoint_every=100, validate_every=25)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["part"]) for line in lines] == [
        (20, "train"),
        (25, "train"),
        (25, "val"),
        (30, "train"),
        (30, "val"),
    ]
    assert lines[0]["progress"] == pytest.approx(np.mean(range(20)) / 30)
    assert lines[1]["progress"] == pytest.approx(np.mean(range(20, 25)) / 30)
    assert set(lines[2]) == {"step", "part", "loss"}


def test_moving_average(tmp_path):
    """Exported are weights averaged with decay min(ema, (1 + k) / (10 + k)), and the statistics as they are."""
    seen, module = [], network()
    module.register_forward_pre_hook(lambda m, _: seen.append(m[0].weight.detach().clone()) if m.training else None)
    train(tmp_path, module, steps=6, ema=0.3, validate_every=6)
    average = seen[0]
    for k, weight in enumerate([*seen[1:], module[0].weight.detach()]):
        decay = min(0.3, (1 + k) / (10 + k))
        average = decay * average + (1 - decay) * weight
    exported, _ = load_tensors(tmp_path / "weights.safetensors")
    torch.testing.assert_close(exported["0.weight"], average, atol=1e-6, rtol=0)
    assert torch.equal(exported["1.running_mean"], module[1].running_mean)


def test_the_best_weights_are_kept(tmp_path, monkeypatch):
    """Validation gets worse after the second: the weights of that one stay."""
    saved = []
    for module in (training, checkpoint):
        monkeypatch.setattr(module, "save_tensors", lambda path, *rest, **more: saved.append(path.name))
    losses = iter([3.0, 1.0, 2.0, 5.0])
    module = network()
    task = Denoising(8, -1)
    monkeypatch.setattr(task, "validate", lambda module: {"loss": next(losses)})
    config = TrainingConfig(steps=8, batch_size=4, validate_every=2, checkpoint_every=100)
    fit(task, module, config, tmp_path)
    assert saved == ["weights.safetensors"] * 2 + ["last.safetensors"]


def test_a_batch_with_one_value_to_normalise_over_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(Denoising, "fetch", lambda task, indices, step: X[indices][:1, :, :1, :1])
    with pytest.raises(MandorlaError, match=r"^test, step 1: a batch has a single sample .* raise test.training.batch"):
        train(tmp_path, nn.Sequential(nn.BatchNorm2d(2)))


@pytest.mark.parametrize("bad_step", [0, 5, 11])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tmp_path, bad_step):
    with pytest.raises(
        MandorlaError, match=f"at step {bad_step + 1} .batch: training samples .* lower test.training.learning_rate"
    ) as error:
        train(tmp_path, bad_step=bad_step)
    state = tmp_path / "last.safetensors"
    assert state.is_file() == (bad_step >= 4) == ("keeps the last good state" in str(error.value))
    if state.is_file():
        tensors, metadata = load_tensors(state)
        assert int(metadata["step"]) <= bad_step
        assert all(z.isfinite().all() for z in tensors.values())


def test_an_infinite_gradient_stops_as_well(tmp_path):
    module = network()
    module[0].weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(MandorlaError, match="not finite at step 1 "):
        train(tmp_path, module)
    assert not (tmp_path / "last.safetensors").exists()


@pytest.mark.parametrize("bad_step", [0, 5, 10])
def test_the_batch_of_a_loss_that_is_not_finite_is_named(tmp_path, bad_step):
    rows = batch_indices(3, bad_step, 8, len(X))
    named = f"training samples {', '.join(map(str, rows[:5]))} and 3 more"
    with pytest.raises(MandorlaError, match=named):
        train(tmp_path, bad_step=bad_step, checkpoint_every=100, validate_every=100)


@pytest.fixture
def control_c():
    """Let Control-C mean what it does in a terminal, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("step", [2, 4, 7, 12])
def test_control_c_saves_the_step_and_goes_on_as_if_nothing_had_happened(tmp_path, control_c, step):
    """Bitwise, and also the lines of figures, whose means began before the interruption."""
    train(tmp_path / "whole", steps=30)
    module, seen = network(), []

    def interrupt(trained, x):
        seen.append(trained.training)
        if trained.training and sum(seen) == step:
            os.kill(os.getpid(), signal.SIGINT)

    module.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", module, steps=30)
    assert load_tensors(tmp_path / "parts" / "last.safetensors")[1]["step"] == str(step)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(tmp_path / "parts", steps=30)
    assert same_training(tmp_path / "parts", tmp_path / "whole")


def test_a_second_control_c_ends_at_once(tmp_path, control_c):
    module = network()

    def interrupt_twice(trained, x):
        for _ in range(2 * trained.training):
            os.kill(os.getpid(), signal.SIGINT)

    module.register_forward_pre_hook(interrupt_twice)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, module)
    assert not (tmp_path / "last.safetensors").exists()


def test_a_control_c_that_is_ignored_stays_so(tmp_path, control_c):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    module = network()
    module.register_forward_pre_hook(lambda trained, x: os.kill(os.getpid(), signal.SIGINT))
    train(tmp_path, module)
    assert load_tensors(tmp_path / "last.safetensors")[1]["step"] == "12"


@pytest.mark.parametrize("harm", ["cut", "flip", "text", "gone"])
def test_a_damaged_state_falls_back_to_the_one_before_it(tmp_path, harm):
    train(tmp_path / "whole")
    with interrupted(9):
        train(tmp_path / "parts")
    state = tmp_path / "parts" / "last.safetensors"
    content = bytearray(state.read_bytes())
    content[-100] ^= 1
    harmed = {"cut": content[:-50], "flip": content, "text": b"text"}
    state.unlink() if harm == "gone" else state.write_bytes(harmed[harm])
    if harm == "gone":  # as after a kill between the two renames
        train(tmp_path / "parts")
    else:
        with pytest.warns(MandorlaWarning, match=r"last.safetensors .*; going on from the one before it, step 4"):
            train(tmp_path / "parts")
    assert same_training(tmp_path / "parts", tmp_path / "whole")


def test_two_damaged_states_are_named(tmp_path):
    with interrupted(9):
        train(tmp_path)
    for name in ("last.safetensors", "previous.safetensors"):
        (tmp_path / name).write_bytes(b"text")
    with pytest.raises(MandorlaError, match="previous.safetensors cannot be read .*: delete"):
        train(tmp_path)


def raise_(error: Exception):
    raise error


@pytest.mark.parametrize(
    "fail",
    [
        lambda: torch.empty(2**50),  # the allocator's own words
        lambda: raise_(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
        lambda: np.empty(2**50),
    ],
)
def test_a_lack_of_memory_names_the_key_to_lower(tmp_path, fail):
    module = network()
    module.register_forward_pre_hook(lambda m, _: fail())
    with pytest.raises(MandorlaError, match=r"step 1: lower test.training.batch_size \(now 8\)"):
        train(tmp_path, module)


def test_other_failures_stay_what_they_are(tmp_path):
    module = network()
    module.register_forward_pre_hook(lambda m, _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, module)


def test_batches_pass_over_all_samples():
    seen = np.concatenate([batch_indices(5, step, 16, 50) for step in range(25)])
    turns = seen.reshape(8, 50)
    for turn in turns:
        assert sorted(turn) == list(range(50))
    assert not (turns[0] == turns[1]).all()
    assert not (batch_indices(5, 0, 16, 50) == batch_indices(6, 0, 16, 50)).all()
    assert sorted(batch_indices(0, 3, 256, 20)) == list(range(20)), "a batch is never larger than the data"


def test_lr_schedule():
    steps = np.linspace(0, 1, 1001)[:-1]
    rates = np.array([lr_schedule(p, 0.1) for p in steps])
    assert 0 < rates[0] < 0.02
    assert rates.argmax() == 100
    assert rates.max() == pytest.approx(1, abs=0.01)
    assert (np.diff(rates[:100]) > 0).all()
    assert (np.diff(rates[100:]) < 0).all()
    assert lr_schedule(1.0, 0.1) == pytest.approx(0)
    assert lr_schedule(0.0, 0.0) == 1


def test_a_damaged_line_of_figures_does_not_stop_a_resumed_training(tmp_path):
    train(tmp_path / "whole")
    with pytest.raises(MandorlaError, match="not finite at step 9"):
        train(tmp_path / "half", bad_step=8, validate_every=3)
    log = tmp_path / "half" / "metrics.jsonl"
    log.write_text("junk}\n{}\n" + log.read_text())
    train(tmp_path / "half")
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps[-1] == 12


def test_a_finished_training_without_weights_says_so(tmp_path):
    train(tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(MandorlaError, match="weights.safetensors is missing: restore it, or delete"):
        train(tmp_path)


def test_threads_are_those_of_the_attempt_that_was_kept(tmp_path):
    """Nothing was kept of the first one: whoever goes on uses the number of the second, and sums in its order."""
    before, seen = torch.get_num_threads(), []
    module = network()
    module.register_forward_pre_hook(lambda m, _: seen.append(torch.get_num_threads()))
    try:
        for threads, step in ((3, 2), (2, 9)):
            torch.set_num_threads(threads)
            with interrupted(step):
                train(tmp_path)
        torch.set_num_threads(1)
        train(tmp_path, module)
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {2}
    entries = json.loads((tmp_path / "environment.json").read_text())
    assert [entry["machine"]["threads"] for entry in entries] == [2, 2]


def test_the_state_of_another_network_is_named(tmp_path):
    train(tmp_path)
    with pytest.raises(MandorlaError, match="last.safetensors is of another training: restore it, or delete"):
        train(tmp_path, nn.Sequential(nn.Conv2d(2, 2, 5)))


def test_two_trainings_do_not_share_a_folder(tmp_path):
    with alone_in(tmp_path), pytest.raises(MandorlaError, match="another command is writing here"), alone_in(tmp_path):
        pass
