"""Stage 2 with a network that is exact: on Gaussian components every question has a known answer."""

import pytest
import torch
from oracles import GaussianFlow, GaussianNetwork, affine_map

from mandorla.diffusion.config import DiffusionConfig
from mandorla.diffusion.model import Diffusion, sample_noise
from mandorla.diffusion.samplers import SamplingConfig, evaluations
from mandorla.errors import MandorlaError
from mandorla.latents import Layout
from mandorla.nets.transformer import TransformerConfig

LAYOUT = Layout({"shared": (2,), "t1": (2, 1, 2), "t2": (3,)})
PLACES = {"shared": [0, 1], "t1": [2, 3, 4, 5], "t2": [6, 7, 8]}
SMALL = TransformerConfig(width=16, depth=1, heads=2)
FINE, COARSE = SamplingConfig(steps=100), SamplingConfig(steps=2)


def exact(mode: str = "joint") -> Diffusion:
    """Return a stage 2 that answers exactly for a Gaussian over all its components."""
    diffusion = Diffusion(DiffusionConfig(mode=mode, network=SMALL), LAYOUT)
    size = sum(len(PLACES[name]) for name in diffusion.layout.shapes)
    diffusion.network = GaussianNetwork(diffusion.layout, GaussianFlow.draw(size))
    return diffusion


def drawn(diffusion: Diffusion, known: dict[str, torch.Tensor], wanted: list[str]):
    """Return mean and covariance of the `wanted` components given one `known` sample."""
    layout = diffusion.layout
    size = sum(torch.Size(shape).numel() for shape in layout.shapes.values())

    def transport(noise: torch.Tensor) -> torch.Tensor:
        given = {name: z.expand(len(noise), *z.shape[1:]) for name, z in known.items()}
        out = diffusion.generate(layout.split(noise), given, wanted, FINE)
        return Layout({name: layout.shapes[name] for name in wanted}).join(out)

    mean, matrix = affine_map(transport, size)
    return mean, matrix @ matrix.T


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([], ["shared", "t1", "t2"]),
        (["shared"], ["t1", "t2"]),
        (["shared"], ["t2"]),
        (["t1"], ["shared", "t2"]),
        (["shared", "t2"], ["t1"]),
        ([], ["t2"]),
    ],
)
def test_conditionals_of_a_gaussian(given, wanted):
    """What is neither given nor wanted must not matter: the answer is the conditional without it."""
    diffusion = exact()
    known = {name: torch.randn(1, *LAYOUT.shapes[name], dtype=torch.float64) for name in given}
    mean, covariance = drawn(diffusion, known, wanted)
    at = [place for name in wanted for place in PLACES[name]]
    seen = [place for name in given for place in PLACES[name]]
    value = torch.cat([z.flatten() for z in known.values()]) if known else torch.empty(0)
    truth = diffusion.network.flow.conditional(at, seen, value)
    torch.testing.assert_close(mean, truth[0], atol=2e-3, rtol=0)
    torch.testing.assert_close(covariance, truth[1], atol=2e-3, rtol=0)


def test_the_residual_of_a_gaussian_is_what_the_shared_part_does_not_explain():
    """Backwards from u given c: noise that is standard normal, independent of c, and leads back to u."""
    diffusion = exact()
    names, places = ["shared", "t2"], PLACES["shared"] + PLACES["t2"]
    joint = Layout({name: LAYOUT.shapes[name] for name in names})
    flow = GaussianFlow(diffusion.network.flow.mean[places], diffusion.network.flow.covariance[places][:, places])

    def residual(noise: torch.Tensor) -> torch.Tensor:
        data = joint.split(flow.transport(noise))
        known, others = {"shared": data["shared"]}, LAYOUT.split(torch.zeros(len(noise), 9, dtype=torch.float64))
        eps = diffusion.abduct({"t2": data["t2"]}, others, known, 100)
        again = diffusion.generate(others | eps, known, ["t2"], FINE)
        torch.testing.assert_close(again["t2"], data["t2"], atol=1e-4, rtol=0)
        return joint.join(known | eps)

    mean, matrix = affine_map(residual, 5)
    covariance = matrix @ matrix.T
    torch.testing.assert_close(mean[2:], torch.zeros(3, dtype=torch.float64), atol=2e-3, rtol=0)
    torch.testing.assert_close(covariance[2:, 2:], torch.eye(3, dtype=torch.float64), atol=2e-3, rtol=0)
    torch.testing.assert_close(covariance[2:, :2], torch.zeros(3, 2, dtype=torch.float64), atol=2e-3, rtol=0)


def test_mode_private_leaves_the_shared_part_out():
    diffusion = exact("private")
    assert list(diffusion.layout.shapes) == ["t1", "t2"]
    mean, covariance = drawn(diffusion, {"shared": torch.randn(1, 2)}, ["t1", "t2"])
    torch.testing.assert_close(mean, diffusion.network.flow.mean, atol=2e-3, rtol=0)
    torch.testing.assert_close(covariance, diffusion.network.flow.covariance, atol=2e-3, rtol=0)


def test_modes_refuse_what_they_did_not_learn():
    noise = sample_noise(LAYOUT, 0, [(0,)])
    for mode in ("conditional", "private"):
        with pytest.raises(MandorlaError, match="use mode joint"):
            exact(mode).generate(noise, {}, ["shared"], COARSE)
    learned = Diffusion(DiffusionConfig(mode="private", network=SMALL), LAYOUT)
    with pytest.raises(MandorlaError, match="use mode joint"):  # also where cells of what is wanted are held
        learned.generate(noise, {}, ["shared"], COARSE, begin=noise, held={"shared": torch.ones(1, 1).bool()})
    with pytest.raises(MandorlaError, match="needs the shared part"):
        exact("conditional").generate(noise, {}, ["t1"], COARSE)
    with pytest.raises(MandorlaError, match="guidance without labels must be 1"):
        exact("conditional").generate(noise, noise, ["t1"], SamplingConfig(guidance=2.0))


def test_autoguidance_leads_away_from_the_weaker_network():
    diffusion, noise = exact(), {n: z.double() for n, z in sample_noise(LAYOUT, 0, [(i,) for i in range(4)]).items()}

    def drawn(weight: float, guidance: float = 1.0) -> torch.Tensor:
        sampling = SamplingConfig(steps=1, sampler="euler", autoguidance=weight, guidance=guidance)
        return diffusion.generate(noise, {"shared": noise["shared"]}, ["t2"], sampling)["t2"]

    with pytest.raises(MandorlaError, match="no weaker network to be led away from: train it with"):
        drawn(2.0)
    strong, diffusion.weak = diffusion.network, GaussianNetwork(LAYOUT, GaussianFlow.draw(9, seed=1))
    plain, led, guided, both = drawn(1.0), drawn(2.0), drawn(1.0, 3.0), drawn(2.0, 3.0)
    diffusion.network = diffusion.weak
    torch.testing.assert_close(led, 2 * plain - drawn(1.0))
    torch.testing.assert_close(both - guided, led - plain)
    assert (led - plain).abs().max() > 1e-3
    assert strong is not diffusion.weak


def test_guidance_begins_where_it_is_told():
    """Two steps of which the second alone is guided: one without, and on from half of its way one with."""
    diffusion, noise = exact(), {n: z.double() for n, z in sample_noise(LAYOUT, 0, [(i,) for i in range(4)]).items()}
    diffusion.weak, known = GaussianNetwork(LAYOUT, GaussianFlow.draw(9, seed=1)), {"shared": noise["shared"]}
    plain = SamplingConfig(steps=1, sampler="euler")
    guided = plain.model_copy(update={"guidance": 3.0, "autoguidance": 2.0})
    late = guided.model_copy(update={"steps": 2, "guided_from": 0.4})
    begin = diffusion.generate(noise, known, ["t2"], plain)
    expected = diffusion.generate(noise, known, ["t2"], guided, begin=begin, start=0.5)
    torch.testing.assert_close(diffusion.generate(noise, known, ["t2"], late)["t2"], expected["t2"])
    never = late.model_copy(update={"guided_from": 0.6})
    twice = plain.model_copy(update={"steps": 2})
    assert torch.equal(
        diffusion.generate(noise, known, ["t2"], never)["t2"], diffusion.generate(noise, known, ["t2"], twice)["t2"]
    )


def test_guidance_begins_at_a_time_of_the_grid_however_that_is_rounded():
    for steps in range(2, 60):
        for k in range(1, steps):
            sampling = SamplingConfig(steps=steps, sampler="euler", autoguidance=2.0, guided_from=k / steps)
            assert evaluations(sampling) == steps + (steps - k), (k, steps)


@pytest.mark.parametrize("sampler", ["multistep", "dpm", "heun", "euler", "sde"])
def test_evaluations_are_what_a_sample_takes(sampler):
    diffusion, noise = exact(), sample_noise(LAYOUT, 0, [(i,) for i in range(4)])
    diffusion.weak, calls = GaussianNetwork(LAYOUT, GaussianFlow.draw(9, seed=1)), []
    for network in (diffusion.network, diffusion.weak):
        network.register_forward_hook(lambda *_: calls.append(1))
    for known in ({}, {"shared": noise["shared"]}):
        for weights in ({}, {"autoguidance": 2.0}, {"guidance": 2.0}, {"guidance": 2.0, "autoguidance": 2.0}):
            sampling = SamplingConfig(sampler=sampler, steps=5, guided_from=0.5, shift=0.7, **weights)
            calls.clear()
            diffusion.generate(noise, known, ["t2"], sampling, fresh=lambda _: noise)
            assert evaluations(sampling, bool(known)) == len(calls)


def test_guidance_pushes_along_what_is_known():
    """At 1 it is what was learned, at 0 nothing is known; between and beyond the velocity follows a straight line."""
    diffusion, noise = exact(), {n: z.double() for n, z in sample_noise(LAYOUT, 0, [(i,) for i in range(4)]).items()}
    known = {"shared": torch.ones(4, 2, dtype=torch.float64)}
    once = [
        diffusion.generate(noise, known, ["t2"], SamplingConfig(steps=1, sampler="euler", guidance=g))["t2"]
        for g in (0.0, 1.0, 2.0)
    ]
    blind = diffusion.generate(noise, {}, ["t2"], SamplingConfig(steps=1, sampler="euler"))["t2"]
    torch.testing.assert_close(once[0], blind)
    torch.testing.assert_close(once[2] - once[1], once[1] - once[0])
    assert (once[1] - once[0]).abs().max() > 1e-3


def test_a_way_that_begins_between_noise_and_data():
    """What is noised to time t and drawn again has the data's law; beginning at the end nothing changes."""
    diffusion = exact()
    flow = diffusion.network.flow

    def again(both: torch.Tensor) -> torch.Tensor:
        noise, source = both.split(9, dim=1)
        begin = LAYOUT.split(flow.transport(source))
        out = diffusion.generate(LAYOUT.split(noise), {}, list(LAYOUT.shapes), FINE, begin=begin, start=0.6)
        return LAYOUT.join(out)

    mean, matrix = affine_map(again, 18)
    torch.testing.assert_close(mean, flow.mean, atol=2e-3, rtol=0)
    torch.testing.assert_close(matrix @ matrix.T, flow.covariance, atol=2e-3, rtol=0)
    data = {name: torch.randn(3, *shape) for name, shape in LAYOUT.shapes.items()}
    noise = sample_noise(LAYOUT, 0, [(i,) for i in range(3)])
    kept = diffusion.generate(noise, {}, ["t1"], COARSE, begin=data, start=1.0)
    torch.testing.assert_close(kept["t1"], data["t1"])


@pytest.mark.parametrize("sampler", ["heun", "multistep", "sde"])
def test_a_region_given_the_rest_of_its_map(sampler):
    """Some cells of a map are held: the others have the Gaussian's law given these and what else is known."""
    diffusion = exact()
    flow = diffusion.network.flow
    known, begin = ({name: torch.randn(1, *LAYOUT.shapes[name], dtype=torch.float64)} for name in ("t2", "t1"))
    sampling = SamplingConfig(steps=100, sampler=sampler)
    count = 1 + (sampling.steps if sampler == "sde" else 0)

    def transport(noise: torch.Tensor) -> torch.Tensor:
        first, *others = (LAYOUT.split(z) for z in noise.split(9, dim=1))
        every = {name: z.expand(len(noise), *z.shape[1:]) for name, z in {**known, **begin}.items()}
        held = {"t1": torch.tensor([[[True, False]]]).expand(len(noise), 1, 2)}
        way = {"fresh": lambda k: others[k], "begin": {"t1": every["t1"]}, "held": held}
        out = diffusion.generate(first, {"t2": every["t2"]}, ["t1"], sampling, **way)["t1"]
        assert torch.equal(out[..., 0], every["t1"][..., 0])
        return out[..., 1].flatten(1)

    mean, matrix = affine_map(transport, 9 * count)
    places = PLACES["t1"]
    seen, value = [places[0], places[2], *PLACES["t2"]], torch.cat([begin["t1"][0, :, 0, 0], known["t2"][0]])
    truth = flow.conditional([places[1], places[3]], seen, value)
    tolerance = 4e-2 if sampler == "sde" else 2e-3
    torch.testing.assert_close(mean, truth[0], atol=tolerance, rtol=0)
    torch.testing.assert_close(matrix @ matrix.T, truth[1], atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("given", "wanted"), [([], ["shared", "t1", "t2"]), (["shared"], ["t2"]), (["t1"], ["shared"])]
)
def test_log_likelihood_of_a_gaussian(given, wanted):
    diffusion = exact()
    flow = diffusion.network.flow
    data = LAYOUT.split(flow.transport(torch.randn(4, 9, dtype=torch.float64)))
    noise = LAYOUT.split(torch.zeros(4, 9, dtype=torch.float64))
    known, asked = ({name: data[name] for name in names} for names in (given, wanted))
    found = diffusion.log_likelihood(asked, noise, known, 60)
    at = [place for name in wanted for place in PLACES[name]]
    seen = [place for name in given for place in PLACES[name]]
    joined = LAYOUT.join(data)
    truth = []
    for row in joined:
        mean, covariance = flow.conditional(at, seen, row[seen])
        truth.append(torch.distributions.MultivariateNormal(mean, covariance).log_prob(row[at]))
    torch.testing.assert_close(found, torch.stack(truth), atol=3e-2, rtol=0)
    signs = 2.0 * torch.randint(0, 2, (300, len(at)), generator=torch.Generator().manual_seed(0)) - 1
    guess = diffusion.log_likelihood(asked, noise, known, 6, signs)
    torch.testing.assert_close(guess, diffusion.log_likelihood(asked, noise, known, 6), atol=0.5, rtol=0)


@pytest.mark.parametrize(
    ("mode", "region_share"), [("joint", 0.0), ("joint", 0.7), ("conditional", 0.0), ("private", 0.0)]
)
def test_loss_is_smallest_at_the_exact_velocity(mode, region_share):
    diffusion = exact(mode)
    diffusion.config = diffusion.config.model_copy(update={"region_share": region_share})
    size = len(diffusion.network.flow.mean)
    data = {"shared": torch.zeros(4000, 2, dtype=torch.float64)}
    data |= diffusion.layout.split(diffusion.network.flow.transport(torch.randn(4000, size, dtype=torch.float64)))
    given = {name: torch.ones(4000, dtype=torch.bool) for name in LAYOUT.shapes}
    losses = {}
    for factor in (0.9, 1.0, 1.1):
        diffusion.network.register_forward_hook(lambda _, __, out, f=factor: {n: f * z for n, z in out.items()})
        torch.manual_seed(1)
        losses[factor] = diffusion.loss(data, given)[0].item()
        diffusion.network._forward_hooks.clear()
    assert losses[1.0] < min(losses[0.9], losses[1.1])


def test_missing_components_give_no_information():
    diffusion = Diffusion(DiffusionConfig(network=SMALL), LAYOUT)
    for parameter in diffusion.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    data = {name: torch.randn(8, *shape) for name, shape in LAYOUT.shapes.items()}
    given = {name: torch.ones(8, dtype=torch.bool) for name in LAYOUT.shapes}
    given["t2"][:] = False
    values = []
    for content in (0.0, 5.0):
        torch.manual_seed(0)
        total, parts = diffusion.loss(data | {"t2": torch.full((8, 3), content)}, given)
        assert parts["t2"] == 0
        values.append(total.item())
    assert values[0] == values[1]


def test_noise_depends_on_seed_and_key_alone():
    noise = sample_noise(LAYOUT, 3, [(0,), (1,), (2,)])
    again = sample_noise(LAYOUT, 3, [(2,), (0,)])
    other = sample_noise(LAYOUT, 4, [(0,), (1,), (2,)])
    for name, shape in LAYOUT.shapes.items():
        assert noise[name].shape == (3, *shape)
        assert torch.equal(noise[name][[2, 0]], again[name])
        assert not torch.isclose(noise[name], other[name]).any(), "another seed is another noise"
    assert not torch.isclose(noise["t2"][0], noise["t2"][1]).any()
    assert not torch.isclose(sample_noise(LAYOUT, 3, [(0, 1)])["t2"], noise["t2"]).any()
    assert not torch.isclose(sample_noise(LAYOUT, 3, [(0, 0)])["t2"], noise["t2"][:1]).any(), "a draw is no sample"
    many = LAYOUT.join(sample_noise(LAYOUT, 0, [(i,) for i in range(3000)]))
    assert many.mean().item() == pytest.approx(0, abs=4 / many.numel() ** 0.5)
    assert many.var().item() == pytest.approx(1, abs=4 * (2 / many.numel()) ** 0.5)
    assert sample_noise(LAYOUT, 2**40, [(0,)])["t2"].isfinite().all(), "large seeds are seeds as well"


def test_states_stay_in_float32_where_the_network_is_rounded():
    diffusion = Diffusion(DiffusionConfig(network=SMALL), LAYOUT)
    for parameter in diffusion.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    noise = sample_noise(LAYOUT, 0, [(i,) for i in range(50)])
    rounded, exactly = (
        LAYOUT.join(diffusion.generate(noise, {}, list(noise), SamplingConfig(precision=precision)))
        for precision in ("bf16", "fp32")
    )
    assert rounded.dtype == exactly.dtype == torch.float32
    error = (rounded - exactly).square().mean().sqrt() / exactly.std()
    assert 0 < error < 0.02
    assert (rounded.bfloat16() == rounded).float().mean() < 0.1
