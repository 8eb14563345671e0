"""Steps that are replayed: what a graph leaves is what the steps as they are leave. Without a GPU, of a stand-in."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from tiny import tiny_recipe
from torch import nn

from mandorla.data import load_data
from mandorla.errors import MandorlaError
from mandorla.replay import Replay
from mandorla.vae.training import fit_vae


class StandIn:
    """Stand for a CUDA graph: compute again what was recorded, and write it to where the recorded results lie."""

    made = 0

    def __init__(self):
        StandIn.made += 1
        self.replays = 0

    def replay(self):
        self.replays += 1
        replay, kept = self.of, list(self.of.gradients)
        for name, z in replay._run(replay.work, replay.inputs).items():
            replay.values[name].copy_(z)
        for place, parameter in zip(kept, replay.parameters, strict=True):
            if place is not None:
                place.copy_(parameter.grad)
            parameter.grad = place


@pytest.fixture
def stand_in(monkeypatch):
    """Let graphs be recorded on a CPU."""

    @contextmanager
    def graph(recorded, capture_error_mode):
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", StandIn)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    StandIn.made = 0


def replay_of(module: nn.Module) -> Replay:
    def work(inputs):
        value = (module(inputs[0]["x"]) * inputs[0]["x"]).square().mean()
        value.backward()
        return {"loss": value.detach()}

    replay = Replay(module.parameters(), "vae.training.cuda_graph")
    replay.work = work
    return replay


def take(replay: Replay, step: int, kind: object) -> tuple[float, torch.Tensor]:
    if replay.graph is not None:
        replay.graph.of = replay
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
    loss = replay(replay.work, ({"x": x},), kind)["loss"]
    return loss, replay.parameters[0].grad.clone()


@pytest.fixture
def module():
    torch.manual_seed(0)
    return nn.Linear(4, 4)


def record(replay: Replay, kind: object) -> None:
    """Take steps until the next one is replayed from a graph."""
    for step in range(3):
        take(replay, step, kind)
    assert replay.graph is None
    replay._record(replay.work, ({"x": torch.zeros(6, 4)},))


def test_replayed_steps_leave_what_steps_leave(stand_in, module):
    """Also after a step of another kind in between, and what was returned before stays as it is."""
    replay, plain = replay_of(module), replay_of(module)
    record(replay, "whole")
    earlier = []
    for step, kind in enumerate(["whole", "whole", None, "whole", None, None, "whole"]):
        loss, gradient = take(replay, step, kind)
        expected, of_plain = take(plain, step, None)
        assert torch.equal(loss, expected)
        assert torch.equal(gradient, of_plain)
        earlier.append((loss, expected))
    assert replay.graph.replays == 4
    assert StandIn.made == 1
    assert all(torch.equal(*pair) for pair in earlier)


def test_another_kind_is_recorded_anew(stand_in, module):
    replay = replay_of(module)
    record(replay, "agreement")
    take(replay, 0, "agreement")
    first = replay.graph
    record(replay, "all terms")
    assert replay.graph is not first


def test_another_shape_is_another_kind(stand_in, module):
    replay = replay_of(module)
    record(replay, "whole")
    replay(replay.work, ({"x": torch.zeros(1, 4)},), "whole")
    assert replay.graph is None and not replay.gradients, "and what was recorded is let go of"


def test_what_asks_for_a_value_names_the_setting(stand_in, module, monkeypatch):
    replay = replay_of(module)
    for step in range(3):
        take(replay, step, "whole")

    def refuse(inputs):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    replay.work = refuse
    with pytest.raises(MandorlaError, match=r"\(operation not permitted when stream is capturing\).* set vae.training"):
        take(replay, 3, "whole")


def test_the_cause_is_named_not_how_the_recording_ended(module, monkeypatch):
    @contextmanager
    def graph(recorded, capture_error_mode):
        try:
            yield
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", StandIn)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    replay = replay_of(module)
    for step in range(3):
        take(replay, step, "whole")
    replay.work = lambda inputs: (_ for _ in ()).throw(RuntimeError("the cause"))
    with pytest.raises(MandorlaError, match="the cause"):
        take(replay, 3, "whole")


def test_memory_that_does_not_suffice_is_no_matter_of_graphs(stand_in, module):
    replay = replay_of(module)
    for step in range(3):
        take(replay, step, "whole")

    def fill(inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    replay.work = fill
    with pytest.raises(torch.OutOfMemoryError):
        take(replay, 3, "whole")


SETTINGS = {  # of stage 1 that run other kernels
    "vectors": {},
    "maps": {"vae.model.shared.stride": 4, "vae.model.private.stride": 4, "vae.loss.alignment_weight": 0.1},
    "laplace": {"vae.loss.likelihood": "laplace", "vae.loss.decoder_std": "null", "vae.loss.private_dropout": 0.5},
}


@pytest.mark.gpu
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_replayed_training_is_a_training(tmp_path, settings, missing):
    """Also with a batch in between in which something is missing."""
    found = []
    for graph in ("true", "false"):
        changes = [f"{key}={value}" for key, value in settings.items()] + [f"vae.training.cuda_graph={graph}"]
        recipe = tiny_recipe(tmp_path / graph, "phantom", *changes, "vae.training.steps=16", "device=auto")
        splits = load_data(recipe.data, recipe.seed)
        if missing:
            whole = splits.train.batch

            def batch(indices, whole=whole):
                drawn = whole(indices)
                if 3 in indices:
                    drawn.present["t1"] = torch.as_tensor(np.asarray(indices) != 3)
                return drawn

            splits.train.batch = batch
        fit_vae(recipe, splits)
        lines = (tmp_path / graph / "vae" / "metrics.jsonl").read_text().splitlines()
        found.append([json.loads(line)["loss"] for line in lines])
    assert found[0] == pytest.approx(found[1], rel=1e-2)


@pytest.mark.gpu
def test_a_graph_leaves_what_steps_leave():
    module = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Dropout(0.5), nn.Linear(32, 8)).cuda()

    def work(inputs):
        value = (module(inputs[0]["x"]) - torch.randn_like(inputs[0]["x"])).square().mean()
        value.backward()
        return {"loss": value.detach()}

    found = []
    for kind in ("whole", None):
        replay, losses = Replay(module.parameters()), []
        for step in range(8):
            torch.manual_seed(step)
            losses.append(replay(work, ({"x": torch.full((16, 8), step / 8, device="cuda")},), kind)["loss"])
        assert (replay.graph is None) == (kind is None)
        found.append([*losses, *(parameter.grad.clone() for parameter in module.parameters())])
    for graphed, plain in zip(*found, strict=True):
        torch.testing.assert_close(graphed, plain)
