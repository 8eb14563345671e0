"""Networks whose kernels are fused: torch follows all of what is compiled, and the training stays the same one."""

import json
from functools import partial

import pytest
import torch
from tiny import tiny_recipe
from torch import nn

from mandorla.diffusion.training import train_diffusion
from mandorla.errors import MandorlaError
from mandorla.refiner.training import train_refiner
from mandorla.training import compile_methods
from mandorla.vae.training import train_vae


@pytest.fixture
def traced(monkeypatch):
    """Let torch trace what it compiles, whole or not at all, and run it as it is; yield what was compiled."""
    compiled, compile_ = [], torch.compile

    def trace(method, dynamic):
        compiled.append(f"{type(method.__self__).__name__}.{method.__name__}")
        return compile_(method, dynamic=dynamic, backend="eager", fullgraph=True)

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", trace)
    yield compiled
    torch._dynamo.reset()


def train(run, compiled: bool) -> list[list[str]]:
    """Train all stages and return their logs."""
    stages = {"vae": train_vae, "diffusion": train_diffusion, "refiner": train_refiner}
    changes = [f"{stage}.training.compile={json.dumps(compiled)}" for stage in stages]
    for begin in stages.values():
        begin(tiny_recipe(run, "phantom", *changes, "track=[]", "vae.training.precision=fp32"))
    return [(run / stage / "metrics.jsonl").read_text().splitlines() for stage in stages]


def test_a_compiled_training_is_a_training(tmp_path, traced):
    plain = train(tmp_path / "plain", False)
    assert not traced
    assert train(tmp_path / "compiled", True) == plain
    names = ("features", "encode_shared", "encode_private", "decode")
    assert set(traced) == {*(f"Convolutional.{name}" for name in names), "Block.forward", "UNet.forward"}


def test_what_is_compiled_is_named_by_its_class(traced):
    class Doubled(nn.Linear):
        compiled = ("twice",)

        def twice(self, x):
            return 2 * self(x)

    module = nn.Sequential(Doubled(2, 2), nn.Linear(2, 2))
    x = torch.ones(1, 2)
    before, kept = module[0].twice(x), list(module.state_dict())
    compile_methods(module)
    assert traced == ["Doubled.twice"]
    assert torch.equal(module[0].twice(x), before)
    assert list(module.state_dict()) == kept


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
