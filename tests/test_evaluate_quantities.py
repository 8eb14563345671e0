"""What codes know of numbers: found where it was put, not found where it is not, whoever lacks a number or an image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluate_fakes import MODALITIES, BarModel, Bars
from test_evaluate_run import SETTINGS, RunModel, by_name

import mandorla
from mandorla.data.dataset import Splits
from mandorla.errors import MandorlaError
from mandorla.evaluate import evaluate_run
from mandorla.evaluate.figures.quantities import quantity_figures
from mandorla.evaluate.figures.subject import Codes
from mandorla.evaluate.gather import choose, gather
from mandorla.evaluate.judges import find_gauges, load_judges, save_judges, train_judges
from mandorla.evaluate.stage1 import stage1_figures

ASKED = SETTINGS.model_copy(update={"suites": ("disentanglement",), "num_residual": 0})


class Measured(Bars):
    """Bars with numbers: `level` goes with what is shared, `shift_<name>` with what each view has, `luck` with nothing.

    A third of the samples have no `level`.
    """

    def __init__(self, num: int, seed: int):
        super().__init__(num, seed)
        self.luck = np.random.default_rng(seed + 10).normal(size=num)

    def batch(self, indices):
        batch = super().batch(indices)
        level = np.where(np.asarray(indices) % 3 == 0, np.nan, 40.0 + 2.0 * self.bar[indices])
        shifts = {f"shift_{name}": np.stack([h[indices], -3.0 * h[indices]], 1) for name, h in self.half.items()}
        batch.factors |= {"level": level, "luck": self.luck[indices]} | shifts
        return batch


class MeasuredModel(RunModel):
    def data(self) -> Splits:
        return Splits(Measured(400, 0), Measured(50, 1), Measured(100, 2))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return by_name(evaluate_run(MeasuredModel(tmp_path_factory.mktemp("measured")), ASKED))


def test_each_part_knows_what_is_its_own(records):
    for suffix in ("", " mlp"):
        assert records[f"shared/level{suffix}"].value > 0.9 and records[f"private/shift{suffix}"].value > 0.9
        for leak in ("private/level", "shared/shift", "shared/luck", "private/luck"):
            assert records[f"{leak}{suffix}"].value < 0.1
    assert 0.5 < records["shared/level above noise"].value < records["shared/level"].value
    assert records["shared/level"].ceiling > 0.8 and records["private/shift"].ceiling > 0.8
    assert records["shared/luck"].ceiling < 0.2 and all(records[f"shared/{q}"].chance == 0 for q in ("level", "luck"))


def test_better_says_what_belongs_where(records):
    better = {name: records[name].better for name in ("shared/level", "private/level", "shared/shift", "private/shift")}
    assert list(better.values()) == ["higher", "neither", "lower", "higher"]
    assert records["shared/shift"].definition.startswith("Leak") and "left" in records["shared/shift/left"].definition


def test_who_has_no_number_does_not_count(records):
    known = int(np.isfinite(Measured(100, 2).batch(np.arange(100)).factors["level"]).sum())
    assert records["shared/level/left"].n == known < records["shared/luck/left"].n == 100


def test_who_has_no_image_does_not_count():
    class Partly(Measured):
        def batch(self, indices):
            batch = super().batch(indices)
            batch.present["left"] = torch.as_tensor(np.asarray(indices) % 4 > 0)
            return batch

    model, data = BarModel(), Partly(400, 0)
    heads = {"left": {"luck": 1, "shift_left": 2}}
    gauges = train_judges(data, {}, 30, 64, meters=heads)
    parts = [gather(model, Partly(num, seed), np.arange(num), {}, gauges) for num, seed in ((400, 0), (100, 2))]
    found = {r.name: r for r in quantity_figures(Codes(model, ASKED, 0, {}, *parts))}
    assert found["shared/luck/left"].n == 75 and found["private/shift/left"].value > 0.9


def test_the_settings_choose(tmp_path):
    settings = ASKED.model_copy(update={"quantities": ("shift",)})
    names = by_name(evaluate_run(MeasuredModel(tmp_path), settings)).keys()
    assert "private/shift" in names and not {"shared/level", "shared/luck"} & names
    with pytest.raises(MandorlaError, match="'age' is no factor that is numbers; these data have: level, luck, shift_"):
        evaluate_run(MeasuredModel(tmp_path), ASKED.model_copy(update={"quantities": ("age",)}))
    with pytest.raises(MandorlaError, match="'bar' is no factor that is numbers"):
        evaluate_run(MeasuredModel(tmp_path), ASKED.model_copy(update={"quantities": ("bar",)}))


def test_judges_and_their_figures_stay_as_they_are(tmp_path, records):
    plain = by_name(evaluate_run(RunModel(tmp_path), ASKED))
    for name, record in plain.items():
        assert replace(records[name], definition="") == replace(record, definition=""), name


def test_other_data_may_lack_a_number(tmp_path):
    model = MeasuredModel(tmp_path)
    own = model.data()
    names = by_name(evaluate_run(model, ASKED, data=Splits(own.train, own.val, Bars(100, 2)))).keys()
    assert "shared/class" in names and not any("level" in name or "shift" in name for name in names)


def test_gauges_come_back_on_their_scale(tmp_path):
    data, meters = Measured(400, 0), {m.name: {f"shift_{m.name}": 2, "level": 1} for m in MODALITIES}
    gauges = train_judges(data, {}, 80, 64, meters=meters)
    batch = Measured(100, 1).batch(np.arange(100))
    said = gauges["left"].numbers(batch.x["left"], "shift_left")
    np.testing.assert_allclose(said, batch.factors["shift_left"], atol=0.8)
    save_judges(tmp_path / "gauges", gauges, {"a": 1})
    again = load_judges(tmp_path / "gauges", MODALITIES, {}, {"a": 1}, meters)
    np.testing.assert_array_equal(again["left"].numbers(batch.x["left"], "shift_left"), said)


def test_a_phantom_knows_its_numbers(phantom_run, tmp_path):
    model = mandorla.load(phantom_run)
    data, settings = model.data(), model.recipe.evaluate
    gauges = find_gauges(tmp_path / "gauges", data, settings, 0, "cpu")
    assert set(gauges["t1"].meters) == {"anatomy", "tr_t1", "te_t1", "bias_t1"}
    found = {record.name: record for record in stage1_figures(model, {}, gauges, data)}
    assert {"shared/anatomy", "shared/tr/t1", "private/bias/t2", "shared/te above noise"} <= found.keys()
    assert " test " not in found["shared/tr"].definition


def test_everything_is_asked_for_unless_said(phantom_run, tmp_path):
    model = mandorla.load(phantom_run)
    settings = model.recipe.evaluate.model_copy(update={"quantities": None, "judge_steps": 1})
    gauges = find_gauges(tmp_path / "gauges", model.data(), settings, 0, "cpu")
    assert set(gauges["t2"].meters) >= {"anatomy", "tr_t2", "lesion_radius"} and "tr_t1" not in gauges["t2"].meters
    rows = choose(model.data().test, 5, 0)
    assert gather(model, model.data().test, rows, {}, gauges).measured["t2"]["anatomy"].shape == (5, 12)


def test_what_too_few_know_is_left_out():
    class Rare(Measured):
        def batch(self, indices):
            batch = super().batch(indices)
            batch.factors["level"] = np.where(np.asarray(indices) < 10, batch.factors["level"], np.nan)
            return batch

    gauges = train_judges(Rare(400, 0), {}, 2, 8, meters={"left": {"luck": 1, "level": 1}})
    parts = [gather(BarModel(), Rare(num, seed), np.arange(num), {}, gauges) for num, seed in ((400, 0), (100, 2))]
    assert Codes(BarModel(), ASKED, 0, {}, *parts).quantities == {"luck": {"left": "luck"}}
