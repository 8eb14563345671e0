"""What codes know of numbers: found where it was put, not found where it is not, whoever lacks a number or an image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluate_fakes import MODALITIES, BarModel, Bars
from test_evaluate_run import SETTINGS, RunModel, by_name
from tiny import scans_recipe, write_scans

import mandorla
from mandorla.config import dump
from mandorla.data.dataset import Modality, Splits
from mandorla.data.stored import StoredDataset
from mandorla.errors import MandorlaError
from mandorla.evaluate import evaluate_run, judges
from mandorla.evaluate.figures.quantities import quantity_figures
from mandorla.evaluate.figures.subject import Codes
from mandorla.evaluate.gather import choose, gather
from mandorla.evaluate.judges import find_gauges, load_judges, save_judges, train_judges
from mandorla.evaluate.run import other_data
from mandorla.evaluate.stage1 import stage1_figures
from mandorla.recipe import read_recipe
from mandorla.storage import write_text
from mandorla.vae.training import train_vae

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
    said = gauges["left"].numbers(batch.x["left"])["shift_left"]
    np.testing.assert_allclose(said, batch.factors["shift_left"], atol=0.8)
    save_judges(tmp_path / "gauges", gauges, {"a": 1})
    again = load_judges(tmp_path / "gauges", MODALITIES, {}, {"a": 1}, meters)
    np.testing.assert_array_equal(again["left"].numbers(batch.x["left"])["shift_left"], said)


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


def meters_of(labels, names=("t1", "ce_t1"), size=(8, 8), asked=None):
    """Return what a network of each modality is asked for, of data that have these labels."""
    settings = ASKED.model_copy(update={"quantities": asked})
    modalities = tuple(Modality(name, 1, size) for name in names)
    return {name: set(of) for name, of in judges._meters(labels, modalities, settings).items()}


@pytest.mark.parametrize("asked", [None, ("tr",)])
def test_a_name_that_ends_like_another_has_its_own(asked):
    labels = {"tr_t1": np.arange(30.0), "tr_ce_t1": np.arange(30.0)}
    assert meters_of(labels, asked=asked) == {"t1": {"tr_t1"}, "ce_t1": {"tr_ce_t1"}}


def test_what_has_the_size_of_signals_is_a_mask_and_no_numbers():
    masks = np.random.default_rng(0).random((30, 16))
    assert meters_of({"soft_mask": masks, "age": masks[:, 0]}, size=(16,)) == {"t1": {"age"}, "ce_t1": {"age"}}


def test_images_too_small_for_a_network_are_asked_nothing():
    assert meters_of({"age": np.arange(30.0)}, size=(1, 16)) == {}


def test_a_column_that_stays_spoils_no_scale():
    meter = judges.Meter(2, 2)
    values = np.stack([np.full(39, 0.1), np.arange(39.0)], 1)
    assert values[:, 0].std() > 0, "by rounding"
    meter.learn_scale(np.concatenate([values, [[np.nan, 1e9], [np.inf, 1e9]]]))
    torch.testing.assert_close(meter.std, torch.tensor([1.0, values[:, 1].std()]).float())
    torch.testing.assert_close(meter.mean, torch.tensor([0.1, 19.0]))


class Alike(Measured):
    """Bars with numbers that are called like other things."""

    def batch(self, indices):
        batch = super().batch(indices)
        luck = batch.factors["luck"]
        batch.factors |= {"shift": luck, "class": luck, "half": luck, "clean_left": luck, "a.b": luck}
        return batch


def test_names_that_are_alike_are_kept_apart(tmp_path):
    """A number of the whole sample and one of a view, the class, the private factor, and a number called clean."""

    class Model(RunModel):
        def data(self) -> Splits:
            return Splits(Alike(400, 0), Alike(50, 1), Alike(100, 2))

    metrics = evaluate_run(Model(tmp_path), ASKED)
    found = [record["name"] for record in metrics["records"]]
    assert len(found) == len(set(found))
    assert {"shared/class (number)", "shared/half (number)/left", "private/clean/left", "shared/a.b"} <= set(found)
    records = by_name(metrics)
    assert records["shared/shift"].better == "higher" and records["shared/shift_left"].better == "lower"
    assert records["private/shift_left/left"].value > 0.9 > 0.1 > records["private/shift/left"].value


def test_other_data_may_have_other_numbers(tmp_path):
    class Wide(Measured):
        def batch(self, indices):
            batch = super().batch(indices)
            batch.factors["shift_left"] = batch.factors["shift_left"][:, :1]
            return batch

    model = MeasuredModel(tmp_path)
    own = model.data()
    names = by_name(evaluate_run(model, ASKED, data=Splits(own.train, own.val, Wide(100, 2)))).keys()
    assert "shared/shift/right" in names and "shared/shift/left" not in names


def test_a_label_is_no_number_here_and_a_name_there(tmp_path):
    write_scans(tmp_path)
    arrays = dict(np.load(tmp_path / "scans.npz"))
    num = len(arrays["kind"])
    for name, age in {"own": np.linspace(20, 80, num), "whole": np.arange(num), "named": arrays["kind"]}.items():
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "scans.npz", **arrays, age=age)
        label = "data.labels.age=scans.npz:age"
        write_text(tmp_path / f"{name}.yaml", dump(scans_recipe(tmp_path / "run", tmp_path / name, label)))
    train_vae(read_recipe(str(tmp_path / "own.yaml")))
    model = mandorla.load(tmp_path / "run")
    assert other_data(model, str(tmp_path / "whole.yaml")).test.labels["age"].dtype.kind == "i"
    with pytest.raises(MandorlaError, match="'age' has the classes large, middle, small, in the run it is numbers"):
        other_data(model, str(tmp_path / "named.yaml"))


def test_numbers_that_few_know_are_seen_in_files(tmp_path):
    """None of the samples that are looked at of composed data is among them."""
    labels = {"age": np.full(5000, np.nan), "mask": np.zeros((5000, 8, 8))}
    labels["age"][4002:4009] = np.arange(7)
    x = {name: np.zeros((5000, 1, 8, 8), np.float32) for name in ("t1", "t2")}
    there = {name: np.ones(5000, bool) for name in x}
    ids = list(map(str, range(5000)))
    told = judges._told(StoredDataset(x, there, {}, labels, ids, np.array(ids), np.arange(5000)))
    assert told.keys() == {"age"} and np.isfinite(told["age"]).sum() == 7
