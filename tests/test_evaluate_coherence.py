"""Coherence of a model that is perfect by construction, and of one whose views ignore each other."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluate_fakes import CLASSES, MODALITIES, BarModel, Bars

from mandorla.errors import MandorlaError
from mandorla.evaluate.coherence import (
    agreement,
    chance_agreement,
    coherence_from,
    conditional_coherence,
    dependence,
    donors,
    histogram_distance,
    judge_all,
    judge_decoded,
    judge_independent,
    swapped,
)
from mandorla.evaluate.figures.coherence import _histogram_figure
from mandorla.latents import Latents


class Oracle:
    """Read the class or the half off a bar, without training."""

    def classes(self, x, factor):
        axis = 1 if factor == "bar" else 2
        step = 2 if factor == "bar" else 4
        return x[:, 0].amax(axis)[:, ::step].argmax(1).numpy()


JUDGES = {m.name: Oracle() for m in MODALITIES}


@pytest.fixture
def batch():
    return Bars(300, 3).batch(np.arange(300))


def alone(model, batch):
    return {name: model.encode({name: x}).shared for name, x in batch.x.items()}


def test_a_perfect_model_is_coherent(batch):
    model = BarModel()
    own, cross = conditional_coherence(model, JUDGES, "bar", alone(model, batch), batch.factors["bar"], seed=0)
    assert own.shape == cross.shape == (len(MODALITIES), len(batch.ids)) and own.all() and cross.all()
    samples = model.sample(300, seed=4)
    assert agreement(judge_all(JUDGES, samples.x, "bar")).all()


class Selfish(BarModel):
    """Draw only the view right that the shared part was read from, which its largest value counts."""

    def decode(self, latents, refined=True):
        source = MODALITIES[round(latents.shared.amax().item()) - 1].name
        wrong = Latents(latents.shared.roll(1, dims=1), latents.private)
        return super().decode(wrong) | {source: super().decode(latents)[source]}


def test_self_and_cross_are_told_apart(batch):
    codes = {name: code / code.amax() * (k + 1) for k, (name, code) in enumerate(alone(BarModel(), batch).items())}
    own, cross = conditional_coherence(Selfish(), JUDGES, "bar", codes, batch.factors["bar"], seed=0)
    assert own.mean() == 1 and cross.mean() == 0


class Halting(BarModel):
    """Draw nothing right of what was read from the first view."""

    def decode(self, latents, refined=True):
        broken = round(latents.shared.amax().item()) == 1
        return super().decode(Latents(latents.shared.roll(1, dims=1), latents.private) if broken else latents)


def test_every_source_has_a_row_of_its_own(batch):
    codes = {name: code / code.amax() * (k + 1) for k, (name, code) in enumerate(alone(BarModel(), batch).items())}
    own, cross = conditional_coherence(Halting(), JUDGES, "bar", codes, batch.factors["bar"], seed=0)
    assert own.mean(1).tolist() == cross.mean(1).tolist() == [0.0] + [1.0] * (len(MODALITIES) - 1)


class Counting(BarModel):
    """Remember how many images were decoded at once."""

    def decode(self, latents, refined=True):
        x = super().decode(latents)
        self.most = max(getattr(self, "most", 0), sum(map(len, x.values())))
        return x


def test_images_are_judged_some_at_a_time_and_only_those_with_a_judge(monkeypatch):
    monkeypatch.setattr("mandorla.evaluate.coherence._CHUNK", 7)
    model, few = Counting(), {name: JUDGES[name] for name in ("top", "left")}
    latents = model.sample(50, seed=2).latents
    model.most = 0
    seen = judge_decoded(model, few, latents, "bar")
    assert model.most == 2 * 7
    np.testing.assert_array_equal(seen, judge_all(few, model.decode(latents), "bar"))
    control = judge_independent(model, few, latents, "bar", seed=0)
    assert control.shape == seen.shape and (control != seen).any(1).all()


def test_views_that_ignore_each_other_agree_by_chance(batch):
    model = BarModel(coherent=False)
    _, cross = conditional_coherence(model, JUDGES, "bar", alone(model, batch), batch.factors["bar"], seed=0)
    assert abs(cross.mean() - 1 / CLASSES) < 0.05
    expected = chance_agreement(batch.factors["bar"], len(MODALITIES))
    assert expected == pytest.approx(1 / CLASSES**2, abs=0.01)
    assert abs(agreement(judge_all(JUDGES, model.sample(2000, seed=5).x, "bar")).mean() - expected) < 0.03


def test_the_control_falls_to_chance_for_a_perfect_model():
    model = BarModel()
    control = agreement(judge_independent(model, JUDGES, model.sample(2000).latents, "bar", seed=0))
    assert abs(control.mean() - 1 / CLASSES**2) < 0.03


def test_a_swap_keeps_the_class_and_takes_the_private_factor(batch):
    model = BarModel()
    latents, donor = swapped(model, model.encode(batch.x), np.arange(300), seed=0)
    assert (donor != np.arange(300)).all() and len(set(donor)) == 300
    x = model.decode(latents)
    for name, judge in JUDGES.items():
        assert (judge.classes(x[name], "bar") == batch.factors["bar"]).all()
        assert (judge.classes(x[name], "half") == batch.factors[f"half_{name}"][donor]).all()


@pytest.mark.parametrize(
    ("whose", "own"),
    [(np.arange(7), 0), (np.repeat([5, 1, 3], [2, 3, 4]), 0), (np.repeat(["a", "b"], [5, 2]), 3), (np.zeros(4), 4)],
)
def test_donors_are_of_another_patient(whose, own):
    """Everyone gives once; where one patient has most of the samples, as few as can be get one of their own."""
    for seed in range(20):
        donor = donors(whose, seed)
        assert sorted(donor) == list(range(len(whose)))
        assert (donor != np.arange(len(whose))).all()
        assert (whose[donor] == whose).sum() == own


def test_dependence_by_hand():
    a = np.array([0, 0, 1, 1])
    assert dependence(a, a, 2, 2) == 0.5
    assert dependence(a, np.array([0, 1, 0, 1]), 2, 2) == 0
    assert dependence(a, np.zeros(4, int), 2, 3) == 0
    assert dependence(np.arange(1000) % 4, np.arange(1000) % 4, 4, 4) == pytest.approx(0.75)
    apart = np.random.default_rng(0).integers(0, 4, (2, 4000))
    assert dependence(*apart, 4, 4) == pytest.approx(0.2 * 4 / 4000**0.5, rel=0.6)
    with pytest.raises(MandorlaError, match="4 and 3 labels are no pairs"):
        dependence(a, a[:3], 2, 2)


@pytest.mark.parametrize("num_test", [200, 2000])
def test_a_perfect_generator_reaches_the_ceiling_of_histograms(num_test):
    """Few test samples are themselves uneven: the ceiling is not of the generated ones' chance alone."""
    rng, records = np.random.default_rng(0), []
    for seed in range(20):
        made, seen = (rng.integers(0, 10, num) for num in (1000, num_test))
        judge = SimpleNamespace(heads={"class": SimpleNamespace(out_features=10)})
        test = SimpleNamespace(
            verdicts={"a": {"class": torch.eye(10)[torch.from_numpy(seen)]}},
            present={"a": torch.ones(num_test, dtype=torch.bool)},
        )
        subject = SimpleNamespace(codes=SimpleNamespace(seed=seed, judges={"a": judge}, test=test))
        records.append(_histogram_figure(subject, "class", {"a": "class"}, {"a": made}))
    found, ceiling = (np.mean([getattr(record, key) for record in records]) for key in ("value", "ceiling"))
    assert found == pytest.approx(ceiling, rel=0.15)


def test_histogram_distance_by_hand():
    assert histogram_distance(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 2]), 3) == 0.25
    assert histogram_distance(np.zeros(3, int), np.ones(3, int), 2) == 1


def test_agreement_needs_all_views():
    assert agreement(np.array([[1, 2, 3], [1, 2, 0], [1, 0, 3]])).tolist() == [True, False, False]


def test_the_fake_draws_what_it_encodes(batch):
    model = BarModel()
    for name, x in model.decode(model.encode(batch.x)).items():
        assert torch.equal(x, batch.x[name])


class Blind(BarModel):
    """Read the class only where two views or more are given."""

    def encode(self, x, present=None):
        latents = super().encode(x, present)
        enough = torch.stack(list(present.values())).sum(0) > 1
        return Latents(torch.where(enough[:, None], latents.shared, latents.shared.roll(1, 1)), latents.private)


@pytest.mark.parametrize(("num", "right"), [(1, 0.0), (2, 1.0), (3, 1.0)])
def test_coherence_by_the_number_of_views_given(batch, num, right):
    scores = coherence_from(Blind(), JUDGES, "bar", batch.x, batch.factors["bar"], num, seed=0)
    assert scores.shape == (300,) and scores.mean() == right


class Partial(BarModel):
    """Decode one view wrongly: it counts only where it is not among those given."""

    def decode(self, latents, refined=True):
        x = super().decode(latents)
        return x | {"top": super().decode(Latents(latents.shared.roll(1, 1), latents.private))["top"]}


@pytest.mark.parametrize(("num", "right"), [(1, 2 / 3), (2, 2 / 3), (3, 2 / 3)])
def test_only_views_that_are_not_given_count(batch, num, right):
    scores = coherence_from(Partial(), JUDGES, "bar", batch.x, batch.factors["bar"], num, seed=0)
    assert abs(scores.mean() - right) < 0.08  # which view is given is drawn: three binomial standard errors
    assert set(np.round(scores, 6)) == {1: {0.5, 1.0}, 2: {0.0, 1.0}, 3: {round(2 / 3, 6)}}[num]


def test_a_collapsed_model_fails_the_control():
    """It always says the same, so that its views agree, and agree as well where they do not belong together."""

    class Collapsed(BarModel):
        def decode(self, latents, refined=True):
            constant = torch.zeros_like(latents.shared)
            return super().decode(Latents(constant, latents.private))

    model = Collapsed()
    samples = model.sample(200, seed=1)
    assert agreement(judge_all(JUDGES, samples.x, "bar")).mean() == 1
    assert agreement(judge_independent(model, JUDGES, samples.latents, "bar", 0)).mean() == 1
    classes = judge_all(JUDGES, samples.x, "bar")[0]
    assert histogram_distance(classes, np.arange(200) % CLASSES, CLASSES) == pytest.approx(1 - 1 / CLASSES)
