"""The benchmark against peers: what models answer is measured as it should be, by models that answer what is known."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mandorla.evaluate.images import psnr

ROOT = Path(__file__).resolve().parents[1]
DIGITS = [
    *("data.num_train=300", "data.num_val=20", "data.num_test=60"),
    "evaluate={num_train: 100, num_test: 60, num_generated: 60, num_samples: 2, judge_steps: 80}",
]
PHANTOM = [
    "data={kind: phantom, size: [24, 24], num_train: 40, num_val: 10, num_test: 12}",
    "evaluate={num_train: 40, num_test: 12, num_generated: 12, num_translated: 12, num_samples: 2, judge_steps: 20}",
]
FAKE = """
import json, sys
from pathlib import Path
import numpy as np

folder = Path(sys.argv[1])
asked = json.loads((folder / "settings.json").read_text())
with (folder.parent / "trained").open("a") as file:
    file.write(asked["model"])

def images(part):
    loaded = {name: np.load(folder.parent / "data" / part / f"{name}.npy") for name in asked["modalities"]}
    return {name: np.float32(x / 255) if x.dtype == np.uint8 else x for name, x in loaded.items()}

def write(place, arrays):
    (folder / place).mkdir(parents=True)
    for name, array in arrays.items():
        np.save(folder / place / f"{name}.npy", array)

if asked["routes"]:
    x = images("translated")
    for given, wanted in asked["routes"]:
        write("given/" + "+".join(given), {name: np.stack([x[name], 0 * x[name]]) for name in wanted})
else:
    for part in ("known", "test")[: 2 * (asked["model"] != "tuples")]:
        code = {name: x.mean((2, 3)) for name, x in images(part).items()}
        write(part + "/shared", code)
        if asked["model"] == "private":
            write(part + "/private", code)
    x, shift = images("test"), 7 if asked["model"] == "scrambled" else 0
    for source in x:
        made = {n: np.roll(z, shift * (n != source), 0)[None] for n, z in x.items()}
        write("given/" + source, {n: z for n, z in made.items() if n != source or asked["model"] != "tuples"})
    write("joint", {n: np.roll(z, shift * k, 0) for k, (n, z) in enumerate(x.items())})
report = {"minutes": asked["minutes"], "minutes_on_clock": 2 * asked["minutes"], "steps": 3}
(folder / "report.json").write_text(json.dumps(report | {"parameters": 3, "how": "by heart"}))
"""


@pytest.fixture
def peers(tmp_path, monkeypatch, benchmark_named):
    """Return the benchmark with models that need no training, its table and its folder in a place of their own."""
    module = benchmark_named("peers")
    (tmp_path / "fake.py").write_text(FAKE)
    fake = module.Model(tmp_path / "fake.py", classes=True, routes=True, python=Path(sys.executable))
    monkeypatch.setattr(
        module, "MODELS", module.MODELS | dict.fromkeys(("truth", "scrambled", "private", "tuples"), fake)
    )
    monkeypatch.setattr(module, "TABLES", tmp_path / "PEERS.md")
    module.folder = tmp_path / "out"
    return module


def run(peers, recipe, *more) -> None:
    peers.main([recipe, "--minutes", "0.5", "--out", str(peers.folder), *more])


def figures(peers, recipe, model) -> dict[str, dict[str, dict]]:
    """Return the figures of a model by the way it answers and name."""
    found = json.loads((peers.folder / recipe / "seed0" / model / "figures.json").read_text())
    return {column: {record["name"]: record for record in records} for column, records in found.items()}


def test_codes_and_coherence_of_models_that_are_right_by_construction(peers):
    run(peers, "polydigits", "--models", "truth,scrambled,private,tuples", *DIGITS)
    models = ("truth", "scrambled", "private", "tuples")
    truth, scrambled, private, tuples = (figures(peers, "polydigits", m)[m] for m in models)
    for name in ("coherence/self", "coherence/cross", "joint/agreement"):
        assert truth[name]["value"] == pytest.approx(truth[name]["ceiling"]), name
    assert scrambled["coherence/self"] == truth["coherence/self"]
    assert truth["coherence/cross"]["value"] > 0.4 > scrambled["coherence/cross"]["value"]
    assert truth["joint/agreement"]["value"] > 2 * scrambled["joint/agreement"]["value"]
    assert truth["joint/agreement, mixed"]["value"] < truth["joint/agreement"]["value"]
    for space in ("judge", "random"):
        assert truth[f"joint/{space} frechet"]["value"] == pytest.approx(0, abs=1e-6)
        assert scrambled[f"joint/{space} frechet"]["value"] == pytest.approx(0, abs=1e-6), (
            "views alone are as they were"
        )
        assert scrambled[f"joint/{space} frechet all together"]["value"] > 0.01
        assert truth[f"joint/{space} frechet"]["ceiling"] > 0.001
        kernel, of_scrambled = (of[f"joint/{space} kernel all together"] for of in (truth, scrambled))
        assert kernel["value"] < of_scrambled["value"] < kernel["ceiling"]
        assert kernel["value"] < 0, "without bias, equal sets are nearer than two draws of one law"
        assert not any(name.startswith(f"joint/{space} kernel/") for name in truth), "Fréchet distances say it of each"
    generated = {name for name in truth if name.split("/")[0] in ("coherence", "joint")}
    assert tuples.keys() == generated - {"coherence/self"}, "a model without codes"
    assert all(tuples[name] == truth[name] for name in tuples)
    for space in ("judge", "random"):
        assert truth[f"joint/{space} recall all together"]["value"] == 1
        assert truth[f"joint/{space} coverage all together"]["value"] == 1
    own = {"private/class linear", "private/class mlp", "private/quadrant", "private/quadrant mlp"}
    assert private.keys() - truth.keys() == own
    assert private["private/class linear"]["value"] == private["shared/class"]["value"], "the same codes"
    lines = (peers.TABLES).read_text().splitlines()
    assert "| truth | 0.5 | 1.0 | 3 | 0.00 M | by heart |" in lines
    (row,) = (line for line in lines if line.startswith("| private/class mlp |"))
    assert row.split("|")[2:4] == ["  ", "  "], "models without a private part have empty cells"
    (row,) = (line for line in lines if line.startswith("| coherence/self |"))
    assert "**" not in row, "all are equal"
    (row,) = (line for line in lines if line.startswith("| coherence/cross |"))
    assert [cell.strip().startswith("**") for cell in row.split("|")[2:5]] == [True, False, True]


def test_translations_of_a_model_that_is_right_by_construction(peers):
    run(peers, "phantom", "--models", "truth", *PHANTOM)
    found = figures(peers, "phantom", "truth")
    assert list(found) == ["truth, mean of 2", "truth, single"]
    assert found["truth, single"]["translation/psnr"]["value"] == pytest.approx(100)
    assert found["truth, single"]["translation/ssim foreground"]["value"] == pytest.approx(1)
    for space in ("judge", "random"):
        assert found["truth, single"][f"translation/{space} frechet"]["value"] == pytest.approx(0, abs=1e-6)
        assert found["truth, single"][f"translation/{space} frechet"]["error"] == pytest.approx(0, abs=1e-6), "pairs"
        assert found["truth, mean of 2"][f"translation/{space} frechet"]["value"] > 1e-3
    truth = peers.Truth(peers.read_recipe("phantom", PHANTOM), peers.folder / "phantom" / "seed0")
    x = truth.translated.x
    half = found["truth, mean of 2"]["translation/t1 to t2/psnr"]["value"]
    assert half == pytest.approx(psnr(x["t2"] / 2, x["t2"]).mean())
    simple = {way: {record.name: record.value for record in of} for way, of in truth.measure_simple().items()}
    assert simple["copy of what is given"]["translation/t1 to t2/psnr"] == pytest.approx(psnr(x["t1"], x["t2"]).mean())
    mean = truth.splits.train.batch(range(40)).x["t2"].mean(0).expand_as(x["t2"])
    assert simple["mean image"]["translation/t1 to t2/psnr"] == pytest.approx(psnr(mean, x["t2"]).mean(), abs=1e-4)
    header = next(line for line in peers.TABLES.read_text().splitlines() if line.startswith("| figure"))
    assert header == "| figure | truth, mean of 2 | truth, single | copy of what is given | mean image | better |"


def test_what_was_asked_before_is_not_trained_again_and_a_section_takes_the_place_of_the_old(peers):
    run(peers, "phantom", "--models", "truth", *PHANTOM)
    run(peers, "phantom", "--models", "truth", "--seeds", "0,1", *PHANTOM)
    trained = peers.folder / "phantom" / "seed0" / "trained"
    assert trained.read_text() == "truth"
    text = peers.TABLES.read_text()
    assert text.count("## phantom") == 1
    assert "2 seeds, mean ± standard deviation" in text
    assert "100.0 ± 0.0 dB" in text
    peers.TABLES.write_text(f"an old introduction\n\n{text[text.index('## phantom') :]}")
    run(peers, "phantom", "--models", "truth", "--minutes", "0.6", *PHANTOM)
    assert trained.read_text() == "truthtruth" and peers.TABLES.read_text().startswith(peers.INTRODUCTION)
    run(peers, "phantom", "--models", "truth", "--minutes", "0.6", "--title", "phantom, again", *PHANTOM)
    assert trained.read_text() == "truthtruth", "a section of another title asks for nothing new"
    assert [line for line in peers.TABLES.read_text().splitlines() if line.startswith("## ")] == [
        "## phantom",
        "## phantom, again",
    ]


def test_images_are_kept_as_bytes_where_bytes_hold_them(peers, tmp_path):
    digits = peers.Truth(peers.read_recipe("polydigits", DIGITS), tmp_path / "digits")
    peers.write_data(digits)
    for part, (dataset, rows) in digits.parts.items():
        stored = np.load(digits.folder / "data" / part / "view0.npy")
        again = stored / 255 if stored.dtype == np.uint8 else stored
        np.testing.assert_allclose(again, dataset.batch(rows).x["view0"], atol=1e-6)
    for kind, scale in ((np.uint8, 1), (np.float32, 1 / 255)):
        np.save(
            tmp_path / "digits" / "data" / "train" / "view0.npy", np.array([[0], [51], [102], [51]], kind) * kind(scale)
        )
        assert digits._mean_image("view0").item() == pytest.approx(0.2), kind
    x = torch.tensor([[[[0.0, 1 / 255], [254 / 255, 1.0]]]])
    for values, kind in ((x, np.uint8), (x + 0.5 / 255, np.float32)):
        dataset = Held(values)
        assert peers.write_images(tmp_path, dataset, np.arange(1), np.uint8) == (kind is np.uint8)
    assert peers.write_images(tmp_path, dataset, np.arange(1), np.float32)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), x + 0.5 / 255)


class Held:
    """Answer images by index; `present` says which are there."""

    def __init__(self, x, present=None):
        from mandorla.data.dataset import Batch, Modality

        self.modalities = (Modality("x", 1, (2, 2)),)
        self.all = Batch({"x": x}, {"x": torch.ones(len(x), dtype=torch.bool) if present is None else present})

    def batch(self, indices):
        return self.all


def test_mistakes_end_in_one_line(peers, tmp_path, monkeypatch):
    def said(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            run(peers, *arguments)
        text = str(stop.value)
        assert text.startswith("error: ") and "\n" not in text
        return text

    monkeypatch.setattr(
        peers, "MODELS", peers.MODELS | {"absent": peers.Model("x.py", classes=True, python=tmp_path / "no")}
    )
    assert "run `make peers`" in said("polydigits", "--models", "absent", *DIGITS)
    assert "unet is no model for this data" in said("polydigits", "--models", "unet", *DIGITS)
    assert "--minutes" in said("polydigits", "--minutes", "0", *DIGITS)
    assert "no recipe 'nothing'" in said("nothing")
    assert not peers.folder.exists() and not peers.TABLES.exists(), "nothing is written before"
    (tmp_path / "fake.py").write_text("print('so far'); raise ValueError('no such luck')")
    text = said("phantom", "--models", "truth", *PHANTOM)
    assert "truth ended with status 1 (ValueError: no such luck)" in text and "log.txt" in text
    assert not peers.TABLES.exists()
    with pytest.raises(peers.MandorlaError, match="a sample has no x"):
        peers.write_images(tmp_path, Held(torch.zeros(2, 1, 2, 2), torch.tensor([True, False])), np.arange(2), np.uint8)


def test_peers_have_networks_of_the_kinds_of_ours(peers, tmp_path):
    keys = [*DIGITS, "vae.model.encoder_decoder_of={view1: {kind: perceptron}}"]
    truth = peers.Truth(peers.read_recipe("polydigits", keys), tmp_path)
    assert [network.kind for network in truth.networks.values()] == ["convolutional", "perceptron", "convolutional"]
    keys = [*DIGITS, "vae.model.encoder_decoder_of={view1: {kind: 'somebody:Else'}}"]
    with pytest.raises(peers.MandorlaError, match="view1 has shape .* and a network of kind 'somebody:Else'"):
        peers.Truth(peers.read_recipe("polydigits", keys), tmp_path)


@pytest.fixture
def ours(peers, monkeypatch):
    """Return the script that trains ours."""
    monkeypatch.syspath_prepend(str(peers.SCRIPTS))
    import ours

    return ours


def test_ours_gets_as_many_steps_as_its_minutes_hold(ours, tmp_path, monkeypatch):
    """With stages that cost what is known, on a clock of their own, nothing of the minutes is left, nor too much."""
    clock, done, optimizer = [0.0], [], torch.optim.SGD([torch.zeros(1)])

    def stage(name: str, step: float, fixed: float):
        def train(recipe) -> None:
            training = getattr(recipe, name).training
            done.append((name, training.steps))
            for number in range(training.steps):
                clock[0] += step
                optimizer.step()
                clock[0] += fixed / 4 if number % training.validate_every == 0 else 0

        return train

    monkeypatch.setattr(ours, "_STAGES", {"vae": stage("vae", 0.01, 0.5), "diffusion": stage("diffusion", 0.002, 0.25)})
    monkeypatch.setattr(ours, "minutes", lambda: clock[0])
    (tmp_path / "recipe.yaml").write_text("vae: {training: {steps: 1500}}\ndiffusion: {training: {steps: 1000}}\n")
    task = SimpleNamespace(folder=tmp_path, minutes=10.0)
    costs = ours.measure(task)
    assert costs["vae"] == pytest.approx((0.01, 0.5)) and costs["diffusion"] == pytest.approx((0.002, 0.25))
    begun = clock[0]
    _, steps = ours.train_both(task, costs)
    assert done[-2:] == [("vae", steps["vae"]), ("diffusion", steps["diffusion"])]
    assert clock[0] - begun == pytest.approx(task.minutes, abs=0.01)
    assert steps["vae"] / steps["diffusion"] == pytest.approx(1.5, rel=0.01), "as in the recipe"
    with pytest.raises(ours.MandorlaError, match="hold no training of ours"):
        ours.train_both(SimpleNamespace(folder=tmp_path, minutes=0.7), costs)


def test_a_distillation_keeps_its_share_of_the_minutes(ours, tmp_path, monkeypatch):
    clock, optimizer = [0.0], torch.optim.SGD([torch.zeros(1)])

    def steps_of(num: int, cost: float, every: int) -> None:
        for number in range(num):
            clock[0] += cost
            optimizer.step()
            clock[0] += 0.1 if number % every == 0 else 0

    def vae(recipe) -> None:
        config = recipe.vae
        every = config.training.validate_every
        steps_of(config.training.steps, 0.01, every)
        if config.distillation:
            steps_of(config.distillation.steps, 0.004, every)
            steps_of(config.distillation.steps_after, 0.01, every)

    def diffusion(recipe) -> None:
        steps_of(recipe.diffusion.training.steps, 0.002, recipe.diffusion.training.validate_every)

    monkeypatch.setattr(ours, "_STAGES", {"vae": vae, "diffusion": diffusion})
    monkeypatch.setattr(ours, "minutes", lambda: clock[0])
    distilled = "model: {encoder_decoder: {apart: true}}, distillation: {steps: 500, batch_size: 8, steps_after: 300}"
    (tmp_path / "recipe.yaml").write_text(
        f"vae: {{training: {{steps: 1000}}, {distilled}}}\ndiffusion: {{training: {{steps: 1000}}}}\n"
    )
    task = SimpleNamespace(folder=tmp_path, minutes=10.0)
    costs = ours.measure(task)
    begun = clock[0]
    run, steps = ours.train_both(task, costs)
    assert clock[0] - begun == pytest.approx(task.minutes, abs=0.01), "nothing is left, nor taken"
    assert steps["vae"] / steps["diffusion"] == pytest.approx(1, rel=0.1), "as in the recipe"
    distil = ours.recipe_of(task, run, steps).vae.distillation
    assert (distil.steps, distil.steps_after) == (round(steps["vae"] * 0.5), round(steps["vae"] * 0.3))


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "more"), [("polydigits", DIGITS), ("phantom", PHANTOM)])
def test_ours_is_trained_for_its_minutes_and_answers(peers, recipe, more):
    tiny = [
        "vae.model.encoder_decoder={kind: convolutional, patch: 4, channels: [8, 8], hidden: 16}",
        "diffusion.network={width: 16, depth: 1, heads: 2, patch: 2}",
        "diffusion.sampling.steps=2",
        *("vae.training.batch_size=16", "diffusion.training.batch_size=16"),
        *(
            ["vae.model.shared={channels: 3, stride: 8}", "vae.model.private={channels: 2, stride: 8}"]
            * (recipe == "phantom")
        ),
    ]
    minutes = 0.4
    run(peers, recipe, "--models", "mandorla", "--minutes", str(minutes), *more, *tiny)
    folder = peers.folder / recipe / "seed0" / "mandorla"
    report = json.loads((folder / "report.json").read_text())
    assert report["minutes"] == pytest.approx(minutes, rel=0.3)
    assert report["parameters"] > 1000
    found = figures(peers, recipe, "mandorla")
    if recipe == "phantom":
        assert list(found) == ["mandorla, mean of 2", "mandorla, single", "mandorla, u = 0"]
        assert 5 < found["mandorla, u = 0"]["translation/psnr"]["value"] < 40
    else:
        assert {"private/class mlp", "swap/class", "joint/agreement mixture"} <= found["mandorla"].keys()


def test_a_training_takes_its_minutes_and_learns(ours, tmp_path):
    import task as tasks

    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "asked").mkdir()
    np.save(tmp_path / "data" / "train" / "x.npy", np.full((10, 1, 1, 1), 51, np.uint8))
    asked = {"model": "mean", "seed": 0, "minutes": 0.01, "num_samples": 1, "num_generated": 1, "routes": []}
    (tmp_path / "asked" / "settings.json").write_text(
        json.dumps(asked | {"modalities": {"x": [1, 1, 1]}, "networks": {}, "flip": []})
    )
    task, module = tasks.Task(tmp_path / "asked"), torch.nn.Linear(1, 1)
    torch.optim.Adam(module.parameters())  # loads what is loaded once
    begun = tasks.minutes()
    steps = tasks.train(task, module, lambda x: (module(torch.zeros(1)) - x["x"]).square().mean(), 4, 1e-2)
    assert 0.01 <= tasks.minutes() - begun < 0.02
    assert steps > 100
    assert module.bias.item() == pytest.approx(0.2, abs=1e-3)
