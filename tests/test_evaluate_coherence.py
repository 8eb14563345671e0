"""Coherence of a model that is perfect by construction, and of one whose views ignore each other."""

import numpy as np
import pytest
import torch
from evaluate_fakes import CLASSES, MODALITIES, BarModel, Bars

from mandorla.evaluate.coherence import (
    agreement,
    chance_agreement,
    conditional_coherence,
    histogram_distance,
    independent_views,
    judge_all,
    swapped,
)
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
    assert own.mean() == 1 and cross.mean() == 1
    samples = model.sample(300, seed=4)
    assert agreement(judge_all(JUDGES, samples.x, "bar")).all()


class Selfish(BarModel):
    """Draw only the view right that the shared part was read from, which its largest value counts."""

    def decode(self, latents):
        source = MODALITIES[round(latents.shared.amax().item()) - 1].name
        wrong = Latents(latents.shared.roll(1, dims=1), latents.private)
        return super().decode(wrong) | {source: super().decode(latents)[source]}


def test_self_and_cross_are_told_apart(batch):
    codes = {name: code / code.amax() * (k + 1) for k, (name, code) in enumerate(alone(BarModel(), batch).items())}
    own, cross = conditional_coherence(Selfish(), JUDGES, "bar", codes, batch.factors["bar"], seed=0)
    assert own.mean() == 1 and cross.mean() == 0


def test_views_that_ignore_each_other_agree_by_chance(batch):
    model = BarModel(coherent=False)
    _, cross = conditional_coherence(model, JUDGES, "bar", alone(model, batch), batch.factors["bar"], seed=0)
    assert abs(cross.mean() - 1 / CLASSES) < 0.05
    expected = chance_agreement(batch.factors["bar"], len(MODALITIES))
    assert expected == pytest.approx(1 / CLASSES**2, abs=0.01)
    assert abs(agreement(judge_all(JUDGES, model.sample(2000, seed=5).x, "bar")).mean() - expected) < 0.03


def test_the_control_falls_to_chance_for_a_perfect_model():
    model = BarModel()
    control = agreement(judge_all(JUDGES, independent_views(model, model.sample(2000).latents, seed=0), "bar"))
    assert abs(control.mean() - 1 / CLASSES**2) < 0.03


def test_a_swap_keeps_the_class_and_takes_the_private_factor(batch):
    model = BarModel()
    x, donor = swapped(model, model.encode(batch.x), seed=0)
    assert (donor != np.arange(300)).all() and len(set(donor)) == 300
    for name, judge in JUDGES.items():
        assert (judge.classes(x[name], "bar") == batch.factors["bar"]).all()
        assert (judge.classes(x[name], "half") == batch.factors[f"half_{name}"][donor]).all()


def test_histogram_distance_by_hand():
    assert histogram_distance(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 2]), 3) == 0.25
    assert histogram_distance(np.zeros(3, int), np.ones(3, int), 2) == 1


def test_agreement_needs_all_views():
    assert agreement(np.array([[1, 2, 3], [1, 2, 0], [1, 0, 3]])).tolist() == [True, False, False]


def test_the_fake_draws_what_it_encodes(batch):
    model = BarModel()
    for name, x in model.decode(model.encode(batch.x)).items():
        assert torch.equal(x, batch.x[name])
