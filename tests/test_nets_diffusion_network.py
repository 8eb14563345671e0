"""Networks of stage 2 of the user's own: found, built, checked, and used for all that a transformer is used for."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from mandorla.config import dump, load_settings
from mandorla.diffusion.config import DiffusionConfig
from mandorla.diffusion.labels import LabelScale
from mandorla.diffusion.model import Diffusion
from mandorla.diffusion.samplers import SamplingConfig
from mandorla.errors import MandorlaError
from mandorla.latents import Layout
from mandorla.nets.diffusion_network import DIFFUSION_NETWORKS, DiffusionNetwork, OwnNetworkConfig, build_own_network
from mandorla.nets.transformer import TransformerConfig

LAYOUT = Layout({"shared": (3,), "t1": (2, 4, 3), "t2": (1, 4, 3)})
LABELS = {"grade": LabelScale(("low", "high"))}


class Plain(DiffusionNetwork):
    """Two layers over everything, with no more than what a user must write."""

    def __init__(self, layout, labels, width: int = 16):
        super().__init__(layout, labels)
        sizes = [torch.Size(shape).numel() for shape in layout.shapes.values()]
        self.layers = nn.Sequential(
            nn.Linear(sum(sizes) + len(sizes) + sum(labels.values()), width), nn.SiLU(), nn.Linear(width, sum(sizes))
        )

    def forward(self, components, times, held, labels):
        told = [labels[name].nan_to_num() for name in self.labels]
        return self.layout.split(self.layers(torch.cat([self.layout.join(components), times, *told], 1)))


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(DIFFUSION_NETWORKS.named, "plain", Plain)


def config(**more) -> DiffusionConfig:
    return DiffusionConfig(network=OwnNetworkConfig(kind="plain", options={"width": 8}), **more)


def drawn(num: int) -> dict[str, torch.Tensor]:
    return {name: torch.randn(num, *shape) for name, shape in LAYOUT.shapes.items()}


def test_it_is_chosen_by_kind_and_a_transformer_without_one(tmp_path):
    path = tmp_path / "stage-2.yaml"
    for text, network in (
        ("network: {width: 16}", TransformerConfig(width=16)),
        ("network: {kind: transformer, depth: 2}", TransformerConfig(depth=2)),
        ("network: {kind: plain, options: {width: 3}}", OwnNetworkConfig(kind="plain", options={"width": 3})),
    ):
        path.write_text(text)
        settings = load_settings(DiffusionConfig, path=path)
        assert settings.network == network
        path.write_text(dump(settings))
        assert load_settings(DiffusionConfig, path=path) == settings
    path.write_text("network: {kind: plain, width: 3}")
    with pytest.raises(MandorlaError, match="unknown key `network.width`; it belongs to network.kind=transformer"):
        load_settings(DiffusionConfig, path=path)


def test_it_is_built_by_name_or_path(monkeypatch):
    module = ModuleType("my_flows")
    module.Net = Plain
    monkeypatch.setitem(sys.modules, "my_flows", module)
    for kind in ("plain", "my_flows:Net"):
        network = build_own_network(OwnNetworkConfig(kind=kind, options={"width": 5}), LAYOUT, {"grade": 3})
        assert isinstance(network, Plain) and network.training
        assert network.layers[0].out_features == 5


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "unheard",
            {},
            "kind 'unheard' is not known: use one of transformer, .*plain, or package.module:Class, or name",
        ),
        ("no.such:Net", {}, "'no.such:Net' cannot be imported"),
        ("torch.nn:Linear", {}, "'torch.nn:Linear' is not a subclass of mandorla.DiffusionNetwork: derive it"),
        ("plain", {"size": 1}, "'plain' cannot be built: .*size.*; mend its constructor or diffusion.network.options"),
        ("plain", {"width": -1}, "'plain' cannot be built: RuntimeError: .*negative dimension"),
    ],
)
def test_what_cannot_be_built_is_named(kind, options, message):
    with pytest.raises(MandorlaError, match=f"diffusion.network.*{message}"):
        build_own_network(OwnNetworkConfig(kind=kind, options=options), LAYOUT, {})


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (
            lambda z, t, held, labels: {n: z[n] for n in ("shared", "t1")},
            r"it gives nothing for 't2', not \(2, 1, 4, 3",
        ),
        (lambda z, t, held, labels: z | {"t1": z["t2"]}, r"it gives shape \(2, 1, 4, 3\) for 't1', not \(2, 2, 4, 3\)"),
        (lambda z, t, held, labels: z | {"t1": z["t1"] + labels["grade"][0, 0]}, "gives NaN for 't1' where labels are"),
        (lambda z, t, held, labels: z | {"t1": z["t1"] * held["t1"][:, None]}, "KeyError: 't1'"),
        (lambda z, t, held, labels: z["t3"], "KeyError: 't3'"),
        (lambda z, t: z, "TypeError: .*positional arguments"),
    ],
)
def test_a_network_with_a_mistake_is_refused(monkeypatch, forward, message):
    monkeypatch.setattr(Plain, "forward", lambda self, *given: forward(*given))
    with pytest.raises(MandorlaError, match=f"diffusion.network 'plain': `forward` fails on two empty .*{message}"):
        build_own_network(OwnNetworkConfig(kind="plain"), LAYOUT, {"grade": 3})
    monkeypatch.undo()
    monkeypatch.setitem(DIFFUSION_NETWORKS.named, "plain", Plain)
    monkeypatch.setattr(Plain, "whole_tokens", lambda self, name, cells: cells[:, None])
    with pytest.raises(MandorlaError, match="`whole_tokens` fails .*for 't1' it gives other cells"):
        build_own_network(OwnNetworkConfig(kind="plain"), LAYOUT, {"grade": 3})


def test_random_numbers_go_on_as_if_it_had_not_been_checked():
    torch.manual_seed(0)
    Plain(LAYOUT, {}, 8)
    following = torch.rand(1)
    torch.manual_seed(0)
    build_own_network(OwnNetworkConfig(kind="plain", options={"width": 8}), LAYOUT, {})
    assert torch.equal(torch.rand(1), following)


def test_it_does_all_that_a_transformer_does():
    """It learns, regions and labels too, draws with guidance and autoguidance, keeps regions, and tells likelihoods."""
    torch.manual_seed(0)
    diffusion = Diffusion(config(region_share=0.5), LAYOUT, LABELS)
    diffusion.weak = Diffusion(config(), LAYOUT, LABELS).network
    everyone = {name: torch.ones(6, dtype=torch.bool) for name in LAYOUT.shapes}
    grade = LABELS["grade"].apply(torch.tensor([0, 1, 0, 1, 0, -1]).numpy())
    loss, _ = diffusion.loss(drawn(6), everyone, {"grade": grade})
    loss.backward()
    assert all(z.grad.abs().sum() > 0 for z in diffusion.network.parameters())

    noise, known = drawn(6), {"t2": drawn(6)["t2"]}
    guided = SamplingConfig(steps=2, guidance=1.5, autoguidance=1.5)
    made = diffusion.generate(noise, known, ["shared", "t1"], guided, labels={"grade": grade})
    assert {name: tuple(z.shape) for name, z in made.items()} == {"shared": (6, 3), "t1": (6, 2, 4, 3)}
    unguided = diffusion.generate(noise, known, ["shared", "t1"], SamplingConfig(steps=2), labels={"grade": grade})
    assert not torch.allclose(made["t1"], unguided["t1"])

    cells, begin = torch.zeros(6, 4, 3, dtype=torch.bool), drawn(6)
    cells[:, :2] = True
    kept = diffusion.generate(
        noise, known, ["t1"], SamplingConfig(steps=2), begin={"t1": begin["t1"]}, held={"t1": cells}
    )
    assert torch.equal(kept["t1"][:, :, :2], begin["t1"][:, :, :2])
    assert not torch.isclose(kept["t1"][:, :, 2:], begin["t1"][:, :, 2:]).any()

    data = {"t1": begin["t1"]}
    assert diffusion.log_likelihood(data, noise, known, 2).shape == (6,)
    assert diffusion.abduct(data, noise, known, 2)["t1"].shape == (6, 2, 4, 3)


def test_all_samples_have_times_of_their_own(monkeypatch):
    """Only the transformer takes those that all share in one row."""
    seen = []
    forward = Plain.forward
    monkeypatch.setattr(
        Plain, "forward", lambda self, z, times, *more: seen.append(times.shape) or forward(self, z, times, *more)
    )
    diffusion = Diffusion(config(), LAYOUT)
    diffusion.generate(drawn(5), {}, list(LAYOUT.shapes), SamplingConfig(steps=1))
    assert set(seen) == {(2, 3), (5, 3)}
