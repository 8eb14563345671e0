"""Labels as a condition: read from data, learned, asked for, and optional."""

import math
import shutil

import numpy as np
import pytest
import torch
from tiny import interrupted, signals_recipe, tiny_recipe

import mandorla
from mandorla import edits, files
from mandorla.data.dataset import Splits
from mandorla.data.stored import StoredDataset
from mandorla.diffusion.config import DiffusionConfig
from mandorla.diffusion.labels import LabelScale, fit_scales, label_values, of_json, to_json, to_labels
from mandorla.diffusion.model import Diffusion
from mandorla.diffusion.samplers import SamplingConfig
from mandorla.diffusion.training import train_diffusion
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.latents import Layout
from mandorla.nets.transformer import TransformerConfig
from mandorla.vae.training import train_vae

GRADE, AGE = LabelScale(("low", "high")), LabelScale((), 50.0, 10.0)


def stored(labels: dict[str, np.ndarray], rows: list[int]) -> StoredDataset:
    return StoredDataset({}, {}, {}, labels, [str(row) for row in rows], np.array(rows), np.array(rows))


def test_classes_and_numbers_become_what_the_network_reads():
    classes = GRADE.apply(np.array([1, 0, -1]))
    torch.testing.assert_close(classes[:2], math.sqrt(2) * torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert classes[2].isnan().all()
    numbers = AGE.apply(np.array([60.0, np.nan]))
    assert numbers[0] == 1
    assert numbers[1].isnan()
    assert of_json(to_json({"grade": GRADE, "age": AGE})) == {"grade": GRADE, "age": AGE}


def test_scales_that_differ_by_rounding_are_alike():
    for other in (AGE, LabelScale((), 50.0 + 1e-9, 10.0 - 1e-9)):
        assert AGE.is_like(other)
    for other in (LabelScale((), 50.01, 10.0), LabelScale((), 50.0, 10.01), GRADE):
        assert not AGE.is_like(other)
    assert not GRADE.is_like(LabelScale(("high", "low")))


def test_labels_of_stored_data_are_those_of_their_rows():
    labels = {"grade": np.array([0, 1, -1, 1]), "age": np.array([20.0, 40.0, np.nan, 90.0]), "mask": np.ones((4, 2))}
    train = stored(labels, [2, 1, 0])
    values = label_values(train, ["grade", "age"])
    assert values["grade"].tolist() == [-1, 1, 0]
    scales = fit_scales(values, Splits(train, train, train, classes={"grade": ("low", "high")}))
    assert scales["grade"] == GRADE
    assert (scales["age"].mean, scales["age"].std) == (30.0, 10.0)
    for name, message in {"mask": "no class and no number", "age2": "no label 'age2', only group, grade, age"}.items():
        with pytest.raises(MandorlaError, match=message):
            label_values(train, [name])
    with pytest.raises(MandorlaError, match="no training sample has the label 'grade'"):
        fit_scales({"grade": np.array([-1, -1])}, Splits(train, train, train))


def test_what_a_user_asks_for():
    scales = {"grade": GRADE, "age": AGE}
    asked = to_labels({"grade": "high", "age": [40, 60]}, scales, 2)
    assert asked["grade"].shape == (2, 2)
    assert asked["age"].tolist() == [[-1.0], [1.0]]
    asked = to_labels({"grade": [None, "high"], "age": None}, scales, 2)
    assert asked["grade"].isnan().all(1).tolist() == [True, False], "None is not known"
    assert asked["age"].isnan().all()
    seen = {"lesion": LabelScale(("false", "true"))}
    for given in (np.True_, np.array([True, True]), True):
        assert torch.equal(
            to_labels({"lesion": given}, seen, 2)["lesion"], to_labels({"lesion": "true"}, seen, 2)["lesion"]
        )
    for given, message in (
        ({"size": 1}, "no label 'size', only grade, age"),
        ({"grade": "hihg"}, "no class 'hihg', did you mean 'high'"),
        ({"age": "old"}, "'age' is a number, not 'old'"),
        ({"age": 1e30}, "'age' is .* with a standard deviation of .* in the training: 1e[+]30 means nothing"),
        ({"age": [1, 2, 3]}, "has 3 values for 2 samples"),
    ):
        with pytest.raises(MandorlaError, match=message):
            to_labels(given, scales, 2)
    many = {"year": LabelScale(tuple(map(str, range(90))))}
    with pytest.raises(MandorlaError, match=r"no class '33.5'.*; it has 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, \.\.\.$"):
        to_labels({"year": 33.5}, many, 2)
    with pytest.raises(MandorlaError, match=r"no label 'size', none: name them in diffusion.labels"):
        to_labels({"size": 1}, {}, 1)


def test_a_label_is_learned_and_optional():
    """Two classes lie at -2 and 2, and a number moves the other coordinate; unasked, both classes come."""
    torch.manual_seed(0)
    layout, labels = Layout({"shared": (2,), "t1": (1,)}), {"grade": GRADE, "age": AGE}
    config = DiffusionConfig(network=TransformerConfig(width=32, depth=2, heads=2))
    diffusion = Diffusion(config, layout, labels)
    optimizer = torch.optim.AdamW(diffusion.parameters(), 3e-3)
    for _ in range(400):
        grade, age = torch.randint(0, 2, (256,)), 50 + 10 * torch.randn(256)
        c = torch.stack([4.0 * grade - 2, (age - 50) / 10], 1) + 0.1 * torch.randn(256, 2)
        given = {"grade": GRADE.apply(grade.numpy()), "age": AGE.apply(age.numpy())}
        everyone = {name: torch.ones(256, dtype=torch.bool) for name in layout.shapes}
        loss, _ = diffusion.loss({"shared": c, "t1": torch.randn(256, 1)}, everyone, given)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    noise = {"shared": torch.randn(200, 2), "t1": torch.randn(200, 1)}

    def drawn(**asked) -> torch.Tensor:
        given = to_labels(asked, labels, 200)
        return diffusion.generate(noise, {}, ["shared"], SamplingConfig(), labels=given)["shared"]

    for grade, place in (("low", -2.0), ("high", 2.0)):
        c = drawn(grade=grade, age=65)
        assert ((c[:, 0] - place).abs() < 1).float().mean() > 0.95
        assert (c[:, 1].mean() - 1.5).abs() < 0.4
    free = drawn()
    assert 0.3 < (free[:, 0] > 0).float().mean() < 0.7
    assert free[:, 1].std() > 0.7
    assert drawn(age=65)[:, 0].std() > 1.5, "what is not asked for stays free"


def test_from_recipe_to_samples(polydigits_run, copy_of):
    """The labels of composed samples; a stage 2 with labels is kept with them, and answers without them too."""
    run = copy_of(polydigits_run)
    shutil.rmtree(run / "diffusion")
    train_diffusion(tiny_recipe(run, "polydigits", "diffusion.labels=[digit, quadrant_view0]"))
    model = mandorla.load(run)
    assert model.diffusion.labels["digit"].classes == tuple("0123456789")
    free = model.sample(2).x["view0"]
    for labels in ({"digit": 3}, {"digit": ["3", "4"]}):
        assert not torch.allclose(model.sample(2, labels=labels).x["view0"], free, atol=1e-6)
    of_one = model.sample(2, labels={"digit": [3, None]}).x["view0"]
    assert not torch.allclose(of_one[0], free[0], atol=1e-6)
    torch.testing.assert_close(of_one[1], free[1], atol=1e-6, rtol=1e-5, msg="not known is as if nobody had asked")
    x = model.data().test.batch([0, 1]).x
    shared = model.encode(x).shared
    for draw in (
        lambda labels: model.vary(x, 0.9, num=2, labels=labels).x["view0"],
        lambda labels: model.sample_private(shared, labels=labels).private["view0"],
    ):
        assert not torch.allclose(draw({"digit": [3, 4]}), draw(None), atol=1e-6)
    each, swapped = (model.vary(x, 0.9, num=2, labels={"digit": of}).x["view0"] for of in ([3, 4], [3, 5]))
    torch.testing.assert_close(each[:2], swapped[:2], atol=1e-6, rtol=1e-5, msg="each draw of a sample has its label")
    assert not torch.allclose(each[2:], swapped[2:], atol=1e-6)
    with pytest.raises(MandorlaError, match="no class 'x'"):
        edits.vary(model, "0", None, strength=0.5, part="both", num=1, seed=0, labels={"digit": "x"})
    assert model.translate({"view0": x["view0"]}, ["view1"], labels={"digit": [1, 2]})["view1"].shape[1] == 2
    np.savez(run / "in.npz", view0=x["view0"].numpy())
    how = {"num_samples": 1, "seed": 0, "write": ["draws"]}
    for labels in ({"digit": "3"}, {}):
        files.translate(model, run / "in.npz", run / "out", ["view0"], ["view1"], **how, labels=labels)
        with np.load(run / "out" / "samples.npz") as made:
            expected = model.translate({"view0": x["view0"]}, ["view1"], labels=labels)["view1"]
            np.testing.assert_allclose(made["view1"], expected, atol=1e-5)
        shutil.rmtree(run / "out")
    with pytest.raises(MandorlaError, match="has no class '11'"):
        files.translate(model, run / "in.npz", run / "out", ["view0"], ["view1"], **how, labels={"digit": "11"})
    assert model.log_likelihood(x, labels={"digit": 1}).shape == (2,)
    assert len(model.complete(mandorla.Latents(None, {}), labels={"digit": 1})) == 1
    with pytest.raises(MandorlaError, match="has no class '11'"):
        model.sample(1, labels={"digit": 11})
    with pytest.raises(MandorlaError, match="diffusion.labels: the data have no label 'colour', only digit"):
        train_diffusion(tiny_recipe(run, "polydigits", "diffusion.labels=[colour]"))


@pytest.mark.parametrize("done", [4, 6])
def test_a_stage_2_that_was_begun_keeps_the_scale_of_its_labels(tmp_path, done):
    """Its files change from years to months: what was learnt of an age of 60 would be asked for by 720."""
    years = np.arange(60) + 20.5
    np.save(tmp_path / "age.npy", years)
    labelled = ("data.labels={age: age.npy}", "diffusion.labels=[age]", "diffusion.weak_share=0.9")
    recipe = signals_recipe(tmp_path / "run", tmp_path, *labelled)
    train_vae(recipe)
    if done < 6:  # of the weaker network, which is trained first
        with interrupted(done):
            train_diffusion(recipe)
    else:
        train_diffusion(recipe)
    np.save(tmp_path / "age.npy", 12 * years + 0.25)
    stage = tmp_path / "run" / "diffusion"
    before = {path: path.read_bytes() for path in stage.rglob("*") if path.is_file()}
    with pytest.raises(MandorlaError, match="begun with the label 'age' of mean 4.* now hold one of mean 5.*: restore"):
        train_diffusion(recipe)
    assert {path: path.read_bytes() for path in stage.rglob("*") if path.is_file()} == before
    np.save(tmp_path / "age.npy", np.arange(60))
    with pytest.raises(MandorlaError, match=r"hold one of \d+ classes, 0, 1, 2, .*, \.\.\.: restore"):
        train_diffusion(recipe)
    np.save(tmp_path / "age.npy", years)
    train_diffusion(recipe)
    assert mandorla.load(tmp_path / "run").diffusion.labels["age"].mean == pytest.approx(years.mean(), abs=4)


def test_a_region_is_drawn_anew_for_a_label(phantom_run, copy_of):
    run = copy_of(phantom_run)
    shutil.rmtree(run / "diffusion")
    changes = ("diffusion.labels=[lesion_present]", "diffusion.region_share=0.2")
    train_diffusion(tiny_recipe(run, "phantom", *changes))
    model = mandorla.load(run)
    x = model.data().test.batch([0, 1]).x
    region = torch.zeros(model.modalities[0].size, dtype=torch.bool)
    region[: len(region) // 2] = True
    free, asked = (model.inpaint(x, region, labels=of).x["t1"] for of in (None, {"lesion_present": [1, None]}))
    assert not torch.allclose(asked[0], free[0], atol=1e-6)
    torch.testing.assert_close(asked[1], free[1], atol=1e-6, rtol=1e-5)
    assert torch.equal(asked[..., ~region], x["t1"][..., ~region])


def test_labels_in_mode_conditional(polydigits_run, copy_of):
    """They say how private parts are drawn, may guide that, and do not choose shared parts, which is said."""
    run = copy_of(polydigits_run)
    shutil.rmtree(run / "diffusion")
    train_diffusion(tiny_recipe(run, "polydigits", "diffusion.labels=[digit]", "diffusion.mode=conditional"))
    model = mandorla.load(run)
    with pytest.warns(MandorlaWarning, match="labels say how private parts are drawn"):
        usual = model.sample(2, labels={"digit": 3}).latents
    torch.testing.assert_close(usual.shared, model.sample(2).latents.shared)
    model.sampling = model.sampling.model_copy(update={"guidance": 3.0})
    with pytest.warns(MandorlaWarning):
        guided = model.sample(2, labels={"digit": 3}).latents
    assert (guided.private["view0"] - usual.private["view0"]).abs().max() > 1e-5
    close = {"atol": 1e-6, "rtol": 1e-5}
    unguided = model.sample(2).latents
    model.sampling = model.sampling.model_copy(update={"guidance": 1.0})
    torch.testing.assert_close(unguided.private, model.sample(2).latents.private, **close, msg="nothing to be led by")
    x = model.data().test.batch([0, 1]).x
    expected = model.log_likelihood(x, ["view0", "view1", "view2"])
    torch.testing.assert_close(model.log_likelihood(x), expected, msg="by default of what this stage 2 makes")
