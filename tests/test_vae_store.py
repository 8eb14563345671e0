"""Stage 1 on disk: weights that come back, and clear words where they do not fit."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from mandorla.checkpoint import built_for, load_tensors
from mandorla.errors import MandorlaError
from mandorla.vae.store import hash_tensors, load_vae


@pytest.mark.parametrize("fixture", ["polydigits_run", "phantom_run", "signals_run"])
def test_loaded_model_is_the_exported_one(fixture, request):
    run = request.getfixturevalue(fixture)
    vae, digest = load_vae(run)
    weights, _ = load_tensors(run / "vae" / "weights.safetensors")
    assert vae.state_dict().keys() == weights.keys()
    assert all(torch.equal(z, weights[name]) for name, z in vae.state_dict().items())
    assert digest == hash_tensors(weights)
    assert not vae.training
    assert not any(p.requires_grad for p in vae.parameters())


def test_modalities_come_back(signals_run):
    vae, _ = load_vae(signals_run)
    assert [(m.name, m.channels, m.size) for m in vae.modalities] == [("pressure", 1, (19,)), ("flow", 2, (11,))]


def test_hash_sees_names_shapes_types_and_values():
    x = {"a": torch.arange(6.0), "b": torch.ones(2)}
    others = [
        {"a": x["a"], "c": x["b"]},
        {"a": x["a"].view(2, 3), "b": x["b"]},
        {"a": x["a"].double(), "b": x["b"]},
        {"a": x["a"] + torch.tensor([0, 0, 0, 0, 0, 1e-6]), "b": x["b"]},
    ]
    assert len({hash_tensors(tensors) for tensors in (x, *others)}) == 5
    assert hash_tensors(dict(reversed(x.items()))) == hash_tensors(x)
    lying = x["a"].view(2, 3).T.contiguous().T
    assert hash_tensors({"a": lying}) == hash_tensors({"a": x["a"].view(2, 3)})


def test_mistakes(polydigits_run, copy_of, tmp_path):
    with pytest.raises(MandorlaError, match="is not a run folder"):
        load_vae(tmp_path)
    run = copy_of(polydigits_run)
    config = run / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("hidden: 16", "hidden: 24"))
    with pytest.raises(MandorlaError, match="does not fit vae.model in .*config.yaml: train stage 1 again"):
        load_vae(run)
    config.write_text(text)
    (run / "vae" / "weights.safetensors").unlink()
    with pytest.raises(MandorlaError, match="has no trained stage 1: run `mandorla train vae .*` first"):
        load_vae(run)


def test_what_other_threads_build_is_not_counted():
    """Several may load a run at once, as the page does."""
    with ThreadPoolExecutor(1) as other, built_for({"weight": torch.zeros(3)}):
        assert other.submit(lambda: nn.Linear(100, 100)).result().weight.shape == (100, 100)
        with pytest.raises(RuntimeError, match="more weights than there are in the file"):
            nn.Linear(100, 100)
