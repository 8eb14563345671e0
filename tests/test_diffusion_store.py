"""Stage 2 on disk: weights and whitening together, and whose latents they were trained on."""

import pytest
import torch

from mandorla.checkpoint import load_tensors
from mandorla.data.record import recorded_fingerprint
from mandorla.diffusion.store import belongs_to, load_diffusion, to_tensors
from mandorla.errors import MandorlaError
from mandorla.vae.latent_cache import open_latents
from mandorla.vae.store import load_vae


def test_loaded_is_what_was_exported(phantom_run):
    vae, weights = load_vae(phantom_run)
    diffusion, whitening = load_diffusion(phantom_run, vae.layout, weights)
    tensors, _ = load_tensors(phantom_run / "diffusion" / "weights.safetensors")
    again = to_tensors(diffusion, whitening)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(z, tensors[name]) for name, z in again.items())
    _, fitted = open_latents(phantom_run)
    assert all(torch.equal(z, fitted.std[name]) for name, z in whitening.std.items())
    assert not any(p.requires_grad for p in diffusion.parameters())
    assert belongs_to(phantom_run) == (weights, recorded_fingerprint(phantom_run))


def test_mistakes(polydigits_run, copy_of, tmp_path):
    assert belongs_to(tmp_path) is None
    run = copy_of(polydigits_run)
    vae, weights = load_vae(run)
    with pytest.raises(MandorlaError, match="of other weights than .* delete it and train stage 2 again"):
        load_diffusion(run, vae.layout, "0" * 64)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("width: 16", "width: 32"))
    with pytest.raises(MandorlaError, match="does not fit diffusion in .*config.yaml: train stage 2 again"):
        load_diffusion(run, vae.layout, weights)
