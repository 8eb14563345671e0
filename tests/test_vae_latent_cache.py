"""The cache between the stages: it holds what the encoder gives, for every sample, and knows whose it is."""

import json
import shutil

import numpy as np
import pytest
import torch
from tiny import write_scans

import mandorla
from mandorla.config import load_settings
from mandorla.diffusion.training import train_diffusion
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.latents import Latents
from mandorla.recipe import Recipe
from mandorla.training import load_tensors, save_tensors
from mandorla.vae import latent_cache
from mandorla.vae.latent_cache import Encoded, open_latents, write_latents

RUNS = ["polydigits_run", "phantom_run", "signals_run"]


@pytest.mark.parametrize("fixture", RUNS)
@pytest.mark.parametrize("part", ["train", "val"])
def test_latents_are_what_the_model_encodes(fixture, part, request):
    run = request.getfixturevalue(fixture)
    model, cached = mandorla.load(run), open_latents(run)[0][part]
    dataset = getattr(model.data(), part)
    assert len(cached) == len(dataset)
    rows = np.arange(len(dataset))[::-3]
    batch, encoded = dataset.batch(rows), cached.batch(rows)
    latents = model.encode(batch.x, batch.present)
    assert encoded.latents.components.keys() == latents.components.keys() == model.vae.layout.shapes.keys()
    for name, z in latents.components.items():
        torch.testing.assert_close(encoded.latents.components[name], z, atol=1e-5, rtol=0)
    for name, present in batch.present.items():
        assert torch.equal(encoded.present[name], present)
        assert (encoded.std[name][present] > 0).all()
        assert (encoded.std[name][~present] == 0).all()


@pytest.mark.parametrize("fixture", RUNS)
def test_whitening_is_that_of_numpy_over_the_whole_training_set(fixture, request):
    run = request.getfixturevalue(fixture)
    parts, whitening = open_latents(run)
    everything = list(parts["train"].drawn())
    for name in parts["train"].layout.shapes:
        z = np.concatenate([components[name][given[name]].numpy() for components, given in everything])
        axes = tuple(axis for axis in range(z.ndim) if axis != 1)
        np.testing.assert_allclose(whitening.mean[name].flatten(), z.mean(axes, dtype=float), atol=1e-6)
        np.testing.assert_allclose(whitening.std[name].flatten(), z.std(axes, dtype=float), rtol=1e-5)


def test_whitening_counts_the_spread_of_the_posterior(polydigits_run):
    """Law of total variance: that of the means and the mean of the variances, up to the error of one draw."""
    parts, whitening = open_latents(polydigits_run)
    encoded = parts["train"].batch(np.arange(200))
    for name, mean in encoded.latents.private.items():
        variance = mean.var(0, correction=0) + encoded.std[name].square().mean(0)
        torch.testing.assert_close(whitening.std[name].square(), variance, rtol=0.5, atol=0)
        assert (whitening.std[name].square() > 2 * mean.var(0)).any()


def test_drawn_does_not_touch_the_generator_and_repeats(polydigits_run):
    part = open_latents(polydigits_run)[0]["train"]
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = (next(part.drawn())[0] for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_draw_is_from_the_posterior():
    count = 50_000
    torch.manual_seed(0)
    latents = Latents(torch.full((count, 1), 0.5), {"t1": torch.full((count, 2), 3.0)})
    drawn = Encoded(latents, {"t1": torch.tensor([0.0, 2.0]).expand(count, 2)}, {}).draw()
    assert (drawn["shared"] == 0.5).all(), "the shared code has no spread"
    assert (drawn["t1"][:, 0] == 3).all()
    assert drawn["t1"][:, 1].mean().item() == pytest.approx(3, abs=4 * 2 / count**0.5)
    assert drawn["t1"][:, 1].std().item() == pytest.approx(2, rel=4 / (2 * count) ** 0.5)


def test_written_once_and_again_when_the_weights_changed(polydigits_run, copy_of):
    run = copy_of(polydigits_run)
    manifest = run / "latents" / "manifest.json"
    written = manifest.stat().st_mtime_ns
    write_latents(run)
    assert manifest.stat().st_mtime_ns == written, "nothing to do"
    weights, _ = load_tensors(run / "vae" / "weights.safetensors")
    name = next(name for name in weights if name.endswith("read_shared.1.bias") or "read_shared" in name)
    save_tensors(run / "vae" / "weights.safetensors", weights | {name: weights[name] + 1})
    with pytest.raises(MandorlaError, match="was made by other weights than .* run `mandorla encode"):
        open_latents(run)
    before = json.loads(manifest.read_text())["weights"]
    write_latents(run)
    assert json.loads(manifest.read_text())["weights"] != before
    open_latents(run)


def test_made_anew_of_other_data(scans_run, tmp_path, copy_of):
    """Images that change in place: the run keeps its intensity, its cache is refused until it is that of the data."""
    run = copy_of(scans_run)
    write_scans(tmp_path)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(scans_run.parent / "scans"), str(tmp_path)))
    kept, manifest = (run / "intensity.json").read_text(), run / "latents" / "manifest.json"
    before = manifest.read_text()
    write_latents(run)
    assert manifest.read_text() == before, "the same data at another place"
    write_scans(tmp_path, brightness=500)
    with pytest.warns(MandorlaWarning, match="hold other images than when this run began"):
        mandorla.load(run).data()
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.warns(MandorlaWarning, match="mandorla encode"),
        pytest.raises(KeyboardInterrupt),
    ):
        patch.setattr(latent_cache, "_write_part", _stop)
        write_latents(run)
    with pytest.raises(MandorlaError, match="was made of other data than the run's: run `mandorla encode"):
        open_latents(run)
    write_latents(run)
    assert json.loads(manifest.read_text())["data"] != json.loads(before)["data"]
    assert (run / "intensity.json").read_text() == kept
    open_latents(run)
    recipe = load_settings(Recipe, path=config)
    with pytest.raises(MandorlaError, match="on the latents of another stage 1 or of other data"):
        train_diffusion(recipe.model_copy(update={"run": str(run)}))


def test_the_cache_of_another_run_is_refused(polydigits_run, scans_run, copy_of):
    run = copy_of(scans_run)
    manifest = run / "latents" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"data": "0"}))
    with pytest.raises(MandorlaError, match="was made of other data"):
        open_latents(run)


def _stop(*_):
    raise KeyboardInterrupt


def test_an_interrupted_encoding_leaves_nothing_under_the_name(polydigits_run, copy_of, monkeypatch):
    run = copy_of(polydigits_run)
    shutil.rmtree(run / "latents")

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(latent_cache.Whitening, "fit", stop)
        write_latents(run)
    assert not (run / "latents").exists()
    with pytest.raises(MandorlaError, match="has no latents: run `mandorla encode"):
        open_latents(run)
    write_latents(run)
    assert len(open_latents(run)[0]["train"]) == 200
    assert not list(run.glob(".latents*"))


@pytest.mark.parametrize("content", [None, b"", b"half", b"other length"])
def test_damaged_latents_are_named(polydigits_run, copy_of, content):
    run = copy_of(polydigits_run)
    file = run / "latents" / "train" / "view0.npy"
    if content is None:
        file.unlink()
    elif content == b"other length":
        shutil.copy(run / "latents" / "val" / "view0.npy", file)
    else:
        file.write_bytes(content)
    with pytest.raises(MandorlaError, match="latents/train is damaged .* delete .*latents and run `mandorla encode"):
        open_latents(run)


def test_a_failure_while_encoding_leaves_nothing(polydigits_run, copy_of, monkeypatch):
    run = copy_of(polydigits_run)
    shutil.rmtree(run / "latents")
    monkeypatch.setattr(latent_cache, "save_tensors", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_latents(run)
    assert not [path.name for path in run.iterdir() if "latents" in path.name]
