"""Stage 2 on the latents of a run: every mode trains, resumes exactly, and refuses a stage 1 that is not its own."""

import json
import shutil

import pytest
import torch
from tiny import interrupted, same_training, signals_recipe, tiny_recipe

import mandorla
from mandorla.checkpoint import load_tensors, save_tensors
from mandorla.diffusion.model import Diffusion
from mandorla.diffusion.training import train_diffusion
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.vae.encoding import write_latents
from mandorla.vae.training import train_vae


def without_stage_2(run, copy_of):
    run = copy_of(run)
    shutil.rmtree(run / "diffusion")
    return run


@pytest.mark.parametrize("mode", ["joint", "conditional", "private"])
@pytest.mark.parametrize("name", ["polydigits", "phantom"])
def test_every_mode_trains_and_samples(name, mode, request, copy_of):
    run = without_stage_2(request.getfixturevalue(f"{name}_run"), copy_of)
    train_diffusion(tiny_recipe(run, name, f"diffusion.mode={mode}"))
    assert len(list((run / "diffusion" / "pictures").iterdir())) == 1
    model = mandorla.load(run)
    assert model.diffusion.config.mode == mode
    samples = model.sample(3)
    for m in model.modalities:
        assert samples.x[m.name].shape == (3, *m.shape)
        assert samples.x[m.name].isfinite().all()
        assert 0 <= samples.x[m.name].min() <= samples.x[m.name].max() <= 1
    more, other = model.sample(5), model.sample(3, seed=1)
    for part, z in samples.latents.components.items():
        torch.testing.assert_close(more.latents.components[part][:3], z, atol=5e-5, rtol=0)
        assert not torch.allclose(other.latents.components[part], z, atol=1e-3)
    seen, wanted = (m.name for m in model.modalities[:2])
    assert model.translate({seen: samples.x[seen]}, [wanted])[wanted].isfinite().all()


@pytest.mark.parametrize(
    "changes",
    [
        ["diffusion.sampling.sampler=sde"],
        ["diffusion.mode=conditional", "diffusion.labels=[digit]", "diffusion.sampling.guidance=1.5"],
    ],
)
def test_any_way_of_sampling_can_be_trained_with(polydigits_run, copy_of, changes):
    """Pictures are drawn on the way, without labels."""
    run = copy_of(polydigits_run)
    shutil.rmtree(run / "diffusion")
    train_diffusion(tiny_recipe(run, "polydigits", *changes))
    assert list((run / "diffusion").glob("*.png")) or list((run / "diffusion").rglob("*.png"))
    assert mandorla.load(run).sample(2).x["view0"].isfinite().all()


def test_stage_2_learns_from_whitened_draws(polydigits_run, copy_of, monkeypatch):
    """Every channel has mean 0 and standard deviation 1 over the training set, within what one draw of 200 allows."""
    run, seen = without_stage_2(polydigits_run, copy_of), []

    def spy(self, data, *others):
        seen.append({name: z.clone() for name, z in data.items()})
        return loss(self, data, *others)

    loss = Diffusion.loss
    monkeypatch.setattr(Diffusion, "loss", spy)
    train_diffusion(tiny_recipe(run, "polydigits", "diffusion.training={steps: 2, batch_size: 200}"))
    for name, z in seen[0].items():
        torch.testing.assert_close(z.mean(0), torch.zeros(z.shape[1]), atol=4 * (2 / 200) ** 0.5, rtol=0)
        torch.testing.assert_close(z.std(0), torch.ones(z.shape[1]), atol=0.3, rtol=0)
        fresh = not torch.equal(z.sort(0).values, seen[1][name].sort(0).values)
        assert fresh == (name != "shared"), "private parts are drawn anew in every step"


@pytest.mark.parametrize("name", ["polydigits", "phantom"])
def test_resumed_equals_uninterrupted(name, request, copy_of):
    whole = request.getfixturevalue(f"{name}_run")
    run = without_stage_2(whole, copy_of)
    with interrupted(5):
        train_diffusion(tiny_recipe(run, name))
    train_diffusion(tiny_recipe(run, name))
    assert same_training(run / "diffusion", whole / "diffusion")


def test_missing_modalities_and_tiny_validation_sets(tmp_path):
    """Nine samples for validation, fewer than a picture shows, and a component that a third of the samples lack."""
    recipe = signals_recipe(tmp_path / "run", tmp_path, "diffusion.mode=conditional")
    train_vae(recipe)
    train_diffusion(recipe)
    assert mandorla.load(tmp_path / "run").sample(2).x["flow"].isfinite().all()
    small = tiny_recipe(tmp_path / "small", "polydigits", "data.num_val=3", "diffusion.mode=private")
    train_vae(small)
    train_diffusion(small)


def test_without_stage_1(tmp_path):
    with pytest.raises(MandorlaError, match="holds no stage 1: run `mandorla train vae` .* first"):
        train_diffusion(tiny_recipe(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    recipe = tiny_recipe(tmp_path / "begun")
    with interrupted(1):
        train_vae(recipe)
    with pytest.raises(MandorlaError, match="has no trained stage 1: run `mandorla train vae .*` first"):
        train_diffusion(recipe)
    assert not (tmp_path / "begun" / "diffusion").exists()


def test_latents_of_other_weights(polydigits_run, copy_of):
    run = without_stage_2(polydigits_run, copy_of)
    shutil.rmtree(run / "latents")
    with pytest.raises(MandorlaError, match="has no latents, or not all of them: run `mandorla encode"):
        train_diffusion(tiny_recipe(run))
    write_latents(run)
    manifest = run / "latents" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"weights": "0"}))
    with pytest.raises(MandorlaError, match="was made by other weights"):
        train_diffusion(tiny_recipe(run))
    assert not (run / "diffusion").exists()


def test_stage_1_trained_again(polydigits_run, copy_of):
    """Stage 2 belongs to one stage 1: neither training goes on nor are samples drawn after another has come."""
    run = copy_of(polydigits_run)
    shutil.rmtree(run / "vae")
    train_vae(tiny_recipe(run, "polydigits", "vae.training.learning_rate=1e-3"))
    with pytest.raises(MandorlaError, match="latents of another stage 1 or of other data, .*: delete it to train"):
        train_diffusion(tiny_recipe(run, "polydigits", "vae.training.learning_rate=1e-3"))
    model = mandorla.load(run)
    model.encode({"view0": torch.rand(1, 3, 24, 24)})
    with pytest.raises(MandorlaError, match="trained on latents of other weights"):
        model.sample(1)
    shutil.rmtree(run / "diffusion")
    train_diffusion(tiny_recipe(run, "polydigits", "vae.training.learning_rate=1e-3"))
    assert len(mandorla.load(run).sample(1).latents) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("diffusion.mode=private", "diffusion.mode=joint, not private"),
        ("diffusion.training.steps=7", "diffusion.training.steps=6, not 7"),
        ("seed=1", "seed=0, not 1"),
    ],
)
def test_a_run_is_not_shared_by_two_settings(polydigits_run, copy_of, change, message):
    with pytest.raises(MandorlaError, match=f"was begun with {message}: choose another run folder, or delete"):
        train_diffusion(tiny_recipe(copy_of(polydigits_run), "polydigits", change))


def test_settings_of_stage_1_stay_those_of_the_run(polydigits_run, copy_of):
    """The recipe of stage 2 may say other things about stage 1: what the run was begun with is what holds."""
    run = without_stage_2(polydigits_run, copy_of)
    with pytest.warns(MandorlaWarning, match="begun with .*: stage 2 follows what was trained") as warned:
        train_diffusion(tiny_recipe(run, "polydigits", "vae.training.steps=99", "data.num_train=1000"))
    assert "num_train=200, not 1000" in str(warned[0].message) and "steps=6, not 99" in str(warned[1].message)
    recipe = mandorla.load(run).recipe
    assert (recipe.vae.training.steps, recipe.data.num_train) == (6, 200)


def test_weights_hold_their_whitening(polydigits_run, copy_of):
    """Sampling needs no latents in mode joint: the statistics lie with the weights."""
    run = copy_of(polydigits_run)
    expected = mandorla.load(run).sample(2).x["view0"]
    shutil.rmtree(run / "latents")
    assert torch.equal(mandorla.load(run).sample(2).x["view0"], expected)
    path = run / "diffusion" / "weights.safetensors"
    tensors, _ = load_tensors(path)
    save_tensors(path, tensors | {name: z + 1 for name, z in tensors.items() if name.startswith("whitening.mean")})
    assert not torch.allclose(mandorla.load(run).sample(2).x["view0"], expected)


def test_a_weaker_network_is_trained_first(polydigits_run, copy_of):
    """For its share of the steps, from the same start; the stronger one is what it would be without."""
    run = without_stage_2(polydigits_run, copy_of)
    settings = ["diffusion.weak_share=0.5", "diffusion.sampling.autoguidance=2.0"]
    with interrupted(2):
        train_diffusion(tiny_recipe(run, "polydigits", *settings))
    assert not (run / "diffusion" / "weights.safetensors").exists()
    train_diffusion(tiny_recipe(run, "polydigits", *settings))
    assert same_training(run / "diffusion", polydigits_run / "diffusion")
    lines = (run / "diffusion" / "weak" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 3
    model = mandorla.load(run)
    names = dict(model.diffusion.named_parameters())
    assert any(not torch.equal(z, names[f"network.{n}"]) for n, z in model.diffusion.weak.named_parameters())
    led = model.sample(2).latents.shared
    model.sampling = model.sampling.model_copy(update={"autoguidance": 1.0})
    torch.testing.assert_close(
        model.sample(2).latents.shared, mandorla.load(polydigits_run).sample(2).latents.shared, rtol=0, atol=0
    )
    assert not torch.equal(model.sample(2).latents.shared, led)
    assert model.hashes != mandorla.load(polydigits_run).hashes, "what was made by two networks was not made by one"
    shutil.rmtree(run / "diffusion" / "weak")
    with pytest.raises(MandorlaError, match="weak/weights.safetensors is missing"):
        mandorla.load(run).sample(2)
