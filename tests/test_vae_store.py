"""Stage 1 on disk: weights that come back, and clear words where they do not fit."""

import pytest
import torch
from tiny import stage_1

from mandorla.checkpoint import hash_tensors, load_tensors
from mandorla.errors import MandorlaError


@pytest.mark.parametrize("fixture", ["polydigits_run", "phantom_run", "signals_run"])
def test_loaded_model_is_the_exported_one(fixture, request):
    run = request.getfixturevalue(fixture)
    vae, digest = stage_1(run)
    weights, _ = load_tensors(run / "vae" / "weights.safetensors")
    assert vae.state_dict().keys() == weights.keys()
    assert all(torch.equal(z, weights[name]) for name, z in vae.state_dict().items())
    assert digest == hash_tensors(weights)
    assert not vae.training
    assert not any(p.requires_grad for p in vae.parameters())


def test_modalities_come_back(signals_run):
    vae, _ = stage_1(signals_run)
    assert [(m.name, m.channels, m.size) for m in vae.modalities] == [("pressure", 1, (19,)), ("flow", 2, (11,))]


def test_mistakes(polydigits_run, copy_of, tmp_path):
    with pytest.raises(MandorlaError, match="is not a run folder"):
        stage_1(tmp_path)
    run = copy_of(polydigits_run)
    config = run / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("hidden: 16", "hidden: 24"))
    with pytest.raises(MandorlaError, match="does not fit vae.model in .*config.yaml: train stage 1 again"):
        stage_1(run)
    config.write_text(text)
    (run / "vae" / "weights.safetensors").unlink()
    with pytest.raises(MandorlaError, match="has no trained stage 1: run `mandorla train vae .*` first"):
        stage_1(run)
