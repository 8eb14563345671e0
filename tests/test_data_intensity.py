"""Intensity: ranges are those of NumPy over the training images alone, and strange inputs are noticed."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from mandorla.data import follow_record, keep_record, load_data
from mandorla.data.arrays import ArraysConfig
from mandorla.data.intensity import (
    AsStored,
    Fitted,
    Intensity,
    IntensityConfig,
    MinMax,
    Percentile,
    Seen,
    Window,
    ZScore,
    background,
    fit,
    read_intensity,
)
from mandorla.data.polydigits import PolydigitsConfig
from mandorla.errors import MandorlaError, MandorlaWarning

RNG = np.random.default_rng(0)
NUM = 30
GROUPS = np.array([f"p{row // 3}" for row in range(NUM)])
TRAIN, PRESENT = np.arange(18), np.arange(NUM) % 5 != 0


def heads(dtype=np.int16, offset: float = 0.0) -> np.ndarray:
    """Return images `(30, 1, 24, 24)`, two thirds of each empty background; those not for training are brighter."""
    tissue = RNG.normal(600, 100, (NUM, 1, 24, 24)).clip(200, 1200)
    tissue[18:] += 3000
    tissue[:, :, :, :16] = 0
    return (tissue + offset).astype(dtype)


def fitted(settings, images, present=PRESENT) -> Fitted:
    return fit(settings, images, present, TRAIN, GROUPS, "scans")


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int64, np.float32, np.float64])
def test_ranges_are_numpys_over_the_training_images_that_are_there(dtype):
    images = heads(dtype)
    seen = images[TRAIN][PRESENT[TRAIN]].astype(np.float64)
    tissue = seen[seen > 0]
    low, high = np.percentile(tissue, [1, 99])
    expected = {
        Percentile(low=1.0, high=99.0): (low, high),
        Percentile(low=1.0, high=99.0, foreground=False): tuple(np.percentile(seen, [1, 99])),
        MinMax(): (seen.min(), seen.max()),
        ZScore(): (seen.mean() - 4 * seen.std(), seen.mean() + 4 * seen.std()),
        Window(low=-5.0, high=50.0): (-5, 50),
    }
    for settings, pair in expected.items():
        found = fitted(settings, images).usual
        np.testing.assert_allclose((found.low, found.high), pair, rtol=1e-5)


def test_images_outside_training_and_missing_ones_change_nothing():
    images = heads()
    others = images.copy()
    others[18:] = RNG.integers(-9000, 9000, others[18:].shape)
    others[~PRESENT] = 7777
    for settings in (Percentile(), MinMax(), ZScore()):
        assert fitted(settings, images) == fitted(settings, others)


@pytest.mark.parametrize("settings", [Percentile(per="subject"), MinMax(per="subject"), ZScore(per="subject")])
def test_each_subject_has_its_own_range(settings):
    images = heads()
    own = fitted(settings, images)
    whole = type(settings)(**settings.model_dump() | {"per": "dataset"})
    for name in np.unique(GROUPS):
        rows = np.flatnonzero((name == GROUPS) & PRESENT)
        alone = fit(whole, images, PRESENT, rows, GROUPS, "scans")
        assert own.subjects[name] == alone.usual
        np.testing.assert_array_equal(own.apply(images[rows], GROUPS[rows]), alone.apply(images[rows], GROUPS[rows]))
        np.testing.assert_array_equal(own.apply_new(images[rows], GROUPS[rows]), own.apply(images[rows], GROUPS[rows]))
    training = [own.subjects[name] for name in np.unique(GROUPS[TRAIN])]
    assert own.usual.high == np.median([i.high for i in training]), "the bright subjects are not of the training"
    blank = np.full((2, 1, 24, 24), 5, np.int16)
    np.testing.assert_array_equal(own.apply_new(blank), own.usual.apply(blank))


@given(
    low=st.floats(-1e4, 1e4),
    width=st.floats(1e-2, 1e5),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=20),
)
def test_invert_undoes_apply(low, width, shares):
    scale = Intensity(low, low + width)
    values = np.array([low + share * width for share in shares])  # float64
    unit = scale.apply(values)
    assert unit.dtype == np.float32
    assert 0 <= unit.min() <= unit.max() <= 1
    assert np.abs(scale.invert(unit) - values).max() <= 1e-6 * (width + abs(low)) + 1e-6
    assert scale.apply(np.array([low - 1, low + width + 1])).tolist() == [0, 1]


@pytest.mark.parametrize("settings", [MinMax(per="channel"), ZScore(per="channel"), Percentile(per="channel")])
@pytest.mark.parametrize("size", [(), (5,), (4, 3)])
def test_each_channel_may_have_its_own_range(settings, size):
    """Sodium about 140, calcium about 2, and a sensor that was off: what varies by a tenth fills its range too."""
    scales = np.array([[140, 10.0], [2, 0.1], [7, 0.0]]).reshape(3, 2, *[1] * len(size))
    values = scales[:, 0] + scales[:, 1] * RNG.normal(size=(NUM, 3, *size))
    scale = Fitted.of_json(json.loads(json.dumps(fitted(settings, values).to_json())))
    unit = scale.apply(values, GROUPS)
    assert (unit[TRAIN][:, :2].std(axis=0) > 0.05).all() and not unit[:, 2].any()
    inside = (unit > 0) & (unit < 1)
    np.testing.assert_allclose(scale.invert(unit)[inside], values[inside], rtol=1e-5)
    np.testing.assert_allclose(scale.invert(unit[0]), scale.invert(unit)[0])
    alone = fitted(settings.model_copy(update={"per": "dataset"}), values[:, 1:2]).apply(values[:, 1:2], GROUPS)
    np.testing.assert_array_equal(unit[:, 1:2], alone)


def test_large_integers_keep_their_differences():
    values = np.array([2**40, 2**40 + 1, 2**40 + 4])
    np.testing.assert_allclose(Intensity(2.0**40, 2.0**40 + 4).apply(values), [0, 0.25, 1])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_as_stored_is_bitwise_what_a_picture_means(dtype):
    values = np.arange(256).astype(dtype) if dtype != np.float32 else RNG.random(256, np.float32)
    images = np.broadcast_to(values[:, None, None, None], (256, 1, 2, 2))
    scale = fit(AsStored(), images, np.ones(256, bool), np.arange(9), np.arange(256).astype(str), "scans")
    unit = images if dtype == np.float32 else images * np.float32(1 / np.iinfo(dtype).max)
    assert (scale.apply(images, [""] * 256) == unit).all()
    assert np.abs(scale.invert(scale.apply(images, [""] * 256)) - images).max() < 1e-2


def test_whole_numbers_that_come_later_mean_what_they_meant_in_training():
    """As where a training widened files of both types, or a scanner now writes signed numbers."""
    images = RNG.integers(0, 4000, (20, 1, 4, 4)).astype(np.uint16)
    scale = fit(AsStored(), images, np.ones(20, bool), np.arange(9), np.arange(20).astype(str), "scans")
    for dtype in (np.int16, np.int32, ">u2"):
        np.testing.assert_allclose(scale.apply_new(images.astype(dtype)), scale.apply_new(images), rtol=1e-6)
    small = (images // 16).astype(np.uint8)
    np.testing.assert_array_equal(scale.apply_new(small), scale.apply_new(small.astype(np.uint16)))
    floats = fit(AsStored(), images / 4000, np.ones(20, bool), np.arange(9), np.arange(20).astype(str), "scans")
    np.testing.assert_allclose(floats.apply_new(small), small / np.float32(255), rtol=1e-6)
    with pytest.raises(MandorlaError, match=r"floats in \[0, 1\], what int16 values mean is unknown"):
        floats.apply_new(images.astype(np.int16))


def test_a_type_of_another_byte_order_is_that_type():
    images = RNG.integers(0, 4000, (20, 1, 4, 4)).astype(">u2")
    scale = fit(AsStored(), images, np.ones(20, bool), np.arange(9), np.arange(20).astype(str), "scans")
    np.testing.assert_allclose(scale.apply_new(images), images / 65535, rtol=1e-6)


@pytest.mark.parametrize("offset", [0.0, -1000.0, 300.0])
@pytest.mark.parametrize("noise", [0.0, 10.0])
def test_background_is_found_wherever_it_lies(offset, noise):
    values = heads(np.float64, offset)[:18].ravel()
    tissue = values > offset + 100
    values = values + RNG.normal(0, 1, values.shape) * noise
    values[:5] = offset - 500  # stray values below an empty background
    threshold = background(values)
    assert (values[tissue] > threshold).all(), "no dark tissue is lost"
    assert offset - 4 * noise - 5 < threshold < offset + 4 * noise + 5
    assert noise or (values[~tissue] <= threshold).all()


def test_images_without_a_background_are_foreground_throughout():
    assert background(RNG.normal(500, 50, 10_000)) == -np.inf
    assert background(np.r_[RNG.uniform(0, 200, 5000), np.full(9000, 255)]) == -np.inf, "a bright sky"
    assert background(np.full(10, 3.0)) == -np.inf


@pytest.mark.parametrize(
    ("settings", "images", "message"),
    [
        (AsStored(), heads(np.int16), "scans: the range of type int16 is unknown; set data.intensity"),
        (AsStored(), heads(np.float32), r"scans: values from 0 to [0-9.]+ lie outside \[0, 1\]; set data.intensity"),
        (MinMax(), np.zeros((NUM, 1, 4, 4)), "scans: data.intensity minmax finds a single value"),
        (MinMax(per="channel"), np.zeros((NUM, 2)), "scans: data.intensity minmax finds a single value"),
        (ZScore(per="subject"), np.ones((NUM, 1, 4, 4)), "scans: data.intensity zscore finds a single value"),
        (Percentile(), (heads() > 0).astype(np.float32), "in data.intensity_of, or set foreground to false"),
        (MinMax(), np.ones((NUM, 1, 4, 4)), "or give it a window in data.intensity_of$"),
    ],
)
def test_what_has_no_range_is_refused(settings, images, message):
    with pytest.raises(MandorlaError, match=message):
        fitted(settings, images)


def test_a_modality_that_no_training_sample_has_is_refused():
    for settings in (MinMax(), AsStored()):
        with pytest.raises(MandorlaError, match="scans: no training sample has it"):
            fitted(settings, heads(), np.arange(NUM) >= 18)


@pytest.mark.parametrize("wrong", [{"kind": "window", "low": 3.0, "high": 3.0}, {"kind": "percentile", "low": 99.9}])
def test_ranges_that_are_empty_are_refused(wrong):
    with pytest.raises(ValidationError, match="must be below high"):
        TypeAdapter(IntensityConfig).validate_python(wrong)


# ------------------------------------------------------------------------------------------------- what looks strange


def test_strange_inputs_are_told_from_usual_ones():
    x = fitted(Percentile(), heads()).apply(heads()[:18], GROUPS[:18])
    seen = Seen.of(x)
    assert not seen.outside(torch.from_numpy(x)).any()
    fresh = Intensity(200, 900).apply(heads()[:18])
    assert not seen.outside(torch.from_numpy(fresh)).any(), "another range that is nearly right"
    for strange in (x / 255, x * 10, 1 - x, np.zeros_like(x), np.ones_like(x)):
        assert seen.outside(torch.from_numpy(strange.astype(np.float32))).all()


# ------------------------------------------------------------------------------------------------------- in a run


def scans(root, images, **settings):
    np.savez(root / "scans.npz", a=images, b=images[::-1] + 1, patient=GROUPS)
    names = {"a": "scans.npz:a", "b": "scans.npz:b"}
    return ArraysConfig(root=str(root), images=names, groups="scans.npz:patient", **settings)


def test_a_run_keeps_its_intensity_when_files_change(tmp_path):
    run, images = tmp_path / "run", heads()[:, 0]
    run.mkdir()
    config = scans(tmp_path, images, intensity=Percentile(), intensity_of={"b": Window(low=0.0, high=999.5)})
    splits = keep_record(run, load_data(config, 0))
    kept, text = read_intensity(run), (run / "intensity.json").read_text()
    assert kept == splits.intensity
    assert kept["b"].usual == Intensity(0, 999.5)
    assert kept["a"].seen is not None
    assert kept["a"].dtype == "int16"
    rows = splits.train.rows
    low, high = np.percentile(images[rows][images[rows] > 0], [0.5, 99.5])
    expected = ((images[rows] - low) / (high - low)).clip(0, 1)
    np.testing.assert_allclose(splits.train.batch(range(len(rows))).x["a"][:, 0], expected, atol=1e-5)
    again = follow_record(run, load_data(config, 0))
    assert again.fingerprint == splits.fingerprint
    without = {name: {key: tree[key] for key in tree if key != "dtype"} for name, tree in json.loads(text).items()}
    (run / "intensity.json").write_text(json.dumps(without))
    before = follow_record(run, load_data(config, 0))
    assert before.fingerprint == splits.fingerprint, "runs that did not note the type go on"
    (run / "intensity.json").write_text(text)

    scans(tmp_path, images * 2)
    with pytest.warns(MandorlaWarning, match="hold other images than when this run began"):
        changed = follow_record(run, load_data(config, 0))
    assert changed.intensity == kept
    assert changed.fingerprint != splits.fingerprint
    expected = ((2.0 * images[rows] - low) / (high - low)).clip(0, 1)
    np.testing.assert_allclose(changed.train.batch(range(len(rows))).x["a"][:, 0], expected, atol=1e-5)


def test_other_settings_before_a_training_replace_what_is_kept(tmp_path):
    images = heads()[:, 0]
    for settings in (MinMax(), ZScore(per="subject")):
        keep_record(tmp_path, load_data(scans(tmp_path, images, intensity=settings), 0))
        assert {fitted.settings for fitted in read_intensity(tmp_path).values()} == {settings}


def test_per_subject_survives_json(tmp_path):
    splits = keep_record(tmp_path, load_data(scans(tmp_path, heads()[:, 0], intensity=MinMax(per="subject")), 0))
    tree = json.loads((tmp_path / "intensity.json").read_text())
    assert set(tree["a"]["subjects"]) == set(GROUPS)
    assert read_intensity(tmp_path) == splits.intensity


def test_composed_data_are_known_by_their_recipe(tmp_path):
    config = PolydigitsConfig(num_train=30, num_val=3, num_test=3)
    splits = keep_record(tmp_path, load_data(config, 0))
    kept = read_intensity(tmp_path)
    assert {fitted.usual for fitted in kept.values()} == {Intensity(0, 1)}
    x = splits.train.batch(range(3)).x
    assert not any(kept[name].seen.outside(x[name]).any() for name in x)
    assert follow_record(tmp_path, load_data(config, 0)).fingerprint == splits.fingerprint
    others = load_data(config, 1), load_data(PolydigitsConfig(num_train=31, num_val=3, num_test=3), 0)
    assert len({splits.fingerprint, *(other.fingerprint for other in others)}) == 3


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (0.0, 1e-320), (-1e300, 1e300)])
def test_a_window_that_nothing_can_be_divided_by_is_refused(low, high):
    with pytest.raises(ValidationError, match="must be below"):
        Window(low=low, high=high)


BROKEN = '{"a": {"settings": {"kind": "x"}, "usual": [0, 1], "subjects": {}, "seen": null}}'


@pytest.mark.parametrize("text", ["[]", "{", '{"a": {}}', '{"a": 3}', BROKEN])
def test_a_damaged_file_is_one_line(tmp_path, text):
    (tmp_path / "intensity.json").write_text(text)
    with pytest.raises(MandorlaError, match="intensity.json") as error:
        read_intensity(tmp_path)
    assert "\n" not in str(error.value)


def test_settings_name_modalities_that_exist(tmp_path):
    with pytest.raises(MandorlaError, match="data.intensity_of: no modality 'c' in the data, only a, b"):
        load_data(scans(tmp_path, heads()[:, 0], intensity_of={"c": MinMax()}), 0)
