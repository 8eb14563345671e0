import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_recipe

import mandorla
from mandorla.data import load_data
from mandorla.data.arrays import ArraysConfig
from mandorla.data.intensity import MinMax, Percentile, Window
from mandorla.diffusion.training import train_diffusion
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.files import translate
from mandorla.recipe import read_recipe
from mandorla.vae.training import train_vae

RNG = np.random.default_rng(0)
STACK = RNG.integers(0, 256, (40, 12, 8, 2), dtype=np.uint8)
PATIENT = np.arange(40) // 4
PRESENT = np.arange(40) % 3 > 0
MASK = (RNG.random((40, 12, 8)) < 0.4) & (np.arange(40) % 4 > 0)[:, None, None]
SHARED_DATA = Path(os.environ.get("MANDORLA_DATA") or Path(__file__).parents[2] / "shared" / "data")


@pytest.fixture
def root(tmp_path):
    np.savez(tmp_path / "scans.npz", x=STACK, patient=PATIENT, has_t2=PRESENT, short=PATIENT[:7], name=["a"] * 40)
    np.save(tmp_path / "t1.npy", STACK[..., 0])
    np.save(tmp_path / "rgb.npy", STACK[..., [0, 1, 0]])
    np.save(tmp_path / "kelvin.npy", STACK[..., 1].astype(np.float64) - 55)
    np.save(tmp_path / "volume.npy", RNG.uniform(size=(40, 6, 4, 2)).astype(np.float32))
    np.save(tmp_path / "short.npy", STACK[:7, ..., 0])
    np.save(tmp_path / "nan.npy", np.where(STACK[..., 0] == 0, np.nan, STACK[..., 0] / 255))
    np.save(tmp_path / "signed.npy", STACK[..., 0].astype(np.int16))
    np.save(tmp_path / "number.npy", np.float32(1))
    np.save(tmp_path / "pixelless.npy", np.zeros((40, 0, 8), np.uint8))
    np.save(tmp_path / "flat.npy", np.full((40, 12, 8), 5, np.int16))
    shutil.copy(tmp_path / "scans.npz", tmp_path / "archive.npy")
    shutil.copy(tmp_path / "t1.npy", tmp_path / "single.npz")
    np.savez(
        tmp_path / "labels.npz",
        kind=np.array(["glioma", "none"])[PATIENT % 2],
        age=40.5 + PATIENT,
        mask=np.packbits(MASK, axis=-1),
        split=np.array(["train", "val", "test"])[(PATIENT > 5) * 1 + (PATIENT > 7)],
        leaking=np.array(["train", "val", "test"])[np.arange(40) % 3],
    )
    np.save(tmp_path / "object.npy", np.array([{}, {}]), allow_pickle=True)
    (tmp_path / "broken.npz").write_bytes(b"PK, but no zip")
    return tmp_path


def config(root, t1="scans.npz:x:0", t2="scans.npz:x:1", **settings):
    return ArraysConfig(root=str(root), images={"t1": t1, "t2": t2}, **settings)


def rows_of(dataset):
    return [int(name.split("-")[-1]) for name in dataset.ids]


def test_channels_of_one_array_split_by_patient(root):
    splits = load_data(config(root, groups="scans.npz:patient"), seed=0)
    assert [(m.name, m.shape) for m in splits.modalities] == [("t1", (1, 12, 8)), ("t2", (1, 12, 8))]
    patients = []
    for dataset in (splits.train, splits.val, splits.test):
        batch = dataset.batch(range(len(dataset)))
        rows = rows_of(dataset)
        assert batch.ids == dataset.ids
        for channel, name in enumerate(("t1", "t2")):
            expected = torch.from_numpy(STACK[rows, ..., channel][:, None].astype(np.float32) / 255)
            torch.testing.assert_close(batch.x[name], expected)
            assert batch.present[name].all()
        np.testing.assert_array_equal(batch.factors["group"], PATIENT[rows].astype(str))
        patients.append(set(PATIENT[rows]))
    assert sorted(np.concatenate([list(part) for part in patients])) == list(range(10))


def test_excluded_patients_are_in_no_part_and_the_others_where_they_were(root):
    settings = {"intensity": Percentile(per="subject"), "groups": "scans.npz:patient"}
    whole, left = (load_data(config(root, exclude=names, **settings), seed=3) for names in ([], [2, "7"]))
    for part, dataset in whole.parts.items():
        kept = [name for name, group in zip(dataset.ids, dataset.groups, strict=True) if group not in ("2", "7")]
        assert left.parts[part].ids == kept
        if kept:
            assert torch.equal(left.parts[part].batch([0]).x["t1"], dataset.batch([dataset.ids.index(kept[0])]).x["t1"])
    assert set(whole.intensity["t1"].subjects) - set(left.intensity["t1"].subjects) == {"2", "7"}
    assert whole.fingerprint != left.fingerprint


def test_what_is_excluded_is_not_looked_at(root):
    x = np.linspace(0, 1, 40 * 24, dtype=np.float32).reshape(40, 6, 4)
    x[5] = np.nan
    np.save(root / "one_nan.npy", x)
    with pytest.raises(MandorlaError, match="NaN"):
        load_data(config(root, "one_nan.npy", "one_nan.npy", groups="scans.npz:patient"), seed=0)
    settings = {"groups": "scans.npz:patient", "exclude": ["1"], "duplicates": "keep"}
    splits = load_data(config(root, "one_nan.npy", "one_nan.npy", **settings), seed=0)
    assert sum(len(part) for part in splits.parts.values()) == 36


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["12"], r"no subject of data.images is called '12'; is it '2' or '1'\?"),
        (["sub-xyz"], r"no subject of data.images is called 'sub-xyz'; they have names like '0'"),
        ([str(number) for number in range(9)], r"exclude leaves nothing of data.images for (train|val|test)"),
    ],
)
def test_mistakes_in_exclude(root, names, complaint):
    with pytest.raises(MandorlaError, match=complaint):
        load_data(config(root, groups="scans.npz:patient", exclude=names), seed=0)


def test_order_of_indices_is_kept(root):
    train = load_data(config(root), seed=0).train
    whole = train.batch(range(len(train)))
    some = train.batch([3, 0, 3])
    assert some.ids == [whole.ids[i] for i in (3, 0, 3)]
    assert torch.equal(some.x["t2"], whole.x["t2"][[3, 0, 3]])


def test_colour_ranges_and_other_types(root):
    train = load_data(config(root, "rgb.npy", "rgb.npy:1"), seed=0).train
    assert [m.shape for m in train.modalities] == [(3, 12, 8), (1, 12, 8)]
    x = train.batch([0]).x
    torch.testing.assert_close(x["t1"][:, 1:2], x["t2"])
    window = Window(low=-55.0, high=255.0)
    train = load_data(config(root, "kelvin.npy", "signed.npy", intensity=window), seed=0).train
    row = rows_of(train)[0]
    expected = torch.from_numpy(STACK[row, ..., 1].astype(np.float32) / 310)
    torch.testing.assert_close(train.batch([0]).x["t1"][0, 0], expected)


@pytest.mark.parametrize(("dimensions", "shape"), [(3, (1, 6, 4, 2)), (2, (2, 6, 4)), (1, None)])
def test_dimensions_tell_channels_from_space(root, dimensions, shape):
    settings = config(root, "volume.npy", "volume.npy", dimensions=dimensions)
    if shape is None:
        with pytest.raises(MandorlaError, match=r"shape \(40, 6, 4, 2\) holds no images of 1 dimension"):
            load_data(settings, seed=0)
    else:
        assert load_data(settings, seed=0).modalities[0].shape == shape


def test_missing_modality_is_zero_and_marked(root):
    images = STACK[..., 1].astype(np.float32) / 255
    images[~PRESENT] = np.nan
    np.save(root / "t2.npy", images)
    window = {"t2": Window(low=-1.0, high=1.0)}  # in which the zero that stands for nothing is grey
    settings = config(root, t2="t2.npy", present={"t2": "scans.npz:has_t2"}, intensity_of=window)
    train = load_data(settings, seed=0).train
    batch = train.batch(range(len(train)))
    np.testing.assert_array_equal(batch.present["t2"], PRESENT[rows_of(train)])
    assert batch.present["t1"].all()
    assert not batch.x["t2"][~batch.present["t2"]].any()
    assert batch.x["t2"].isfinite().all()


def test_size_averages_areas(root):
    window = Window(low=-55.0, high=255.0)
    train = load_data(config(root, "kelvin.npy", intensity_of={"t1": window}, size=(3, 4)), seed=0).train
    means = STACK.astype(np.float32).reshape(40, 3, 4, 4, 2, 2).mean(axis=(2, 4))[rows_of(train)]
    x = train.batch(range(len(train))).x
    np.testing.assert_allclose(x["t1"][:, 0], means[..., 1] / 310, atol=1e-5)
    train = load_data(config(root, size=(3, 4)), seed=0).train  # bytes stay bytes
    np.testing.assert_allclose(train.batch(range(len(train))).x["t1"][:, 0], means[..., 0] / 255, atol=0.51 / 255)


def test_labels_become_factors(root):
    labels = {"tumour_mask": "labels.npz:mask:bits", "kind": "labels.npz:kind", "age": "labels.npz:age"}
    splits = load_data(config(root, labels=labels, stratify="kind", groups="scans.npz:patient"), seed=0)
    for part in splits.parts.values():
        rows, factors = rows_of(part), part.batch(range(len(part))).factors
        np.testing.assert_array_equal(factors["tumour_mask"], MASK[rows])
        np.testing.assert_array_equal(factors["tumour_present"], MASK[rows].any((1, 2)))
        np.testing.assert_array_equal(factors["kind"], PATIENT[rows] % 2)
        np.testing.assert_array_equal(factors["age"], 40.5 + PATIENT[rows])
    assert splits.classes == {"kind": ("glioma", "none"), "tumour_present": ("false", "true")}
    assert [len(set(PATIENT[rows_of(part)] % 2)) for part in splits.parts.values()] == [2, 2, 2], (
        "every class everywhere"
    )
    small = load_data(config(root, labels=labels, size=(6, 4)), seed=0).train
    expected = MASK[rows_of(small)].reshape(-1, 6, 2, 4, 2).sum((2, 4)) >= 2
    np.testing.assert_array_equal(small.batch(range(len(small))).factors["tumour_mask"], expected)


def test_whole_numbers_are_classes_unless_named_as_numbers(root):
    np.savez(root / "ages.npz", age=40 + PATIENT)
    settings = {"labels": {"age": "ages.npz:age"}, "groups": "scans.npz:patient"}
    assert load_data(config(root, **settings), seed=0).classes["age"][-1] == str(40 + PATIENT.max())
    splits = load_data(config(root, **settings, numbers=["age"]), seed=0)
    ages = splits.train.batch(range(len(splits.train))).factors["age"]
    assert splits.classes == {} and ages.dtype == np.float64
    np.testing.assert_array_equal(ages, 40 + PATIENT[rows_of(splits.train)])
    for wrong, message in [
        ({"numbers": ["agee"]}, "data.numbers: no label 'agee' in the data, only age"),
        ({"numbers": ["age"], "stratify": "age"}, "data.stratify: 'age' is no label with classes"),
    ]:
        with pytest.raises(MandorlaError, match=message):
            load_data(config(root, **settings, **wrong), seed=0)


def test_a_mask_may_be_a_modality(root):
    train = load_data(config(root, t2="labels.npz:mask:bits", duplicates="keep"), seed=0).train
    x = train.batch(range(len(train))).x["t2"]
    np.testing.assert_array_equal(x[:, 0], MASK[rows_of(train)].astype(np.float32))


def test_a_given_division_is_kept(root):
    splits = load_data(config(root, groups="scans.npz:patient", split="labels.npz:split"), seed=0)
    assert [set(PATIENT[rows_of(part)]) for part in splits.parts.values()] == [set(range(6)), {6, 7}, {8, 9}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t2": "absent.npy", "source": "the archive"}, r"absent.npy: no such file; it comes from the archive; put it"),
        ({"t2": "scans.npz"}, "data.images.t2: 'scans.npz' names no array"),
        ({"t2": "scans.npz:y"}, "scans.npz: no array 'y' in it, only x, patient"),
        ({"t2": "scans.npz:x:2"}, "data.images.t2: no channel 2"),
        ({"t2": "broken.npz:x"}, "broken.npz: cannot be read as a NumPy file"),
        ({"t2": "object.npy"}, "object.npy: cannot be read as a NumPy file"),
        ({"t2": "short.npy"}, "data.images.t2: 7 samples where data.images.t1 has 40"),
        ({"groups": "scans.npz:short"}, "data.groups: 7 samples where data.images.t1 has 40"),
        ({"t2": "nan.npy"}, r"data.images, modality t2: NaN or infinite values in sample '\d+'"),
        ({"t2": "kelvin.npy"}, r"modality t2: values from -55 to 200 lie outside \[0, 1\]; set data.intensity"),
        ({"t2": "signed.npy"}, "modality t2: the range of type int16 is unknown; set data.intensity"),
        ({"t2": "scans.npz:name"}, "data.images.t2: an array of shape"),
        ({"present": {"t3": "scans.npz:has_t2"}}, "data.present: no modality 't3'"),
        ({"present": {"t2": "scans.npz:patient"}}, "data.present.t2: expected one true or false"),
        ({"labels": {"mask": "labels.npz:mask:bits", "m": "scans.npz:y"}}, "scans.npz: no array 'y' in it"),
        ({"labels": {"m": "kelvin.npy:bits"}}, "data.labels.m: packed bits are uint8"),
        ({"labels": {"m": "scans.npz:short"}}, "data.labels.m: 7 samples where data.images.t1 has 40"),
        ({"labels": {"group": "scans.npz:patient"}}, "data.labels: the name 'group' is taken"),
        ({"labels": {"a": "labels.npz:age"}, "stratify": "a"}, "data.stratify: 'a' is no label with classes; the data"),
        (
            {"groups": "scans.npz:patient", "split": "labels.npz:leaking"},
            "data.images: the split leaks: subject '0' lies in both train and val",
        ),
        ({"split": "scans.npz:x"}, "data.split: expected one name or number per sample"),
        ({"size": (24, 8)}, r"modality t1: images of \[12, 8\] pixels cannot be averaged down to \[24, 8\]"),
        ({"t2": "number.npy"}, "number.npy: it is no array with a row per sample"),
        ({"t2": "archive.npy"}, "archive.npy: cannot be read as a NumPy file .* the other kind"),
        ({"t2": "single.npz:x"}, "single.npz: cannot be read as a NumPy file .* the other kind"),
        ({"t2": "pixelless.npy"}, r"data.images.t2: an array of shape \(40, 0, 8\) holds no images"),
        ({"t1": "flat.npy", "intensity": MinMax()}, "modality t1: data.intensity minmax finds a single value"),
        ({"groups": "scans.npz:x"}, "data.groups: expected one name or number per sample"),
        (
            {"present": dict.fromkeys(("t1", "t2"), "scans.npz:has_t2")},
            "data.present: sample .* has no modality: leave",
        ),
        (
            {"size": (6,)},
            r"modality t1: images of \[12, 8\] pixels cannot be averaged down to \[6\]; data.size needs 2 numbers",
        ),
    ],
)
def test_mistakes_are_named_in_one_line(root, changes, message):
    with pytest.raises(MandorlaError, match=message) as caught:
        load_data(config(root, **changes), seed=0)
    assert "\n" not in str(caught.value)


def test_files_follow_one_another(root):
    """Two files with patients of their own, looked up by number; in the second some have no t1 but a copy of t2."""
    x = RNG.integers(1, 256, (12, 12, 8, 2), dtype=np.uint8)
    has_t1, patient = np.array([True, False, True]), np.arange(12) // 4
    x[4:8, ..., 0] = x[4:8, ..., 1]
    names = np.array(["p", "q", "r"])
    np.savez(root / "more.npz", x=x, patient=patient, names=names, has_t1=has_t1, mask=np.packbits(MASK[:12], axis=-1))
    np.savez(root / "first.npz", x=STACK, patient=PATIENT, names=[f"patient {k}" for k in range(10)])
    files = ("first.npz", "more.npz")
    settings = ArraysConfig(
        root=str(root),
        images={"t1": ("first.npz:x:0", "more.npz:x:0"), "t2": ("first.npz:x:1", "more.npz:x:1")},
        groups=tuple(f"{file}:names[patient]" for file in files),
        present={"t1": (None, "more.npz:has_t1[patient]")},
        labels={"lesion_mask": ("labels.npz:mask:bits", "more.npz:mask:bits")},
    )
    splits = load_data(settings, seed=0)
    groups = {part: {name.rpartition("-")[0] for name in dataset.ids} for part, dataset in splits.parts.items()}
    assert set.union(*groups.values()) == {f"patient {k}" for k in range(10)} | {"p", "q", "r"}
    assert sum(map(len, groups.values())) == 13
    patients = [f"patient {k // 4}" for k in range(40)] + ["p"] * 4 + ["q"] * 4 + ["r"] * 4
    stack, mask = np.concatenate([STACK, x]), np.concatenate([MASK, MASK[:12]])
    for dataset in splits.parts.values():
        batch, rows = dataset.batch(range(len(dataset))), rows_of(dataset)
        assert batch.factors["group"].tolist() == [patients[row] for row in rows]
        copied = batch.factors["group"] == "q"
        np.testing.assert_array_equal(batch.present["t1"], ~copied)
        assert batch.present["t2"].all()
        assert (batch.x["t1"][torch.from_numpy(copied)] == 0).all()
        np.testing.assert_allclose(batch.x["t1"][~copied, 0], stack[rows][~copied, ..., 0] / 255, atol=1e-6)
        np.testing.assert_array_equal(batch.factors["lesion_mask"], mask[rows])


@pytest.mark.parametrize(
    "changes, complaint",
    [
        (
            {"groups": ("scans.npz:patient", "scans.npz:short")},
            "data.groups: 40 [+] 7 samples where .*t1 has 40 [+] 40",
        ),
        ({"groups": ("scans.npz:short", "scans.npz:patient")}, "data.groups: 7 [+] 40 samples"),
        ({"groups": "scans.npz:patient"}, "data.groups: 40 samples where data.images.t1 has 40 [+] 40"),
        ({"present": {"t1": (None, None, None)}}, "data.present.t1: 40 [+] 40 [+] 0 samples where"),
        ({"present": {"t1": ()}}, "data.present.t1: an empty list"),
        ({"groups": ("scans.npz:patient", "scans.npz:name")}, "data.groups: samples of one file are unlike .*int64"),
        (
            {"groups": ("scans.npz:name[x]",) * 2},
            "data.groups: x holds no row numbers of name: give integers from 0 to 39",
        ),
        (
            {"groups": ("scans.npz:short[patient]",) * 2},
            "patient holds no row numbers of short: give integers from 0 to 6",
        ),
        ({"groups": ("scans.npz:patient[none]",) * 2}, "no array 'none' in it"),
    ],
)
def test_mistakes_in_lists(root, changes, complaint):
    settings = config(root, t1=("scans.npz:x:0",) * 2, t2=("scans.npz:x:1",) * 2, duplicates="keep", **changes)
    with pytest.raises(MandorlaError, match=complaint):
        load_data(settings, seed=0)


def test_one_modality_is_not_paired(root):
    with pytest.raises(MandorlaError, match="paired data need two or more"):
        load_data(ArraysConfig(root=str(root), images={"t1": "t1.npy"}), seed=0)


def test_root_comes_from_settings_then_environment(root, monkeypatch):
    settings = ArraysConfig(images={"t1": "t1.npy", "t2": "t1.npy"})
    monkeypatch.delenv("MANDORLA_DATA", raising=False)
    monkeypatch.chdir(root)
    with pytest.raises(MandorlaError, match="^data/t1.npy: no such file"):
        load_data(settings, seed=0)
    monkeypatch.setenv("MANDORLA_DATA", str(root))
    assert len(load_data(settings, seed=0).train) == 28


def test_data_in_which_nothing_is_paired_are_refused(root):
    """Two modalities that no sample has both of; with a third beside each of them it is a warning."""
    np.savez(root / "apart.npz", odd=np.arange(40) % 2 > 0, even=np.arange(40) % 2 == 0)
    apart = {"t1": "apart.npz:odd", "t2": "apart.npz:even"}
    with pytest.raises(MandorlaError, match="^data.images: no training sample has two modalities") as stop:
        load_data(config(root, present=apart), seed=0)
    assert "\n" not in str(stop.value)
    images = {"t1": "scans.npz:x:0", "t2": "scans.npz:x:1", "rgb": "rgb.npy"}
    with pytest.warns(MandorlaWarning, match="no training sample has both t1 and t2$"):
        load_data(ArraysConfig(root=str(root), images=images, present=apart), seed=0)


def test_a_modality_that_is_always_the_same_is_warned_of(root):
    np.save(root / "grey.npy", np.full((40, 12, 8), 5, np.uint8))
    with pytest.warns(MandorlaWarning, match="modality t2: all training samples are the same"):
        load_data(config(root, t2="grey.npy"), seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_data(config(root), seed=0)


def write_people(path, num=40):
    """Write a table of `num` subjects, every fourth without values of blood; return both vectors, NaN where missing."""
    rng = np.random.default_rng(2)
    state = rng.normal(size=(num, 1))
    genes = (state + rng.normal(0, 0.3, (num, 3))).round(3)
    blood = (state * [3, 0.1] + [140, 2.4]).round(3)
    blood[::4] = np.nan
    lines = ["patient;g1;g2;g3;sodium;calcium;age;sex"]
    for row in range(num):
        cells = ["" if value != value else f"{value}" for value in (*genes[row], *blood[row])]
        lines.append(";".join([f"p{row}", *cells, f"{30.5 + row}", "fm"[row % 2]]))
    path.write_text("\n".join(lines))
    return genes.astype(np.float32), blood.astype(np.float32)


PEOPLE = {"images": {"genes": "people.csv:g*", "blood": "people.csv:calcium,sodium"}, "groups": "people.csv:patient"}


def test_columns_of_a_table_are_vectors(root):
    genes, blood = write_people(root / "people.csv")
    labels = {"age": "people.csv:age", "sex": "people.csv:sex"}
    per_column = MinMax(per="channel")
    splits = load_data(ArraysConfig(root=str(root), labels=labels, intensity=per_column, **PEOPLE), seed=0)
    assert [(m.name, m.shape) for m in splits.modalities] == [("genes", (3,)), ("blood", (2,))]
    assert splits.classes == {"sex": ("f", "m")}
    assert [of.columns for of in splits.intensity.values()] == [("g1", "g2", "g3"), ("calcium", "sodium")]
    train = splits.train
    batch, rows = train.batch(range(len(train))), rows_of(train)
    assert batch.factors["group"].tolist() == [f"p{row}" for row in rows]
    np.testing.assert_array_equal(batch.factors["age"], 30.5 + np.array(rows))
    np.testing.assert_array_equal(batch.factors["sex"], np.array(rows) % 2)
    np.testing.assert_array_equal(batch.present["blood"], np.array(rows) % 4 > 0)
    there = batch.present["blood"]
    for unit, values in ((batch.x["genes"], genes[rows]), (batch.x["blood"][there], blood[rows][there][:, ::-1])):
        low, high = values.min(0), values.max(0)
        np.testing.assert_allclose(unit, (values - low) / (high - low), atol=1e-4)


def test_vectors_in_arrays_and_beside_images(root):
    genes, _ = write_people(root / "people.csv")
    np.save(root / "genes.npy", genes)
    for images, dimensions in (
        ({"one": "genes.npy", "other": "people.csv:sodium,calcium"}, 0),
        ({"one": "people.csv:g*", "other": "t1.npy"}, 2),
    ):
        settings = ArraysConfig(root=str(root), images=images, dimensions=dimensions, intensity=MinMax(per="channel"))
        splits = load_data(settings, seed=0)
        assert splits.modalities[0].shape == (3,)
        (low, high), values = splits.intensity["one"].to_json()["usual"], genes[rows_of(splits.train)]
        np.testing.assert_allclose([low, high], [values.min(0), values.max(0)], atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blood": "people.csv:natrium"}, "people.csv: no column 'natrium'; it has patient, g1"),
        ({"blood": "people.csv"}, "people.csv: column 'patient' holds 'p0', no number; name those to take"),
        ({"blood": "people.csv:sex"}, "data.images.blood: <U1 values are no pixels"),
        (
            {"blood": "more.csv:a,b"},
            "data.images.blood: more.csv is another table than people.csv, and rows are paired",
        ),
        (dict.fromkeys(("genes", "blood", "groups"), "absent.csv:a"), "absent.csv: no such file; put it there"),
        ({"groups": "people.csv:sodium"}, "people.csv: column 'sodium' is empty in row 1; fill it"),
        ({"groups": "people.csv:sodium,age"}, "column 'sodium' is empty"),
        ({"groups": "people.csv:age,sex"}, "data.groups: expected one name or number per sample"),
        (
            dict.fromkeys(("genes", "blood"), ("more.csv:*", "less.csv:*")) | {"groups": ("more.csv:a", "less.csv:a")},
            "data.images.genes: .*less.csv has the columns b, a, not a, b; name them",
        ),
        ({"genes": "people.csv:g1,sodium"}, "modality genes: NaN or infinite values in sample 'p[0-9]+-[0-9]+'"),
        (
            {"size": (2,)},
            r"images of \[\] pixels cannot be averaged down to \[2\]; vectors have none, leave data.size out",
        ),
    ],
)
def test_mistakes_in_tables(root, changes, message):
    write_people(root / "people.csv")
    (root / "more.csv").write_text("a,b\n" + "1,2\n" * 40)
    (root / "less.csv").write_text("b,a\n" + "1,2\n" * 40)
    images = PEOPLE["images"] | {name: place for name, place in changes.items() if name in PEOPLE["images"]}
    others = {name: place for name, place in changes.items() if name not in images}
    settings = {"root": str(root), "intensity": MinMax(), **PEOPLE, "images": images, **others}
    with pytest.raises(MandorlaError, match=message) as stop:
        load_data(ArraysConfig(**settings), seed=0)
    assert "\n" not in str(stop.value)


def test_a_table_trains_through_both_stages(root):
    write_people(root / "people.csv")
    data = {"kind": "arrays", "root": str(root), "intensity": {"kind": "minmax", "per": "channel"}, **PEOPLE}
    changes = [f"data={json.dumps(data)}", "vae.model.encoder_decoder={kind: perceptron, hidden: [8]}"]
    recipe = tiny_recipe(root / "run", "polydigits", *changes)
    train_vae(recipe)
    train_diffusion(recipe)
    samples = mandorla.load(root / "run").sample(2)
    assert {name: tuple(x.shape) for name, x in samples.x.items()} == {"genes": (2, 3), "blood": (2, 2)}
    (root / "new.csv").write_text("g1,g2,g3\n0.1,0.2,0.3\n")
    translate(mandorla.load(root / "run"), root / "new.csv", root / "out", ["genes"], ["blood"], num_samples=2, seed=0)
    (written,) = (root / "out").rglob("*.csv")
    names, values = (line.split(",") for line in written.read_text().splitlines())
    assert names == ["sample", "calcium", "sodium"] and values[0] == "0" and 130 < float(values[2]) < 150


@pytest.mark.skipif(not (SHARED_DATA / "lgg" / "lgg_128.npz").exists(), reason="no lgg/lgg_128.npz under MANDORLA_DATA")
def test_glioma_slices():
    """The published set: 2490 slices of 75 patients, three contrasts."""
    file = "lgg/lgg_128.npz"
    images = {name: f"{file}:x:{channel}" for channel, name in enumerate(("t1", "flair", "t1gd"))}
    names = {"images": images, "groups": f"{file}:patient", "labels": {"lesion_mask": f"{file}:mask:bits"}}
    settings = ArraysConfig(root=str(SHARED_DATA), size=(64, 64), intensity=Percentile(per="subject"), **names)
    splits = load_data(settings, seed=0)
    parts = [dataset.batch(range(len(dataset))) for dataset in (splits.train, splits.val, splits.test)]
    assert [len(set(batch.factors["group"])) for batch in parts] == [53, 11, 11]
    assert sum(len(batch.ids) for batch in parts) == 2490
    t1, flair = (parts[0].x[name].flatten(1) for name in ("t1", "flair"))
    aligned = torch.nn.functional.cosine_similarity(t1, flair).mean()
    shuffled = torch.nn.functional.cosine_similarity(t1, flair.roll(500, 0)).mean()
    assert aligned > shuffled + 0.1  # the contrasts of one slice belong together
    flair, mask = parts[0].x["flair"][:, 0], torch.from_numpy(parts[0].factors["lesion_mask"])
    assert flair[mask].mean() > flair[~mask].mean() + 0.3  # tumours are bright in FLAIR, and the mask lies on them
    assert 0.3 < parts[0].factors["lesion_present"].mean() < 0.6


@pytest.mark.skipif(
    not all((SHARED_DATA / "lgg" / f"lgg_128{name}.npz").exists() for name in ("", "_incomplete")),
    reason="no lgg/lgg_128.npz and lgg/lgg_128_incomplete.npz under MANDORLA_DATA",
)
def test_copies_of_flair_never_reach_a_batch():
    """Where a contrast was not taken, the published file holds FLAIR in its place: 10 patients, 444 slices."""
    data = read_recipe("lgg-incomplete", [f"data.root={json.dumps(str(SHARED_DATA))}"]).data
    file = np.load(SHARED_DATA / "lgg" / "lgg_128_incomplete.npz")
    has = {"t1": "has_pre", "t1gd": "has_post"}
    lacking = {name: set(file["patients"][~file[key]]) for name, key in has.items()}
    assert [len(patients) for patients in lacking.values()] == [6, 10]
    missing = dict.fromkeys(has, 0)
    for dataset in load_data(data, seed=0).parts.values():
        for start in range(0, len(dataset), 250):
            batch = dataset.batch(range(start, min(start + 250, len(dataset))))
            assert batch.present["flair"].all()
            for name, patients in lacking.items():
                without = torch.from_numpy(np.isin(batch.factors["group"], list(patients)))
                assert torch.equal(batch.present[name], ~without)
                assert not batch.x[name][without].any()
                same = (batch.x[name] == batch.x["flair"]).flatten(1).all(1) & batch.x["flair"].flatten(1).any(1)
                assert not same.any()
                missing[name] += int(without.sum())
    assert missing["t1gd"] == 444
    assert 0 < missing["t1"] < 444
