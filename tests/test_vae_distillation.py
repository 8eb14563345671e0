"""Shared codes that are distilled say what others say, and nothing else; all else is trained around them."""

import copy
import json
from pathlib import Path

import pytest
import torch
from tiny import interrupted, same_training, tiny_recipe
from torch.nn import functional as F

from mandorla.checkpoint import load_tensors
from mandorla.data.dataset import Batch, Modality, all_present
from mandorla.errors import MandorlaError
from mandorla.evaluate.pictures import STAGES, curves, read_log
from mandorla.latents import to_sphere
from mandorla.nets.encoder_decoder import ConvolutionalConfig, PerceptronConfig
from mandorla.vae.distillation import Distillation, what_others_say
from mandorla.vae.model import VAE, LatentConfig, ModelConfig
from mandorla.vae.objective import LossConfig, Objective
from mandorla.vae.training import train_vae

APART = ["vae.model.encoder_decoder.apart=true", "vae.distillation={steps: 6, batch_size: 16, steps_after: 4}"]
NETWORKS = [ConvolutionalConfig(channels=(6, 8), hidden=12, apart=True), PerceptronConfig(hidden=(8,), apart=True)]


def build(network=NETWORKS[0], names=("t1", "t2", "pd"), size=(10, 13)) -> VAE:
    codes = LatentConfig(channels=3), LatentConfig(channels=2)
    modalities = tuple(Modality(name, 1, size) for name in names)
    return VAE(ModelConfig(shared=codes[0], private=codes[1], encoder_decoder=network), modalities)


def images(vae: VAE, num: int = 12) -> dict[str, torch.Tensor]:
    return {m.name: torch.rand(num, *m.shape) for m in vae.modalities}


@pytest.mark.parametrize("network", NETWORKS)
def test_c_apart_is_read_by_layers_that_u_hears_and_does_not_train(network):
    vae = build(network)
    x = images(vae)
    features, codes = vae.encode(x, all_present(x))
    alone = {id(z) for part in vae.shared_alone() for z in part.parameters()}
    sum((z * torch.randn_like(z)).sum() for z in codes.values()).backward()
    assert {id(z) for z in vae.parameters() if z.grad is not None and z.grad.any()} == alone
    features, codes = vae.encode(x, all_present(x))
    vae.zero_grad()
    sum(vae.posterior(name, features[name], codes[name].detach())[0].sum() for name in x).backward()
    assert not any(z.grad is not None and z.grad.any() for part in vae.shared_alone() for z in part.parameters())
    with torch.no_grad():  # other features of c, c as it was: u hears them
        before = vae.posterior("t1", features["t1"], codes["t1"])[0]
        for z in vae.networks["t1"].shared_alone()[0].parameters():
            z.add_(0.1 * torch.randn_like(z))
        after = vae.posterior("t1", vae.encode(x, all_present(x))[0]["t1"], codes["t1"])[0]
    assert not torch.allclose(before, after)


@pytest.mark.parametrize("network", [*NETWORKS, ConvolutionalConfig(channels=(6, 8)), PerceptronConfig()])
def test_c_alone_is_that_which_is_read_with_u(network):
    vae = build(network).eval()
    x = images(vae)
    present = all_present(x) | {"t2": torch.arange(12) % 3 > 0}
    alone = vae.encode_shared(x, present)
    for name, z in vae.encode(x, present)[1].items():
        torch.testing.assert_close(alone[name], z)


def test_others_say_their_mean_where_there_are_others():
    vae = build().eval()
    x = images(vae, 4)
    present = {
        "t1": torch.tensor([True, True, True, False]),
        "t2": torch.tensor([True, True, False, True]),
        "pd": torch.tensor([True, False, False, True]),
    }
    told, known = what_others_say(vae, x, present)
    codes = vae.encode_shared(x, all_present(x))
    torch.testing.assert_close(told["t1"][0], to_sphere((codes["t2"] + codes["pd"])[:1])[0])
    torch.testing.assert_close(told["t1"][1], codes["t2"][1])
    assert {name: rows.tolist() for name, rows in known.items()} == {
        "t1": [True, True, False, False],
        "t2": [True, True, False, True],
        "pd": [True, False, False, True],
    }


def test_the_loss_is_the_distance_to_what_is_told_and_trains_c_alone():
    vae = build()
    x = images(vae)
    present = all_present(x)
    told, known = what_others_say(copy.deepcopy(vae).eval(), x, present)
    known["pd"] = torch.zeros(12, dtype=torch.bool)
    module = Distillation(vae).eval()
    loss = module(x, present, told, known)
    codes = vae.encode_shared(x, present)
    expected = (F.mse_loss(codes["t1"], told["t1"]) + F.mse_loss(codes["t2"], told["t2"])) / 3
    torch.testing.assert_close(loss, expected)
    module.train()(x, present, told, known).backward()
    alone = {id(z) for part in vae.shared_alone() for z in part.parameters()}
    assert {id(z) for z in vae.parameters() if z.requires_grad} == alone
    still = [m for m in vae.modules() if isinstance(m, torch.nn.BatchNorm2d) and not m.training]
    assert len(still) == 6, "statistics of what u is read from stay as they are, two levels of three networks"


def test_what_is_private_leaves_c():
    """Of two signals that share one number, c says both that and each one's own before, and only the first after."""
    torch.manual_seed(0)
    shared, own = torch.randn(2000, 1), {name: torch.randn(2000, 1) for name in ("a", "b")}
    noise = torch.randn(2000, 3)
    mix = {name: torch.randn(2, 16) for name in own}
    x = {name: torch.sigmoid(torch.cat([shared, z], 1) @ mix[name]) for name, z in own.items()}
    vae = build(PerceptronConfig(hidden=(64,), apart=True), ("a", "b"), (16,))
    present = all_present(x)

    def known(vae: VAE, name: str, number: torch.Tensor) -> float:
        c = vae.encode_shared(x, present)[name].detach()
        c = c + 0.1 * noise  # what is said more faintly than that is not asked for
        rows = torch.cat([c, c.square(), c.prod(1, keepdim=True), torch.ones(2000, 1)], 1)
        return float(1 - (number - rows @ torch.linalg.lstsq(rows, number).solution).var() / number.var())

    told, there = what_others_say(copy.deepcopy(vae), x, present)
    before = {name: (known(vae, name, own[name]), known(vae, name, shared)) for name in own}
    module = Distillation(vae).train()
    optimizer = torch.optim.Adam([z for z in vae.parameters() if z.requires_grad], 3e-3)
    for _ in range(400):
        optimizer.zero_grad()
        module(x, present, told, there).backward()
        optimizer.step()
    for name, (private, common) in before.items():
        assert private > 0.5 and known(vae, name, own[name]) < 0.1
        assert known(vae, name, shared) > max(0.8, common)


def test_what_is_held_stays_and_all_else_learns():
    vae = build()
    vae.hold_shared()
    objective = Objective(vae, LossConfig(agreement_first=0.5))
    x = images(vae)
    before = {name: z.clone() for name, z in vae.encode_shared(x, all_present(x)).items()}
    objective.train()
    optimizer = torch.optim.SGD([z for z in objective.parameters() if z.requires_grad], 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss, terms = objective(Batch(x, all_present(x)), 0.0)
        loss.backward()
        optimizer.step()
    assert "reconstruction" in terms, "codes that are held need no steps of their own"
    for name, z in vae.encode_shared(x, all_present(x)).items():
        assert torch.equal(z, before[name])
    idle = [name for name, z in objective.named_parameters() if z.requires_grad and z.grad is None]
    assert not idle


def test_held_codes_and_a_batch_without_any_term():
    vae = build()
    vae.hold_shared()
    off = {"kl_weight": 0.0, "agreement_weight": 0.0, "swap_weight": 0.0, "leak_weight": 0.0}
    x = images(vae, 3)
    present = {name: torch.arange(3) == number for number, name in enumerate(x)}  # one sample of each: none is decoded
    loss, _ = Objective(vae, LossConfig(**off)).train()(Batch(x, present))
    loss.backward()
    assert loss == 0


@pytest.fixture(scope="module")
def distilled(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("distilled") / "run"
    train_vae(tiny_recipe(run, "phantom", *APART))
    return run


def test_a_run_keeps_c_as_it_was_distilled(distilled):
    last, before = (load_tensors(distilled / "vae" / name / "weights.safetensors")[0] for name in ("", "distilled"))
    agreed, _ = load_tensors(distilled / "vae" / "agreed" / "weights.safetensors")
    of_c = [key for key in last if "layers_of_shared" in key or "read_shared" in key]
    assert of_c and all(torch.equal(last[key], before[key]) for key in of_c)
    assert not all(torch.equal(agreed[key], before[key]) for key in of_c)
    for key in last.keys() - set(of_c):
        assert torch.equal(agreed[key], before[key]), key
    assert any(not torch.equal(last[key], before[key]) for key in last)
    steps = [json.loads(line)["step"] for line in (distilled / "vae" / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 4


@pytest.mark.parametrize("before", [0, 1, 2])
def test_resumed_equals_uninterrupted(distilled, tmp_path, before):
    """Interrupted in the first, second and third of the trainings."""
    with interrupted(3, before):
        train_vae(tiny_recipe(tmp_path, "phantom", *APART))
    begun = [(tmp_path / "vae" / part / "last.safetensors").exists() for part in ("agreed", "distilled", "")]
    assert begun == [True, before > 0, before > 1]
    train_vae(tiny_recipe(tmp_path, "phantom", *APART))
    for part in ("agreed", "distilled", ""):
        assert same_training(tmp_path / "vae" / part, distilled / "vae" / part), part


def test_curves_show_all_three_trainings(distilled):
    drawn = {stage: curves(stage, read_log(distilled / stage)) for stage in STAGES if read_log(distilled / stage)}
    assert [picture.name for picture in drawn.values()] == [
        f"training_vae{part}" for part in ("_agreed", "_distilled", "")
    ]


def test_what_memory_does_not_suffice_for_is_named_by_its_own_setting(tmp_path, monkeypatch):
    def too_much(*inputs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("mandorla.vae.training.what_others_say", too_much)
    with pytest.raises(MandorlaError, match=r"shared codes, step 1: lower vae.distillation.batch_size \(now 16\)"):
        train_vae(tiny_recipe(tmp_path, "phantom", *APART))


def test_networks_that_read_c_and_u_by_the_same_layers_are_refused(tmp_path):
    with pytest.raises(MandorlaError, match=r"network of 't1' reads c and u by the same layers: set apart: true"):
        train_vae(tiny_recipe(tmp_path / "run", "phantom", "vae.distillation={}"))
    assert not (tmp_path / "run").exists()
