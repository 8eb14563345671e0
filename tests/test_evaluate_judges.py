"""Judges learn what can be learned, at every number of dimensions, and come back from disk unchanged."""

import numpy as np
import pytest
import torch
from evaluate_fakes import MODALITIES, Bars

from mandorla.data.dataset import Modality
from mandorla.evaluate.judges import Judge, load_judges, save_judges, train_judges

HEADS = {m.name: {"bar": 4, f"half_{m.name}": 2} for m in MODALITIES}


@pytest.fixture(scope="module")
def judges():
    return train_judges(Bars(400, 0), HEADS, steps=60, batch_size=64)


def test_a_judge_knows_every_factor(judges):
    batch = Bars(200, 1).batch(np.arange(200))
    for name, judge in judges.items():
        for factor in HEADS[name]:
            assert (judge.classes(batch.x[name], factor) == batch.factors[factor]).mean() > 0.98


def test_missing_images_are_not_learned_from():
    data = Bars(400, 0)
    full = data.batch

    def partly(indices):
        batch = full(indices)
        batch.present["left"] = torch.arange(len(indices)) % 3 == 0
        misleading = (batch.factors["bar"] + 1) % 4
        batch.factors["bar"] = np.where(batch.present["left"], batch.factors["bar"], misleading)
        return batch

    data.batch = partly
    judge = train_judges(data, {"left": {"bar": 4}}, steps=60, batch_size=64)["left"]
    batch = Bars(200, 1).batch(np.arange(200))
    assert (judge.classes(batch.x["left"], "bar") == batch.factors["bar"]).mean() > 0.95


def test_the_same_seed_gives_the_same_judge():
    a, b = (train_judges(Bars(50, 0), {"left": {"bar": 4}}, steps=2, batch_size=8)["left"] for _ in range(2))
    assert all(torch.equal(z, b.state_dict()[key]) for key, z in a.state_dict().items())


def test_saved_judges_come_back_only_for_what_they_were_made_from(judges, tmp_path):
    path = tmp_path / "evaluate" / "judges.safetensors"
    assert load_judges(path, MODALITIES, HEADS, {"steps": 60}) is None
    save_judges(path, judges, {"steps": 60})
    x = Bars(8, 2).batch(np.arange(8)).x
    for name, judge in load_judges(path, MODALITIES, HEADS, {"steps": 60}).items():
        np.testing.assert_array_equal(judge.probabilities(x[name], "bar"), judges[name].probabilities(x[name], "bar"))
    assert load_judges(path, MODALITIES, HEADS, {"steps": 61}) is None
    save_judges(path, {name: Judge(Modality(name, 1, (4,)), HEADS[name]) for name in judges}, {"steps": 60})
    assert load_judges(path, MODALITIES, HEADS, {"steps": 60}) is None, "networks of another shape"
    path.write_bytes(b"damaged")
    assert load_judges(path, MODALITIES, HEADS, {"steps": 60}) is None


@pytest.mark.parametrize("size", [(), (40,), (5000,), (20, 30), (16, 16, 16), (128, 128)])
def test_any_number_of_dimensions(size):
    judge = Judge(Modality("m", 2, size), {"a": 3})
    assert judge.probabilities(torch.rand(1, 2, *size), "a").shape == (1, 3)
