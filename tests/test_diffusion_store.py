"""Stage 2 on disk: weights and whitening together, and whose latents they were trained on."""

import pytest
import torch
from tiny import latents_of, stage_1

from mandorla.checkpoint import load_tensors
from mandorla.data.record import recorded_fingerprint
from mandorla.diffusion.store import belongs_to, load_diffusion, to_tensors
from mandorla.errors import MandorlaError
from mandorla.recipe import read_run


def test_loaded_is_what_was_exported(phantom_run):
    vae, weights = stage_1(phantom_run)
    diffusion, whitening = load_diffusion(phantom_run, read_run(phantom_run).diffusion, vae.layout, weights)
    tensors, _ = load_tensors(phantom_run / "diffusion" / "weights.safetensors")
    again = to_tensors(diffusion, whitening)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(z, tensors[name]) for name, z in again.items())
    _, fitted = latents_of(phantom_run)
    assert all(torch.equal(z, fitted.std[name]) for name, z in whitening.std.items())
    assert not any(p.requires_grad for p in diffusion.parameters())
    assert belongs_to(phantom_run) == (weights, recorded_fingerprint(phantom_run))


def test_mistakes(polydigits_run, copy_of, tmp_path):
    assert belongs_to(tmp_path) is None
    run = copy_of(polydigits_run)
    vae, weights = stage_1(run)
    with pytest.raises(MandorlaError, match="of other weights than .* delete it and train stage 2 again"):
        load_diffusion(run, read_run(run).diffusion, vae.layout, "0" * 64)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("width: 16", "width: 32"))
    with pytest.raises(MandorlaError, match="does not fit diffusion in .*config.yaml: train stage 2 again"):
        load_diffusion(run, read_run(run).diffusion, vae.layout, weights)
