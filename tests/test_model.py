"""Both stages joined: what is drawn depends on its seed and index alone; given parts are kept; mistakes are named."""

import shutil
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mandorla
from mandorla import checkpoint, engine, recipe
from mandorla.data.dataset import Modality
from mandorla.engine import TRANSLATE
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.latents import Latents, to_sphere
from mandorla.model import Samples
from mandorla.nets.encoder_decoder import ConvolutionalConfig, build_encoder_decoder
from mandorla.regions import cells_in

pytestmark = pytest.mark.filterwarnings("ignore:.*much darker or brighter")  # than noise, which tests feed
RUNS = ["polydigits_run", "phantom_run", "signals_run", "volumes_run"]
CLOSE = {"atol": 5e-5, "rtol": 0}  # single precision, enlarged where a code of nearly no length is scaled to the sphere


@pytest.fixture(scope="module", params=RUNS)
def model(request):
    return mandorla.load(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def digits(polydigits_run):
    return mandorla.load(polydigits_run)


def some(model, num: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {m.name: torch.rand(num, *m.shape, generator=generator) for m in model.modalities}


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert list(a) == list(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], **CLOSE)


def test_facts(model, request):
    assert model.recipe.run == str(model.run)
    assert model.data().modalities == model.modalities
    assert len(model.data().train) > 0


# --------------------------------------------------------------------------------------------------- encode, decode


def test_values_of_files_come_to_unit_and_back(scans_run):
    model = mandorla.load(scans_run)
    raw = {"t1": np.linspace(0, 420, 128, dtype=np.int16).reshape(2, 1, 8, 8)}
    unit = model.to_unit(raw)
    scale = model.intensity["t1"].usual
    np.testing.assert_allclose(unit["t1"], ((raw["t1"] - scale.low) / (scale.high - scale.low)).clip(0, 1), atol=1e-6)
    inside = (unit["t1"] > 0) & (unit["t1"] < 1)
    np.testing.assert_allclose(model.from_unit(unit)["t1"][inside], raw["t1"][inside], atol=1e-2)
    with pytest.raises(MandorlaError, match="unknown modality 't3'; this model has t1, t2"):
        model.to_unit({"t3": raw["t1"]})


def test_inputs_far_outside_the_training_are_warned_of(scans_run):
    model = mandorla.load(scans_run)
    batch = model.data().test.batch(range(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error", MandorlaWarning)
        model.encode(batch.x, batch.present)
        model.translate({"t1": batch.x["t1"]}, ["t2"])
    strange = batch.x["t1"].clone()
    strange[1:3] /= 255
    with pytest.warns(MandorlaWarning, match="^2 of 4 t1: much darker or brighter than anything .* was trained on"):
        model.translate({"t1": strange}, ["t2"])


def test_encode_and_decode(model):
    x = some(model)
    latents = model.encode(x)
    assert {name: tuple(z.shape[1:]) for name, z in latents.components.items()} == model.vae.layout.shapes
    again = model.decode(latents)
    for m in model.modalities:
        assert again[m.name].shape == (4, *m.shape)
        assert 0 <= again[m.name].min() <= again[m.name].max() <= 1
    assert list(model.decode(Latents(latents.shared, {}))) == []


def test_arrays_are_as_good_as_tensors(digits):
    x = some(digits)
    close(digits.encode({n: z.double().numpy() for n, z in x.items()}).components, digits.encode(x).components)


def test_samples_do_not_depend_on_their_neighbours(model, monkeypatch):
    x = some(model, 5)
    latents, decoded = model.encode(x), model.decode(model.encode(x))
    monkeypatch.setattr(engine, "_CHUNK", 2)
    close(model.encode(x).components, latents.components)
    close(model.decode(latents), decoded)
    close(model.encode({name: z[3:4] for name, z in x.items()}).components, latents[3:4].components)


def test_a_gpu_is_given_more_at_once(model, monkeypatch):
    few = model.at_once
    monkeypatch.setattr(model, "device", torch.device("cuda"))
    assert 8 * few <= model.at_once < 8 * (few + 1)


def test_what_is_missing_is_not_looked_at(model):
    x = some(model)
    names = list(x)
    present = {name: torch.ones(4, dtype=torch.bool) for name in names}
    present[names[0]][1] = False
    poisoned = {name: z.clone() for name, z in x.items()}
    poisoned[names[0]][1] = torch.nan
    latents = model.encode(poisoned, present)
    rest = {name: x[name][1:2] for name in names[1:]}
    torch.testing.assert_close(latents.shared[1:2], model.encode(rest).shared, **CLOSE)
    torch.testing.assert_close(latents.shared[2:], model.encode(x).shared[2:], **CLOSE)
    numbers = {name: mask.int().tolist() for name, mask in present.items()}
    close(model.encode(poisoned, numbers).components, latents.components)


# ------------------------------------------------------------------------------------------------------------ draws


def test_sample_i_is_the_same_whatever_the_number(model, monkeypatch):
    many = model.sample(7, seed=3)
    few = model.sample(3, seed=3)
    monkeypatch.setattr(engine, "_CHUNK", 2)
    chunks = model.sample(7, seed=3)
    for name, z in many.latents.components.items():
        torch.testing.assert_close(few.latents.components[name], z[:3], **CLOSE)
        torch.testing.assert_close(chunks.latents.components[name], z, **CLOSE)
    close(chunks.x, many.x)
    close(few.x, {name: z[:3] for name, z in many.x.items()})
    close(model.decode(many.latents), many.x)


def test_samples_differ_by_seed_and_index(model):
    one, other = model.sample(2, seed=0).latents.components, model.sample(2, seed=1).latents.components
    for name in one:
        assert not torch.allclose(one[name], other[name], atol=1e-3)
        assert not torch.allclose(one[name][0], one[name][1], atol=1e-3)


def test_steps_are_those_asked_for(digits):
    default, same, more = (digits.sample(2, steps=steps).x["view0"] for steps in (None, 3, 30))
    assert torch.equal(default, same)
    assert not torch.equal(default, more)


def test_sampled_shared_parts_lie_on_the_sphere(model):
    shared = model.sample(3).latents.shared
    torch.testing.assert_close(shared.flatten(1).square().mean(1), torch.ones(3), **CLOSE)


def test_the_best_of_several_draws_is_the_most_consistent(model):
    best = model.sample(3, seed=1, best_of=4)
    latents = model._generate({}, list(model.vae.layout.shapes), [(i, k) for i in range(3) for k in range(4)], 1)
    all_of_them = Samples(model.decode(latents), latents)
    scores = model.consistency(all_of_them).view(3, 4)
    assert scores.abs().max() <= 1 + 1e-5 and scores.std(1).min() > 1e-4
    torch.testing.assert_close(model.consistency(best), scores.amax(1), **CLOSE)
    rows = torch.arange(3) * 4 + scores.argmax(1)
    close(best.x, {name: x[rows] for name, x in all_of_them.x.items()})
    first = next(iter(model.vae.layout.modalities))
    code = model.encode({first: best.x[first]}).shared
    same = Samples({first: best.x[first]}, Latents(code, {}))
    torch.testing.assert_close(model.consistency(same), torch.ones(3), **CLOSE)


def test_how_samples_are_drawn_may_be_changed(digits, monkeypatch):
    usual, draws = digits.sample(2, seed=5).x, {}
    for name in ("euler", "heun", "sde"):
        monkeypatch.setattr(digits, "sampling", digits.sampling.model_copy(update={"sampler": name}))
        draws[name] = digits.sample(2, seed=5).x
        close(draws[name], {k: x[:2] for k, x in digits.sample(3, seed=5).x.items()})  # fresh noise has seeds as well
        assert (draws[name]["view0"] - usual["view0"]).abs().max() > 0, "its steps differ, be it by little"
    monkeypatch.undo()
    given = {"view0": some(digits)["view0"]}
    plain = digits.translate(given, ["view1"])
    monkeypatch.setattr(digits, "sampling", digits.sampling.model_copy(update={"guidance": 3.0}))
    assert (digits.translate(given, ["view1"])["view1"] - plain["view1"]).abs().max() > 0


def test_any_component_given_any_others(model):
    first, *others = model.vae.layout.modalities
    known = Latents(None, {first: model.encode(some(model)).private[first]})
    full = model.complete(known, num=2, seed=3)
    assert len(full) == 8
    assert set(full.components) == set(model.vae.layout.shapes)
    torch.testing.assert_close(full.private[first], known.private[first].repeat_interleave(2, 0))
    assert (full.shared[0] - full.shared[1]).abs().max() > 1e-3, "two draws"
    part = model.complete(known, [others[0]])
    assert set(part.components) == {first, others[0]}
    assert part.shared is None
    alone = model.complete(Latents(None, {}), model.vae.layout.modalities, num=3)
    assert alone.shared is None and len(alone) == 3
    with pytest.raises(MandorlaError, match="both known and wanted"):
        model.complete(known, [first])
    with pytest.raises(MandorlaError, match="complete takes Latents"):
        model.complete(some(model))
    with pytest.raises(MandorlaError, match="mean nothing without the shared part"):
        model.complete(Latents(None, known.private, residual=True))
    for end in (Latents(None, known.private), known):
        with pytest.raises(MandorlaError, match="mixing needs a shared part at both ends"):
            model.interpolate(end, Latents(None, known.private), 3)


def test_variations_keep_as_much_as_is_asked_for(model):
    x = some(model)
    latents = model.encode(x)
    close(model.vary(x, 0.0).x, model.decode(latents))
    anew = model.vary(x, 1.0, seed=2)
    blank = Latents(latents.shared, {name: torch.zeros_like(u) for name, u in latents.private.items()})
    close(anew.latents.private, model.vary(blank, 1.0, seed=2).latents.private)
    torch.testing.assert_close(anew.latents.shared, latents.shared)
    shared = model.vary(x, 0.5, part="shared").latents
    close(shared.private, latents.private)
    assert (shared.shared - latents.shared).abs().max() > 1e-3
    torch.testing.assert_close(shared.shared.flatten(1).square().mean(1), torch.ones(len(shared)), **CLOSE)
    assert all(part.abs().max() > 1e-4 for part in _difference(model.vary(x, 0.5, part="both").latents, latents))
    close(model.vary(x, np.float32(0.5), seed=3).x, model.vary(x, 0.5, seed=3).x)
    few, many = (model.vary(x, 0.5, seed=3, num=num).x for num in (2, 3))
    for name, draws in many.items():
        draws = draws.unflatten(0, (-1, 3))
        torch.testing.assert_close(draws[:, :2].flatten(0, 1), few[name], msg="whatever their number", **CLOSE)
        assert (draws[:, 0] - draws[:, 2]).abs().max() > 1e-4
    for strength in (1.5, "a"):
        with pytest.raises(MandorlaError, match="strength is a number from 0 to 1"):
            model.vary(x, strength)


def test_no_operation_draws_the_noise_of_another(model):
    """What is drawn given a sample must not be what made it; here stage 2 gives back the noise that it gets."""
    asked: dict[str, np.ndarray] = {}

    def generate(noise, known, wanted, *_, **__):
        asked[what] = torch.cat([z.flatten(1) for z in noise.values()], 1).numpy()
        return {name: noise[name] for name in wanted}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.diffusion, "generate", generate)
        x = some(model)
        first = next(iter(x))
        latents = model.encode(x)
        wanted = [name for name in x if name != first]
        calls = {
            "sample": lambda: model.sample(4),
            "best of": lambda: model.sample(4, best_of=2),
            "private": lambda: model.sample_private(latents.shared),
            "complete": lambda: model.complete(Latents(latents.shared, {})),
            "vary": lambda: model.vary(x, 1.0),
            "translate": lambda: model.translate({first: x[first]}, wanted),
        }
        for what, call in calls.items():  # noqa: B007
            call()
    rows = np.concatenate(list(asked.values()))
    assert len(np.unique(rows, axis=0)) == len(rows) == 28


def test_a_draw_of_what_was_read_is_as_wide_as_its_posterior(digits):
    x = some(digits)
    mean, one, same = digits.encode(x), digits.encode(x, seed=0), digits.encode(x, seed=0)
    close(one.private, same.private)
    assert torch.equal(one.shared, mean.shared)
    draws = torch.stack([digits.encode(x, seed=seed).private["view0"] for seed in range(200)])
    features, codes = digits.vae.encode(x, {name: torch.ones(4, dtype=torch.bool) for name in x})
    _, log_std = digits.vae.posterior("view0", features["view0"], mean.shared)
    torch.testing.assert_close(draws.std(0), log_std.exp(), rtol=0.25, atol=0)
    few = digits.encode({name: z[:2] for name, z in x.items()}, seed=0)
    close(few.private, one[:2].private)


def test_stage_2_does_not_take_what_is_missing_for_seen(signals_run):
    model = mandorla.load(signals_run)
    x = some(model)
    last = list(x)[-1]
    present = {name: torch.tensor([name != last, True, True, True]) for name in x}
    latents = model.encode(x, present)
    assert latents[1:].present[last].all() and not latents.present[last].all()
    for call in (
        lambda: model.complete(latents),
        lambda: model.log_likelihood(latents),
        lambda: model.vary(latents, 0.5),
    ):
        with pytest.raises(MandorlaError, match=f"1 of 4 samples lack '{last}': encode samples that have the same"):
            call()
    assert torch.isfinite(model.log_likelihood(latents[1:], num_probes=1)).all()
    rest = {name: u for name, u in latents.private.items() if name != last}
    assert set(model.complete(Latents(latents.shared, rest)).private) == set(x)


@pytest.mark.parametrize(("size", "patch"), [(50, 8), (33, 8), (32, 8), (50, 4)])
def test_the_cells_that_a_region_touches_are_those_that_its_pixels_are_in(size, patch):
    """Where strides do not divide a size, the last cell is filled up: the others stay where they are."""
    config = ConvolutionalConfig(patch=patch, channels=(4,), hidden=4)
    cells = -(-size // patch)
    network = build_encoder_decoder(config, Modality("a", 1, (size,)), (2, cells), (2, cells))
    vae = SimpleNamespace(networks={"a": network})
    for pixel in range(size):
        region = torch.arange(size) == pixel
        for name in ("shared", "a"):
            found = cells_in(vae, region, name, torch.zeros(2, 1, cells))
            assert found.shape == (2, cells) and found.nonzero()[:, 1].tolist() == [pixel // patch] * 2
    assert cells_in(vae, region[1:], "a", torch.zeros(2, 1, cells)) is None, "no region of these images"


def test_in_painting_of_maps_that_are_unlike(model, monkeypatch):
    """A region belongs to the images of its size: others stay."""
    x = some(model)
    if len(model.modalities[0].size) != 2:
        return
    monkeypatch.setattr(model.diffusion, "config", model.diffusion.config.model_copy(update={"region_share": 0.2}))
    latents = model.encode(x)
    if any(z.ndim < 3 for z in latents.components.values()):
        return
    first = model.modalities[0].name
    monkeypatch.setattr(
        "mandorla.model.cells_in", lambda v, r, name, z: cells_in(v, r, name, z) if name == first else None
    )
    region = torch.ones(model.modalities[0].size, dtype=torch.bool)
    drawn = model.inpaint(latents, region).latents
    for name, z in latents.components.items():
        assert torch.equal(drawn.components[name], z) == (name != first)


def test_in_painting_changes_a_region_alone(model, monkeypatch):
    x = some(model)
    monkeypatch.setattr(model.diffusion, "config", model.diffusion.config.model_copy(update={"region_share": 0.2}))
    size = model.modalities[0].size
    region = torch.zeros(size, dtype=torch.bool)
    region[tuple(slice(0, max(1, n // 4)) for n in size)] = True
    latents = model.encode(x)
    maps = [name for name, z in latents.components.items() if z.ndim > 2]
    if not maps:
        with pytest.raises(MandorlaError, match="no part is a map"):
            model.inpaint(x, region)
        return
    nowhere = model.inpaint(x, ~region & region)
    close(nowhere.latents.components, latents.components)
    close(nowhere.x, x)
    samples, other = model.inpaint(x, region, seed=1), model.inpaint(x, region, seed=2)
    for name, z in samples.latents.components.items():
        changed = (
            (other.latents.components[name] - z).abs().flatten(2).amax(1) > 1e-4 if name in maps else z.new_zeros(1, 1)
        )
        assert changed.any() == (name in maps) and not changed[:, -1].any(), "the far corner stays"
    for name, image in x.items():
        assert torch.equal(samples.x[name][..., ~region], image[..., ~region]), "what lies around stays as it is"
    changed = {name: image.where(~region, 1 - image) for name, image in x.items()}
    close(model.inpaint(changed, region, seed=1).x, samples.x)  # what lies in the region is not looked at
    kept = [model.inpaint(data, region, "private", seed=1).latents.shared for data in (x, changed)]
    torch.testing.assert_close(kept[0], latents.shared)
    assert (kept[1] - kept[0]).abs().max() > 1e-3, "the shared part is that of the whole image where it stays"
    twice = model.inpaint(x, region, seed=1, num=2)
    close({name: z[::2] for name, z in twice.x.items()}, samples.x)
    assert any((z[::2] - z[1::2]).abs().max() > 1e-4 for z in twice.x.values())
    few = model.inpaint({n: v[:2] for n, v in x.items()}, region.expand(2, *size), seed=1)
    close(few.latents.components, samples.latents[:2].components)
    torch.testing.assert_close(model.inpaint(latents, region, "private").latents.shared, latents.shared)
    length = samples.latents.shared.flatten(1).square().mean(1)
    torch.testing.assert_close(length, torch.ones(4), **CLOSE)  # where decoders know it
    for wrong in (region[None], region[..., 1:]):
        with pytest.raises(MandorlaError, match="a region has the size of the images"):
            model.inpaint(x, wrong)
    with pytest.raises(MandorlaError, match="or one more axis for 4 samples"):
        model.inpaint(x, region.expand(3, *size))
    monkeypatch.undo()
    with pytest.raises(MandorlaError, match="region_share=0.2"):
        model.inpaint(x, region)


def test_how_samples_are_drawn_is_checked_when_it_is_set(digits):
    for update, message in (
        ({"step": 9}, r"sampling: unknown key `step`.*`steps`"),
        ({"sampler": "foo"}, "`sampler`: expected multistep"),
        ({"guidance": -3.0}, "`guidance`: should be greater than or equal to 0"),
        ({"shift": 0.0}, "`shift`"),
    ):
        with pytest.raises(MandorlaError, match=message):
            digits.sampling = digits.sampling.model_copy(update=update)
    with pytest.raises(MandorlaError, match="refining: `temperature`"):
        digits.refining = digits.refining.model_copy(update={"temperature": "hot"})
    with pytest.raises(MandorlaError, match="sampling is a SamplingConfig, not a dict"):
        digits.sampling = {"steps": 3}


def test_questions_that_make_no_sense_are_refused(digits):
    x = some(digits)
    latents = digits.complete(Latents(None, {}), ["shared", "shared", "view0"])
    assert list(latents.components) == ["shared", "view0"]
    for ask, message in (
        (lambda: digits.sample(1, labels=["a"]), "labels are a mapping"),
        (lambda: digits.consistency(x), "consistency takes Samples"),
        (lambda: digits.mix(x, x, "a", 0.0), "shared must be a weight"),
        (lambda: digits.complete(Latents(None, {}), 3), "expected names"),
    ):
        with pytest.raises(MandorlaError, match=message):
            ask()


def _difference(a: Latents, b: Latents) -> list[torch.Tensor]:
    return [a.components[name] - b.components[name] for name in a.components]


def test_log_likelihood_of_all_or_some_components(digits):
    latents = digits.encode(some(digits))[:2]
    exact = digits.log_likelihood(latents)
    assert exact.shape == (2,) and exact.isfinite().all()
    guess = digits.log_likelihood(latents, num_probes=64)
    torch.testing.assert_close(guess, exact, atol=0.15 * exact.abs().max().item(), rtol=0)
    given = digits.log_likelihood(latents, wanted=["view1"])
    assert given.shape == (2,) and (given > exact).all(), "fewer values, fewer nats"
    with pytest.raises(MandorlaError, match="no component 'view7'"):
        digits.log_likelihood(latents, wanted="view7")
    torch.testing.assert_close(digits.log_likelihood(latents, wanted="view1"), given)
    with pytest.raises(MandorlaError, match="of nothing"):
        digits.log_likelihood(latents, wanted=[])
    with pytest.raises(MandorlaError, match="num_probes must be a whole number"):
        digits.log_likelihood(latents, num_probes=0)


def test_private_parts_given_the_shared_one(model):
    shared = model.encode(some(model)).shared
    latents = model.sample_private(shared, seed=2)
    assert torch.equal(latents.shared, shared)
    assert list(latents.private) == list(model.vae.layout.modalities)
    name = model.modalities[1].name
    assert list(model.sample_private(shared, wanted=[name]).private) == [name]
    assert not torch.allclose(model.sample_private(shared, seed=3).private[name], latents.private[name], atol=1e-3)


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("batch", [1, 4])
def test_translate_shape(model, num, batch):
    first, *rest = model.modalities
    wanted = [m.name for m in rest]
    drawn = model.translate({first.name: some(model, batch)[first.name]}, wanted, num_samples=num)
    assert list(drawn) == wanted
    for m in rest:
        assert drawn[m.name].shape == (num, batch, *m.shape)
        assert 0 <= drawn[m.name].min() <= drawn[m.name].max() <= 1


def test_a_guess_without_a_draw_has_its_private_part_at_the_mean_of_its_prior(model):
    x = some(model, 3)
    given, wanted = list(x)[0], list(x)[1:]
    guess = model.translate({given: x[given]}, wanted, num_samples=0)
    c = model.encode({given: x[given]}).shared
    for name in wanted:
        zero = torch.zeros(3, *model.vae.layout.shapes[name])
        expected = model.decode(mandorla.Latents(c, {name: zero}), refined=False)[name]
        torch.testing.assert_close(guess[name], expected[None], rtol=0, atol=0)
    with pytest.raises(MandorlaError, match="with num_samples 0 nothing is"):
        model.translate({given: x[given]}, wanted, num_samples=0, labels={"age": 3})


def test_translations_do_not_depend_on_number_or_batch(model):
    first, second = (m.name for m in model.modalities[:2])
    x = some(model)[first]
    many = model.translate({first: x}, [second], num_samples=5, seed=1)[second]
    few = model.translate({first: x[:2]}, [second], num_samples=2, seed=1)[second]
    torch.testing.assert_close(few, many[:2, :2], **CLOSE)
    assert not torch.allclose(many[0], many[1], atol=1e-3)
    assert not torch.allclose(many, model.translate({first: x}, [second], num_samples=5, seed=2)[second], atol=1e-3)


def test_what_is_wanted_does_not_change_the_shared_part(digits):
    """Asked for together or alone, a translation keeps the shared code of what is given."""
    x = {"view0": some(digits)["view0"]}
    latents = digits.encode(x)
    keys = [(TRANSLATE, index, 0) for index in range(4)]
    drawn = digits._generate(latents.components, ["view1"], keys, seed=0)
    assert torch.equal(drawn.shared, latents.shared)
    assert torch.equal(drawn.private["view0"], latents.private["view0"])
    torch.testing.assert_close(digits.decode(drawn)["view1"], digits.translate(x, ["view1"])["view1"][0], **CLOSE)


def test_stage_2_works_on_whitened_latents(model, monkeypatch):
    """Known parts go in whitened; what comes out is coloured: a drawn zero is the mean of the training set."""
    (diffusion, whitening), known = model._stage_2, {}
    first, second = (m.name for m in model.modalities[:2])
    shape = model.vae.layout.shapes[second]

    def generate(noise, given, wanted, sampling, **_):
        known.update(given)
        return {name: torch.zeros(4, *shape) for name in wanted}

    monkeypatch.setattr(diffusion, "generate", generate)
    latents = model.encode({first: some(model)[first]})
    drawn = model._generate(latents.components, [second], [(k,) for k in range(4)], seed=0)
    torch.testing.assert_close(drawn.private[second], whitening.mean[second].expand(4, *shape))
    assert list(known) == ["shared", first]
    for name, z in latents.components.items():
        torch.testing.assert_close(known[name] * whitening.std[name] + whitening.mean[name], z, **CLOSE)
        assert torch.equal(drawn.components[name], z), "what is known comes back as it was"


# --------------------------------------------------------------------------------------------- swap and interpolate


def test_swap_with_itself_is_the_reconstruction(model):
    x = some(model)
    close(model.swap(x, x), model.decode(model.encode(x)))
    latents = model.encode(x)
    close(model.swap(latents, x), model.swap(x, latents))


def test_the_residual_leads_back(polydigits_run):
    model = mandorla.load(polydigits_run)
    torch.manual_seed(0)
    for parameter in model.diffusion.parameters():  # six steps of training taught it next to nothing
        torch.nn.init.normal_(parameter, std=0.08)
    x = some(model)
    plain, residual = model.encode(x), model.encode(x, residual=True)
    assert residual.residual and residual[:2].residual and not plain.residual
    assert all((residual.private[name] - plain.private[name]).abs().max() > 0.05 for name in plain.private)
    back = model.from_residual(residual)
    for name, u in plain.private.items():
        assert (back.private[name] - u).square().mean().sqrt() < 1e-3 * u.std()
    again, truth = model.decode(residual), model.decode(plain)
    for name in truth:
        torch.testing.assert_close(again[name], truth[name], atol=1e-3, rtol=0)
    other = some(model, seed=1)
    close(model.swap(other, x, residual=True), model.swap(other, residual))
    assert any((model.swap(other, residual)[n] - model.swap(other, x)[n]).abs().max() > 1e-3 for n in truth)


def test_the_residual_needs_the_shared_part(polydigits_run):
    model = mandorla.load(polydigits_run)
    object.__setattr__(model.diffusion, "config", model.diffusion.config.model_copy(update={"mode": "private"}))
    with pytest.raises(MandorlaError, match="mode joint or conditional"):
        model.encode(some(model), residual=True)


def test_swap_takes_each_part_from_its_side(model):
    a, b = model.encode(some(model)), model.encode(some(model, seed=1))
    close(model.swap(a, b), model.decode(Latents(a.shared, b.private)))
    name = model.modalities[0].name
    alone = model.swap({name: some(model)[name]}, some(model, seed=1))
    assert list(alone) == [m.name for m in model.modalities], "all modalities of private_from"


def test_interpolation_ends_in_the_reconstructions(model):
    a, b = some(model), some(model, seed=1)
    path = model.interpolate(a, b, num=5)
    assert all(x.shape == (5, 4, *m.shape) for x, m in zip(path.values(), model.modalities, strict=True))
    close({name: x[0] for name, x in path.items()}, model.decode(model.encode(a)))
    close({name: x[-1] for name, x in path.items()}, model.decode(model.encode(b)))
    shared, private = (model.interpolate(a, b, 3, part) for part in ("shared", "private"))
    close({name: x[-1] for name, x in shared.items()}, model.swap(b, a))
    close({name: x[-1] for name, x in private.items()}, model.swap(a, b))
    for part in (shared, private):
        close({name: x[0] for name, x in part.items()}, model.decode(model.encode(a)))


def test_interpolation_returns_what_both_have(digits):
    x = some(digits)
    path = digits.interpolate({n: x[n] for n in ("view0", "view1")}, {n: x[n] for n in ("view2", "view1")}, 2)
    assert list(path) == ["view1"]


def test_mixes_lie_between_the_swaps(model):
    a, b = some(model), some(model, seed=1)
    close(model.mix(a, b, 0, 1), model.swap(a, b))
    close(model.mix(a, b, 1, 0), model.swap(b, a))
    middle = {name: x[1] for name, x in model.interpolate(a, b, 3).items()}
    close(model.mix(a, b, 0.5, 0.5), middle)


def test_mixes_of_residuals(digits):
    a, b = some(digits), some(digits, seed=1)
    close(digits.mix(a, b, 0, 1, residual=True), digits.swap(a, b, residual=True))


def test_a_component_that_is_asked_for_twice_counts_once(digits):
    x = some(digits)
    once, twice = (digits.log_likelihood(x, ["view0"] * times, num_probes=2) for times in (1, 2))
    torch.testing.assert_close(twice, once)


def test_a_run_of_a_gpu_is_read_without_one(polydigits_run, copy_of, monkeypatch):
    run = copy_of(polydigits_run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("device: cpu", "device: cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(MandorlaWarning, match="config.yaml: asks for device cuda, of which there is none here"):
        assert mandorla.load(run).sample(1).x["view0"].device.type == "cpu"


def test_settings_and_weights_of_a_run_are_read_once(phantom_run, monkeypatch):
    read, load, open_file = [], recipe.load_settings, checkpoint.safe_open
    monkeypatch.setattr(recipe, "load_settings", lambda cls, *, path: read.append(path) or load(cls, path=path))
    monkeypatch.setattr(checkpoint, "safe_open", lambda path, kind: read.append(path) or open_file(path, kind))
    model = mandorla.load(phantom_run)
    model.sample(1)
    model.traverse(some(model), "shared", 0)
    assert len(read) == len(set(read))
    assert {path.name for path in read} == {"config.yaml", "weights.safetensors", "statistics.safetensors"}


def test_one_channel_moves_by_standard_deviations(model):
    x = some(model)
    latents = model.encode(x)
    for component, z in latents.components.items():
        channel = z.shape[1] - 1
        versions = model.traverse(x, component, channel, num=3, reach=1.5)
        assert list(versions) == (list(x) if component == "shared" else [component])
        close({n: v[1] for n, v in versions.items()}, {n: model.decode(latents)[n] for n in versions})
        moved = z.clone()
        moved[:, channel] += 1.5 * model.whitening.std[component].flatten()[channel]
        changed = latents.components | {component: to_sphere(moved) if component == "shared" else moved}
        decoded = model.decode(Latents.of(changed))
        close({n: v[2] for n, v in versions.items()}, {n: decoded[n] for n in versions})
        assert any((v[0] - v[2]).abs().max() > 1e-6 for v in versions.values())


def test_samples_may_begin_anywhere(model):
    close(model.sample(2, seed=3, first=3).x, {name: x[3:] for name, x in model.sample(5, seed=3).x.items()})


# --------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: m.encode({}), "no modality is given"),
        (lambda m, x: m.encode({"view9": x["view0"]}), "unknown modality 'view9', did you mean 'view.'"),
        (lambda m, x: m.encode({"view0": x["view0"][:, :1]}), r"shape \(4, 1, 24, 24\), not \(B, 3, 24, 24\)"),
        (lambda m, x: m.encode({"view0": x["view0"][0]}), r"'view0' has shape \(3, 24, 24\), not"),
        (lambda m, x: m.encode({"view0": x["view0"][:0]}), "no sample is given"),
        (lambda m, x: m.encode({"view0": x["view0"] * torch.nan}), "'view0' has NaN"),
        (lambda m, x: m.encode({"view0": x["view0"], "view1": x["view1"][:2]}), "modalities of different length"),
        (lambda m, x: m.encode(x, {"view0": np.ones(4)}), "whether it has 'view1'"),
        (lambda m, x: m.encode({"view0": x["view0"]}, {"view0": np.ones(3)}), "each of the 4 samples .* 'view0'"),
        (lambda m, x: m.encode({"view0": x["view0"]}, {"view0": np.arange(4) > 0}), "without any modality"),
        (lambda m, x: m.decode(Latents(None, {})), "without a shared part cannot be decoded"),
        (lambda m, x: m.sample(0), "num must be a whole number of at least 1, not 0"),
        (lambda m, x: m.sample_private(torch.zeros(2, 4), wanted=["view"]), "unknown modality 'view'"),
        (lambda m, x: m.translate({"view0": x["view0"]}, []), "nothing to draw"),
        (lambda m, x: m.translate({"view0": x["view0"]}, [], num_samples=0), "nothing to draw"),
        (
            lambda m, x: m.translate({"view0": x["view0"]}, ["view1"], num_samples=-1),
            "num_samples must be .* at least 0, not -1",
        ),
        (lambda m, x: m.translate({"view0": x["view0"]}, ["view0"]), "'view0' is both given and wanted"),
        (lambda m, x: m.translate({"view0": x["view0"]}, ["t2"]), "unknown modality 't2'; this model has view0, view1"),
        (lambda m, x: m.swap(x, {"view0": x["view0"][:3]}), "as many samples on both sides, not 4 and 3"),
        (lambda m, x: m.interpolate(x, {"view0": x["view0"][:1]}), "as many samples at both ends, not 4 and 1"),
        (lambda m, x: m.encode(x["view0"]), "no modality is given: data are a mapping"),
        (lambda m, x: m.encode({"view0": "text"}), "'view0' is no array of numbers"),
        (lambda m, x: m.encode({"view0": 255 * x["view0"]}), r"'view0' has values from .* not in \[0, 1\]"),
        (lambda m, x: m.encode(x, dict.fromkeys(["view0", "t2"], np.ones(4, bool))), "unknown modality 't2'"),
        (lambda m, x: m.decode(m.encode(x)[:0]), "no sample is given"),
        (lambda m, x: m.decode(Latents(torch.zeros(2, 4), {"t2": torch.zeros(2, 16)})), "unknown modality 't2'"),
        (lambda m, x: m.decode(Latents(torch.zeros(2, 4), {"view0": torch.zeros(1, 16)})), "latent 'view0' has shape"),
        (lambda m, x: m.decode(Latents(torch.full((2, 4), torch.nan), {})), "latent 'shared' has NaN"),
        (lambda m, x: m.sample(2.5), "num must be a whole number"),
        (lambda m, x: m.sample(1, seed=-1), "seed must be a whole number of at least 0, not -1"),
        (lambda m, x: m.sample(1, steps=0), "steps must be a whole number of at least 1, not 0"),
        (lambda m, x: m.sample_private(torch.zeros(2, 3)), "latent 'shared' has shape"),
        (lambda m, x: m.translate(x["view0"], ["view1"]), "data are a mapping"),
        (lambda m, x: m.translate(m.encode(x), ["view1"]), "data are a mapping .*, not a Latents"),
        (lambda m, x: m.translate({"view0": x["view0"]}, ["view1"], keys=[1, 2, 3, 4]), "a key is a tuple .*, not 1"),
        (
            lambda m, x: m.translate({"view0": x["view0"]}, ["view1"], keys=[(0,), (1,), (2,), (-1,)]),
            r"a key is a tuple of whole numbers from 0, not \(-1,\)",
        ),
        (lambda m, x: m.traverse(x, "shared", 0.5), "channel must be a whole number of at least 0, not 0.5"),
        (lambda m, x: m.traverse(x, "shared", 0, reach="a"), "reach is a number of standard deviations, not 'a'"),
        (lambda m, x: m.inpaint(x, None), "a region is an array"),
        (lambda m, x: m.inpaint(x, {"a": np.ones((24, 24))}), "a region is one array, .* not a mapping"),
        (lambda m, x: m.inpaint(x, np.full((24, 24), np.nan)), "a region is an array .* has no NaN"),
        (lambda m, x: m.mix(x, x, 0, 1.5), r"private must be a weight in \[0, 1\], not 1.5"),
        (lambda m, x: m.traverse(x, "view9", 0), "unknown modality 'view9'"),
        (lambda m, x: m.traverse({"view0": x["view0"]}, "view1", 0), "the sample has no 'view1'"),
        (lambda m, x: m.traverse(x, "shared", 4), "'shared' has channels 0 to 3, not 4"),
        (lambda m, x: m.sample(1, first=-1), "first must be a whole number"),
        (lambda m, x: m.interpolate(x, x, num=0), "num must be a whole number of at least 1, not 0"),
        (
            lambda m, x: m.interpolate({"view0": x["view0"]}, {"view1": x["view1"]}),
            "needs a modality that both ends have",
        ),
        (lambda m, x: m.interpolate(x, x, part="c"), "part is both, shared or private, not 'c'"),
    ],
)
def test_mistakes(digits, call, message):
    with pytest.raises(MandorlaError, match=message):
        call(digits, some(digits))


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda m, x: m.encode(None), "data are a mapping"),
        (lambda m, x: m.encode(x, present=5), "present is a mapping from names of modalities to masks, not a int"),
        (lambda m, x: m.translate(x, wanted=None), r"names of modalities, such as \['view0'\], not a NoneType"),
        (lambda m, x: m.translate(x, wanted=3), "names of modalities, .* not a int"),
        (lambda m, x: m.decode(x), "decode takes Latents, as `encode` and `sample` give them, not a dict"),
        (lambda m, x: m.decode(None), "decode takes Latents, .* not a NoneType"),
        (lambda m, x: m.to_unit(None), "data are a mapping .*, not a NoneType"),
        (lambda m, x: m.from_unit(3), "data are a mapping .*, not a int"),
        (lambda m, x: m.swap(x, 3), "data are a mapping"),
        (lambda m, x: m.sample("4"), "num must be a whole number"),
    ],
)
def test_what_is_of_no_use_is_named(polydigits_run, use, message):
    with pytest.raises(MandorlaError, match=message):
        use(mandorla.load(polydigits_run), {"view0": np.zeros((1, 3, 24, 24))})


def test_load_refuses_what_is_no_run(tmp_path, polydigits_run, copy_of):
    for nothing in (None, 3, b"run", ["run"]):
        with pytest.raises(MandorlaError, match="load takes the path of a run folder, not"):
            mandorla.load(nothing)
    with pytest.raises(MandorlaError, match="no such run folder"):
        mandorla.load(tmp_path / "none")
    with pytest.raises(MandorlaError, match="is not a run folder"):
        mandorla.load(str(tmp_path))
    run = copy_of(polydigits_run)
    shutil.rmtree(run / "diffusion")
    model = mandorla.load(run)
    x = some(model, 2)
    model.swap(x, x)
    with pytest.raises(MandorlaError, match="has no trained stage 2: run `mandorla train diffusion .*` first"):
        model.sample(1)


def test_a_run_folder_may_move(polydigits_run, copy_of):
    close(mandorla.load(copy_of(polydigits_run)).sample(2).x, mandorla.load(polydigits_run).sample(2).x)


def test_arrays_of_any_layout_are_read_alike(digits):
    x = some(digits)["view0"]
    expected = digits.encode({"view0": x}).shared
    for same in (x.numpy()[::-1].copy()[::-1], x.numpy().astype(">f8"), x.tolist(), x.double()):
        assert torch.equal(digits.encode({"view0": same}).shared, expected)


def test_one_modality_may_be_wanted_by_its_name(digits):
    assert list(digits.translate({"view0": some(digits)["view0"]}, "view1")) == ["view1"]
