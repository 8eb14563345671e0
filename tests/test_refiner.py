"""The refiner: its flow is right where the answer is known, what is missing counts nothing, images get its detail."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import interrupted, same_training, signals_recipe, tiny_recipe

import mandorla
from mandorla import edits
from mandorla.cli import main
from mandorla.data.dataset import Modality
from mandorla.errors import MandorlaError
from mandorla.latents import SHARED, Latents, Layout
from mandorla.nets.unet import UNetConfig
from mandorla.refiner.config import RefinerConfig
from mandorla.refiner.model import Refiner
from mandorla.refiner.training import train_refiner

MODALITIES = (Modality("a", 1, (6, 5)), Modality("b", 2, (7,)), Modality("table", 3, ()))
LAYOUT = Layout({SHARED: (3,), "a": (2, 3, 3), "b": (4,), "table": (2,)})


def small(layout: Layout = LAYOUT) -> Refiner:
    config = RefinerConfig(network=UNetConfig(channels=(4, 4), embedding=8))
    return Refiner(config, MODALITIES, layout, {m.name: m.size for m in MODALITIES})


def batch(num: int):
    x = {m.name: torch.rand(num, *m.shape) for m in MODALITIES}
    latents = Latents.of({name: torch.randn(num, *shape) for name, shape in LAYOUT.shapes.items()})
    return x, latents, {name: torch.rand_like(z) for name, z in x.items()}


class GaussianDetail(torch.nn.Module):
    """The exact velocity of detail that is N(mean, std^2) in every pixel: E[x_1 - x_0 | x_t]."""

    mean, std = 0.7, 0.5

    def forward(self, x, times, vector):
        t, x = times.view(-1, 1, 1, 1), x[:, :1]
        slope = (t * self.std**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * self.std**2)
        return self.mean + slope * (x - t * self.mean)


def test_detail_is_drawn_from_what_the_velocity_says():
    refiner = small()
    refiner.networks[0], refiner.scale[0] = GaussianDetail(), 0.1
    _, latents, _ = batch(400)
    decoded = torch.full((400, 1, 6, 5), 0.5)
    config = RefinerConfig(steps=40, temperature=1, guidance=0)
    x = refiner.refine("a", latents, decoded, torch.randn(400, 1, 6, 5), config, lambda name, x: x)
    assert x.mean().item() == pytest.approx(0.5 + 0.1 * GaussianDetail.mean, abs=3 * 0.1 * 0.5 / 12_000**0.5)
    assert x.std().item() == pytest.approx(0.1 * GaussianDetail.std, rel=0.03)
    flat = x.flatten(1) - x.mean()
    assert (flat[:, 0] * flat[:, 1]).mean().abs() < 4 * 0.05**2 / 400**0.5, "pixels stay independent"


def test_guidance_leads_to_images_whose_codes_are_right():
    """Along the slope of the vectors, as far as `guidance` says, in standard deviations of the detail."""
    refiner = small()
    refiner.scale[0] = 0.1
    _, latents, _ = batch(5)
    decoded, noise = torch.full((5, 1, 6, 5), 0.5), torch.randn(5, 1, 6, 5)
    brighter = torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0])

    def read(name: str, x: torch.Tensor) -> torch.Tensor:
        wanted = torch.cat([latents.shared.flatten(1), latents.private["a"].flatten(1)], 1)
        away = 9 * brighter[: len(x), None] - x.flatten(1).mean(1, keepdim=True)  # of a goal that is never reached
        of_map = wanted[:, 3:] + 99 * x.flatten(1).mean(1, keepdim=True)  # which would lead elsewhere
        return torch.cat([wanted[:, :1] + away, wanted[:, 1:3], of_map], 1)[: len(x)]

    plain, led = (
        refiner.refine("a", latents, decoded, noise, RefinerConfig(guidance=strength), read) for strength in (0.0, 2.0)
    )
    expected = 0.1 * 2.0 * brighter.view(-1, 1, 1, 1).expand_as(plain)
    torch.testing.assert_close(led - plain, expected, atol=1e-5, rtol=0)


def test_maps_lie_where_the_cells_were_read():
    """6 pixels filled up to 8: a cell of four covers two of them, the last one none of the image."""
    layout = Layout({SHARED: (1, 4), "a": (1, 4)})
    refiner = Refiner(
        RefinerConfig(network=UNetConfig(channels=(4,), embedding=8)), (Modality("a", 1, (6,)),), layout, {"a": (8,)}
    )
    seen = {}
    refiner.networks[0].forward = lambda x, times, vector: seen.update(x=x) or x[:, :1]
    cells = torch.arange(4.0).view(1, 1, 4)
    latents = Latents(cells, {"a": cells})
    refiner.refine("a", latents, torch.zeros(1, 1, 6), torch.zeros(1, 1, 6), RefinerConfig(steps=1), None)
    torch.testing.assert_close(seen["x"][0, 2], torch.tensor([0.0, 0, 1, 1, 2, 2]))


def test_maps_need_no_guidance():
    def read(name: str, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("nothing is read")

    refiner = small(Layout(LAYOUT.shapes | {SHARED: (3, 3, 3)}))
    latents = Latents(torch.randn(4, 3, 3, 3), {"a": torch.randn(4, 2, 3, 3)})
    decoded, noise = torch.full((4, 1, 6, 5), 0.5), torch.randn(4, 1, 6, 5)
    one, other = (refiner.refine("a", latents, decoded, noise, RefinerConfig(guidance=g), read) for g in (0.0, 2.0))
    assert torch.equal(one, other)


def test_the_loss_is_least_where_the_velocity_is_right(monkeypatch):
    """Of Gaussian detail: the exact velocity beats one of another mean, spread, or time."""
    torch.manual_seed(0)
    refiner = small()
    refiner.names, refiner.scale[0] = ["a"], 0.1
    decoded = {"a": torch.rand(20_000, 1, 6, 5)}
    x = {"a": decoded["a"] + 0.1 * (GaussianDetail.mean + GaussianDetail.std * torch.randn(20_000, 1, 6, 5))}
    latents = Latents(torch.zeros(20_000, 3), {"a": torch.zeros(20_000, 2, 3, 3)})
    rest = {"a": torch.ones(20_000, dtype=torch.bool)}, {"a": torch.randn(20_000, 1, 6, 5)}, {"a": torch.rand(20_000)}

    def loss() -> float:
        return refiner.loss(x, latents, decoded, *rest)[0].item()

    refiner.networks[0] = GaussianDetail()
    exact = loss()
    for change in ({"mean": 0.6}, {"std": 0.6}):
        refiner.networks[0] = GaussianDetail()
        for name, value in change.items():
            setattr(refiner.networks[0], name, value)
        assert loss() > exact + 1e-3
    refiner.networks[0] = GaussianDetail()
    monkeypatch.setattr(GaussianDetail, "forward", lambda self, x, times, vector: x[:, :1])
    assert loss() > exact + 0.1


def test_what_is_missing_counts_nothing():
    refiner, (x, latents, decoded) = small(), batch(6)
    for parameter in refiner.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    present = {name: torch.ones(6, dtype=torch.bool) for name in x}
    present["b"] = torch.tensor([True, False, True, True, False, True])

    noise, times = {n: torch.randn_like(z) for n, z in x.items()}, {n: torch.rand(6) for n in x}

    def loss(x):
        return refiner.loss(x, latents, decoded, present, noise, times)

    total, each = loss(x)
    assert set(each) == {"a", "b"}, "a table has no pixels"
    torch.testing.assert_close(total, (each["a"] + each["b"]) / 2)
    assert torch.equal(loss(x | {"b": torch.where(present["b"].view(-1, 1, 1), x["b"], 9.0)})[0], total)
    assert not torch.equal(loss(x | {"b": x["b"] + 0.1})[0], total)
    present["b"][:] = False
    total, each = loss(x)
    assert set(each) == {"a"} and total.isfinite()
    total.backward()


@pytest.fixture(scope="module")
def refined(polydigits_run, tmp_path_factory):
    """Return a run of three images with a refiner."""
    run = tmp_path_factory.mktemp("refined") / "run"
    shutil.copytree(polydigits_run, run)
    train_refiner(tiny_recipe(run))
    return run


def scaled(model, by: float = 100.0, guidance: float = 0.0):
    """Make the detail of a model that has hardly been trained large enough to be seen: too steep to be guided then."""
    model.refining = model.refining.model_copy(update={"guidance": guidance})
    for network in model.refiner.networks:
        torch.nn.init.normal_(network.write.weight, std=0.1)
    model.refiner.scale *= by
    return model


def test_images_get_detail_and_reconstructions_may_do_without(refined, polydigits_run):
    torch.manual_seed(0)
    plain, model = mandorla.load(polydigits_run), mandorla.load(refined)
    assert plain.refiner is None
    assert model.hashes.items() > plain.hashes.items() and "refiner" in model.hashes
    z = model.encode(model.data().test.batch(np.arange(5)).x)
    for name, x in plain.decode(z).items():
        assert torch.equal(model.decode(z, refined=False)[name], x)
        assert not torch.equal(model.decode(z)[name], x)
        assert model.decode(z)[name].min() >= 0 and model.decode(z)[name].max() <= 1
    note = json.loads((edits.swap(model, "0", "1", None) / "swap.json").read_text(encoding="utf-8"))
    assert note["weights"] == {name: model.hashes[name] for name in ("vae", "refiner")} and note["refiner_steps"] > 0
    assert torch.equal(plain.sample(3).latents.shared, model.sample(3).latents.shared), "latents are what they were"


@pytest.mark.parametrize(("by", "guidance"), [(100.0, 0.0), (1.0, 0.4)])
def test_detail_depends_on_seed_and_sample_alone(refined, by, guidance):
    torch.manual_seed(0)
    model = scaled(mandorla.load(refined), by, guidance)
    many, few = model.sample(5, seed=3).x["view1"], model.sample(2, seed=3, first=2).x["view1"]
    torch.testing.assert_close(many[2:4], few)
    z = replace(model.sample(5, seed=3).latents, detail={})
    assert not torch.allclose(model.decode(z, seed=4)["view1"], many)
    torch.testing.assert_close(model.decode(z, seed=3)["view1"], many)
    torch.testing.assert_close(model.decode(z[1:], seed=3, keys=[(k,) for k in range(1, 5)])["view1"], many[1:])
    alone = model.decode(Latents(z.shared, {"view1": z.private["view1"]}), seed=3)["view1"]
    torch.testing.assert_close(alone, many, msg="whatever else is decoded")
    x = model.data().test.batch(np.arange(3)).x
    draws = model.translate({"view0": x["view0"]}, ["view1"], num_samples=2, seed=1)["view1"]
    first = model.translate({"view0": x["view0"][1:]}, ["view1"], num_samples=1, seed=1, keys=[(1,), (2,)])["view1"]
    torch.testing.assert_close(draws[0, 1:], first[0])
    with pytest.raises(MandorlaError, match="2 keys for 5 samples: give one for each"):
        model.decode(z, keys=[(0,), (1,)])


def test_detail_stays_while_latents_move(refined):
    torch.manual_seed(0)
    model = scaled(mandorla.load(refined))
    x = model.data().test.batch(np.arange(4)).x
    a, b = ({name: z[rows] for name, z in x.items()} for rows in (slice(0, 2), slice(2, 4)))
    steps = model.interpolate(a, b, num=3)["view2"]
    torch.testing.assert_close(steps[0], model.decode(model.encode(a))["view2"])
    torch.testing.assert_close(steps[2], model.decode(model.encode(b))["view2"])
    moved = model.traverse(a, "view2", 0, num=3)["view2"]
    torch.testing.assert_close(moved[1], model.decode(model.encode(a))["view2"])


def test_detail_belongs_to_the_private_part(refined):
    """What was drawn once stays with its sample: through files of Python, a swap, a way, a variation of no strength."""
    torch.manual_seed(0)
    model = scaled(mandorla.load(refined))
    drawn, other = model.sample(3, seed=5), model.sample(3, seed=6)
    z, w = drawn.latents, other.latents
    for again in (
        model.decode(z),
        model.decode(z, seed=9),
        model.swap(z, z),
        model.vary(z, 0.0, seed=7).x,
        model.mix(w, z, shared=1.0, private=1.0),
        {name: x[0] for name, x in model.interpolate(z, w, num=3).items()},
        {name: x[2] for name, x in model.interpolate(w, z, num=3).items()},
        {name: x[1] for name, x in model.traverse(z, "shared", 0, num=3).items()},
    ):
        for name, x in drawn.x.items():
            torch.testing.assert_close(again[name], x, atol=1e-4, rtol=0)
    torch.testing.assert_close(model.decode(z[1:])["view1"], drawn.x["view1"][1:])
    half = model.vary(z, 0.5, seed=7).latents.detail["view0"]
    assert half.std().item() == pytest.approx(1, abs=0.05), "as large as noise is"
    correlation = torch.corrcoef(torch.stack([half.flatten(), z.detail["view0"].flatten()]))[0, 1].item()
    assert correlation == pytest.approx(0.5**0.5, abs=0.05)
    assert torch.equal(model.vary(z, 0.5, "shared").latents.detail["view0"], z.detail["view0"])
    with pytest.raises(MandorlaError, match="detail of 'view0' has shape"):
        model.decode(Latents(z.shared, z.private, detail={"view0": z.detail["view0"][:, :1]}))


@pytest.mark.parametrize("name", ["phantom", "signals"])
def test_maps_signals_and_missing_modalities(name, request, copy_of, tmp_path):
    run = copy_of(request.getfixturevalue(f"{name}_run"))
    other = shutil.copytree(run, tmp_path / "other")
    recipe = tiny_recipe(run, name) if name == "phantom" else signals_recipe(run, tmp_path)
    with interrupted(3):
        train_refiner(recipe)
    train_refiner(recipe)
    train_refiner(recipe.model_copy(update={"run": str(other)}))
    assert same_training(run / "refiner", other / "refiner"), "resumed is uninterrupted"
    assert list((run / "refiner").glob("pictures/*.png"))
    shapes = {m.name: m.shape for m in mandorla.load(run).modalities}
    assert {n: tuple(x.shape[1:]) for n, x in mandorla.load(run).sample(2).x.items()} == shapes


def test_a_refiner_of_another_stage_1_is_refused(refined, copy_of):
    run = copy_of(refined)
    (run / "refiner" / "model.json").write_text(json.dumps({"vae_weights": "other"}))
    with pytest.raises(MandorlaError, match="refiner was trained for other weights .*: delete it"):
        mandorla.load(run).sample(1)
    with pytest.raises(MandorlaError, match="was trained for another stage 1: delete it"):
        train_refiner(tiny_recipe(run))


def test_other_settings_need_another_run(refined, copy_of):
    run = copy_of(refined)
    with pytest.raises(MandorlaError, match=r"refiner.network.channels=.* or delete .*refiner to train it anew"):
        train_refiner(tiny_recipe(run, "polydigits", "refiner.network.channels=[8]"))
    model, z = mandorla.load(run), mandorla.load(run).sample(2).latents
    usual = model.decode(z)["view0"]
    model.refining = model.refining.model_copy(update={"temperature": 0.5})
    assert not torch.equal(model.decode(z)["view0"], usual)
    train_refiner(tiny_recipe(run, "polydigits", "refiner.steps=0"))
    model = mandorla.load(run)
    z = model.sample(2).latents
    assert torch.equal(model.decode(z)["view0"], model.decode(z, refined=False)["view0"]), "no steps, no detail"


def test_the_command(polydigits_run, copy_of, capsys):
    run = copy_of(polydigits_run)
    with pytest.raises(SystemExit) as ended:
        main(["train", "refiner", str(run), "refiner.training.steps=2"])
    assert not ended.value.code and "the refiner is trained in" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["train", "refiner", str(run), "vae.training.steps=2"])
    assert ended.value.code == 2
    assert "`vae.training.steps` is used by `mandorla train vae`" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["sample", str(run), "--num", "1", "--out", str(run / "out")])
    notes = [json.loads(path.read_text()) for path in (run / "out").rglob("*.json")]
    assert any("refiner_steps" in json.dumps(note) for note in notes)


def test_the_report_tells_how_images_were_made(refined, polydigits_run, copy_of):
    few = "evaluate={suites: [translation], num_train: 20, num_test: 10, num_generated: 10, num_translated: 3}"
    texts = []
    for run in (refined, polydigits_run):
        out = copy_of(run)
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", str(out), few])
        assert not ended.value.code
        texts.append(" ".join((out / "report.html").read_text().split()))
        shutil.rmtree(out)
    assert "drawn by 3 steps of the sampler" in texts[0] and "(2 steps, temperature 0.8, guidance 0.4)" in texts[0]
    assert "images are what stage 1 decodes of them." in texts[1]
