"""Trainings that several processes share are those of one: figures, gradients, resumed with any other number."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import several
import torch
from test_parallel import results
from tiny import interrupted, signals_recipe, tiny_recipe

import mandorla.training
from mandorla.checkpoint import load_tensors
from mandorla.data.dataset import Batch, Modality
from mandorla.diffusion.training import train_diffusion
from mandorla.nets.blocks import normalise_in_common
from mandorla.nets.encoder_decoder import ConvolutionalConfig
from mandorla.parallel import gather, share, world
from mandorla.processes import together
from mandorla.recipe import Recipe
from mandorla.refiner.training import train_refiner
from mandorla.vae.model import VAE, LatentConfig, ModelConfig
from mandorla.vae.objective import LossConfig, Objective
from mandorla.vae.training import train_vae

FLOAT = [f"{stage}.training.precision=fp32" for stage in ("vae", "diffusion", "refiner")]


def on(num: int, folder: Path, train: Callable[[Recipe], None], recipe: Recipe, stop: int | None = None) -> None:
    """Train on `num` processes; all are stopped when they ask for the batch of step `stop`."""

    def work(rank: int) -> None:
        with together("train"):
            if stop is None:
                return train(recipe)
            with interrupted(stop):
                train(recipe)

    ended = several.together(num, folder, work)
    assert [one.status for one in ended] == [0] * num, "".join(one.err for one in ended)
    assert not any(one.out for one in ended[1:]), "the first process alone shows how far it is"


def lines(run: Path, stage: str, part: str = "train") -> list[dict[str, float]]:
    found = [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["part"] == part]


def assert_same_curve(run: Path, alone: Path, stage: str, part: str = "train") -> None:
    """Every figure within 1e-4 of its size, or of one; those of swaps, which moving statistics enter, within 1e-3.

    A bias before a batch normalisation has no gradient but rounding, which Adam magnifies, and statistics move with it.
    """
    found, expected = lines(run, stage, part), lines(alone, stage, part)
    assert [line["step"] for line in found] == [line["step"] for line in expected] != []
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"part"}:
            assert one[name] == pytest.approx(other[name], rel=1e-3 if "swap" in name else 1e-4, abs=1e-4), name


@pytest.fixture(scope="module")
def signals(tmp_path_factory) -> Recipe:
    """Return a recipe of vector latents, one modality missing for a third of the samples; trained by one process."""
    root = tmp_path_factory.mktemp("signals")
    recipe = signals_recipe(root / "alone", root, *FLOAT, "vae.loss.decoder_std=null", "vae.loss.alignment_weight=0.1")
    train_vae(recipe)
    train_diffusion(recipe)
    return recipe


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Recipe:
    """Return a recipe of map latents, trained by one process."""
    root = tmp_path_factory.mktemp("phantom")
    recipe = tiny_recipe(root / "alone", "phantom", *FLOAT, "diffusion.region_share=0.5")
    train_vae(recipe)
    train_diffusion(recipe)
    return recipe


def elsewhere(recipe: Recipe, run: Path) -> Recipe:
    return recipe.model_copy(update={"run": str(run)})


def check_shares(monkeypatch, strategy: str) -> None:
    """Have each of three processes find that it holds about a third of the weights where they are divided, else all."""
    save = mandorla.training._Training.save

    def look(self) -> None:
        for network in (self.module, self.average):
            held = [(z.to_local() if hasattr(z, "to_local") else z).numel() for z in network.parameters()]
            share = sum(held) / sum(z.numel() for z in network.parameters())
            assert 0.2 < share < 0.5 if strategy == "fsdp" else share == 1
        save(self)

    monkeypatch.setattr(mandorla.training._Training, "save", look)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", ["signals", "phantom"])
def test_stage_1_is_that_of_one_process(tmp_path, monkeypatch, request, name, strategy):
    """Shares of 5, 5 and 6 samples; also the weights are the same, but for biases that a normalisation takes off."""
    recipe = request.getfixturevalue(name)
    recipe = recipe.model_copy(update={"trainer": recipe.trainer.model_copy(update={"strategy": strategy})})
    run, alone = tmp_path / "run", Path(recipe.run)
    check_shares(monkeypatch, strategy)
    on(3, tmp_path, train_vae, elsewhere(recipe, run))
    assert_same_curve(run, alone, "vae")
    (found, _), (expected, _) = (load_tensors(folder / "vae" / "last.safetensors") for folder in (run, alone))
    assert found.keys() == expected.keys(), "also what the optimiser has no reason to remember yet"
    for key, z in found.items():
        if not (".down." in key or ".mend." in key or "running" in key):
            far = ~torch.isclose(z, expected[key], atol=2e-4, rtol=1e-3)  # a step along a gradient that is rounding
            assert far.sum() <= 0.01 * far.numel(), key  # alone may go either way: few are
    assert sorted(p.name for p in (run / "latents").iterdir()) == sorted(p.name for p in (alone / "latents").iterdir())


@pytest.fixture(scope="module")
def distilled(tmp_path_factory) -> Recipe:
    """Return a recipe with shared codes distilled, a third of the samples without a partner; trained by one process."""
    root = tmp_path_factory.mktemp("distilled")
    changes = "vae.model.encoder_decoder.apart=true", "vae.distillation={steps: 6, batch_size: 16, steps_after: 6}"
    recipe = signals_recipe(root / "alone", root, *FLOAT, *changes)
    train_vae(recipe)
    return recipe


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("anew", [["vae/distilled", "vae"], ["vae"]])
def test_distillation_is_that_of_one_process(tmp_path, distilled, strategy, anew):
    """What goes before is that of one process: moving statistics, which are of use here, have rounding errors."""
    run, alone = tmp_path / "run", Path(distilled.run)
    shutil.copytree(alone, run)
    for stage in anew:
        for path in (run / stage).iterdir():
            path.unlink() if path.is_file() and path.name != "model.json" else None
    shared = distilled.model_copy(update={"trainer": distilled.trainer.model_copy(update={"strategy": strategy})})
    on(3, tmp_path, train_vae, elsewhere(shared, run))
    assert_same_curve(run, alone, anew[0])


@pytest.mark.parametrize(
    ("name", "strategy", "num"), [("signals", "ddp", 3), ("phantom", "ddp", 2), ("phantom", "fsdp", 3)]
)
def test_stage_2_is_that_of_one_process(tmp_path, request, name, strategy, num):
    recipe = request.getfixturevalue(name)
    alone = Path(recipe.run)
    shutil.copytree(alone, tmp_path / "run", ignore=shutil.ignore_patterns("diffusion"))
    trainer = recipe.trainer.model_copy(update={"strategy": strategy})
    on(num, tmp_path, train_diffusion, elsewhere(recipe, tmp_path / "run").model_copy(update={"trainer": trainer}))
    for part in ("train", "val"):
        assert_same_curve(tmp_path / "run", alone, "diffusion", part)
    for file in ("last.safetensors", "weights.safetensors"):
        (found, _), (expected, _) = (load_tensors(run / "diffusion" / file) for run in (tmp_path / "run", alone))
        assert found.keys() == expected.keys()
        for key, z in found.items():
            torch.testing.assert_close(z, expected[key], atol=2e-4, rtol=1e-3, msg=key)


@pytest.mark.parametrize(("name", "strategy"), [("signals", "ddp"), ("phantom", "ddp"), ("phantom", "fsdp")])
def test_the_refiner_is_that_of_one_process(tmp_path, monkeypatch, request, name, strategy):
    recipe = request.getfixturevalue(name)
    recipe = recipe.model_copy(update={"trainer": recipe.trainer.model_copy(update={"strategy": strategy})})
    for run in ("alone", "run"):
        shutil.copytree(recipe.run, tmp_path / run)
    train_refiner(elsewhere(recipe, tmp_path / "alone"))
    check_shares(monkeypatch, strategy)
    on(3, tmp_path, train_refiner, elsewhere(recipe, tmp_path / "run"))
    for part in ("train", "val"):
        assert_same_curve(tmp_path / "run", tmp_path / "alone", "refiner", part)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_another_number_of_processes_goes_on(tmp_path, phantom, strategy):
    """Two processes are stopped after step 2 is saved, three after step 4; one ends the training."""
    run = tmp_path / "run"
    shutil.copytree(phantom.run, run, ignore=shutil.ignore_patterns("diffusion"))
    trainer = phantom.trainer.model_copy(update={"strategy": strategy})
    recipe = elsewhere(phantom, run).model_copy(update={"trainer": trainer})
    for num, stop, saved in ((2, 3, "2"), (3, 5, "4")):
        on(num, tmp_path, train_diffusion, recipe, stop)
        assert load_tensors(run / "diffusion" / "last.safetensors")[1]["step"] == saved
    train_diffusion(recipe)
    assert_same_curve(run, Path(phantom.run), "diffusion")
    shutil.rmtree(run / "vae")
    on(3, tmp_path, train_vae, recipe, 3)
    on(2, tmp_path, train_vae, recipe)
    alone = Path(phantom.run)
    assert_same_curve(run, alone, "vae")


def objective(grid: int | None) -> tuple[Objective, Batch]:
    """Return the objective with all its terms, of vectors or maps, and a batch of 14 in which much is missing."""
    torch.manual_seed(0)
    size = (8, 12) if grid else (10,)
    modalities = tuple(Modality(name, 1, size) for name in "abc")
    latent = LatentConfig(channels=3, stride=grid)
    model = ModelConfig(
        shared=latent, private=latent, encoder_decoder=ConvolutionalConfig(channels=(8, 8), hidden=16, num_blocks=1)
    )
    loss = LossConfig(decoder_std=None, alignment_weight=0.5, private_dropout=0.2, target_gradient=0.3, leak_memory=8)
    x = {name: torch.rand(14, 1, *size) for name in "abc"}
    present = {name: torch.rand(14) < 0.6 for name in "abc"}
    present["b"][:7] = False  # of two or three processes the first has none
    present["a"] |= ~(present["b"] | present["c"])
    trained = Objective(VAE(model, modalities), loss)
    if grid:
        trained = trained.to(memory_format=torch.channels_last)
    return trained, Batch(x, present)


@pytest.mark.parametrize("grid", [None, 4])
def test_every_term_and_gradient_is_that_of_one_process(tmp_path, grid):
    """Two calls, so that memories hold something; and a look at it as in validation, at the same statistics."""

    def work():
        trained, batch = objective(grid)
        normalise_in_common(trained)
        own = share(14)
        parts = ({name: z[own] for name, z in part.items()} for part in (batch.x, batch.present))
        batch = Batch(*parts)
        found = {}
        for number in range(2):
            torch.manual_seed(number)
            trained.zero_grad()
            loss, terms = trained(batch, 1.0)
            loss.backward()
            found |= {f"{number}.{name}": value for name, value in terms.items()}
        for name, weight in trained.named_parameters():
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            found[f"gradient.{name}"] = gather(gradient[None]).mean(0)
        trained.eval()
        torch.manual_seed(2)
        with torch.no_grad():
            found |= {f"val.{name}": value for name, value in trained(batch, 1.0)[1].items()}
        return found | {f"buffer.{name}": z for name, z in trained.named_buffers()}

    assert world() == 1
    trained, batch = objective(grid)
    assert min(int(rows.sum()) for rows in batch.present.values()) >= 4
    alone = _as_one(work)
    for one in results(3, tmp_path, work):
        assert one.keys() == alone.keys()
        for name, value in one.items():
            torch.testing.assert_close(value, alone[name], atol=2e-5, rtol=2e-4, msg=f"{name} {value} {alone[name]}")


def _as_one(work: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return what `work()` gives in one process, with torch's own normalisation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("test_parallel_training.normalise_in_common", lambda network: None)
        return work()
