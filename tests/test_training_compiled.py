"""Networks whose kernels are fused: torch follows all of what is compiled, and the training stays the same one."""

import json
from functools import partial

import pytest
import torch
from tiny import signals_changes, tiny_recipe
from torch import nn

from mandorla.diffusion.training import train_diffusion
from mandorla.errors import MandorlaError
from mandorla.recipe import read_recipe
from mandorla.training import compiled
from mandorla.vae.training import train_vae


@pytest.fixture
def traced(monkeypatch):
    """Let torch trace what it compiles, whole or not at all, and run it as it is; yield what was compiled."""
    seen, compile_ = [], torch.compile

    def trace(method, dynamic):
        seen.append(f"{type(method.__self__).__name__}.{method.__name__}")
        return compile_(method, dynamic=dynamic, backend="eager", fullgraph=True)

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", trace)
    yield seen
    torch._dynamo.reset()


def train(run, fused: bool, *changes: str) -> list[list[str]]:
    """Train both stages and return their logs."""
    stages = {"vae": train_vae, "diffusion": train_diffusion}
    asked = [f"{stage}.training.compile={json.dumps(fused)}" for stage in stages]
    for begin in stages.values():
        begin(read_recipe("polydigits", [*changes, *asked]) if changes else tiny_recipe(run, "phantom", *asked))
    return [(run / stage / "metrics.jsonl").read_text().splitlines() for stage in stages]


def test_a_compiled_training_is_a_training(tmp_path, traced):
    plain = train(tmp_path / "plain", False)
    assert not traced
    assert train(tmp_path / "compiled", True) == plain
    names = ("features", "encode_shared", "encode_private", "decode")
    assert set(traced) == {*(f"Convolutional.{name}" for name in names), "Block.forward"}


def test_where_a_modality_is_missing_steps_of_stage_1_run_as_written(tmp_path, traced):
    """Every number of rows would be compiled anew."""
    graphs = torch._dynamo.utils.counters["stats"]
    logs = []
    for fused in (False, True):
        graphs.clear()
        logs.append(train(tmp_path / str(fused), fused, *signals_changes(tmp_path / str(fused), tmp_path)))
    assert logs[0] == logs[1]
    assert graphs["unique_graphs"] == 1, "the blocks of stage 2"


def test_what_is_compiled_is_named_by_its_class(traced):
    class Doubled(nn.Linear):
        compiled = ("twice",)

        def twice(self, x):
            return 2 * self(x)

    module = nn.Sequential(Doubled(2, 2), nn.Linear(2, 2))
    x = torch.ones(1, 2)
    before, kept = module[0].twice(x), list(module.state_dict())
    with compiled(module):
        assert traced == ["Doubled.twice"]
        assert torch.equal(module[0].twice(x), before)
        assert list(module.state_dict()) == kept
    assert "twice" not in vars(module[0])


def test_a_machine_that_cannot_compile_is_told_what_to_set(tmp_path, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    recipe = tiny_recipe(tmp_path / "run", "polydigits", "vae.training.compile=true")
    with pytest.raises(
        MandorlaError, match=r"cannot be compiled here \(.*no compiler.*\): set vae.training.compile to"
    ):
        train_vae(recipe)
    torch._dynamo.reset()
