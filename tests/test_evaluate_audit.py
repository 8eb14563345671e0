"""The audit catches planted copies and lets new samples of the same kind pass."""

from itertools import combinations

import numpy as np
import pytest
import torch

from mandorla.data.dataset import Batch, all_present
from mandorla.errors import MandorlaError
from mandorla.evaluate.audit import (
    LEVEL,
    audit,
    chance_of_as_many,
    copies,
    effective_number,
    flatten_tuples,
    least_noticed,
    nearest,
    suspicious,
    usual_share,
)


def rows(num: int, seed: int) -> torch.Tensor:
    return torch.rand(num, 30, generator=torch.Generator().manual_seed(seed))


def test_planted_copies_are_caught_and_named():
    train, held_out, samples = rows(500, 0), rows(400, 1), rows(100, 2)
    samples[:20] = train[40:60] + 0.01
    found, real = nearest(samples, train), nearest(held_out, train)
    assert (found.index[:20] == np.arange(40, 60)).all()
    np.testing.assert_allclose(found.distance[:20], 0.01, rtol=1e-3)
    for quantity in ("distance", "ratio"):
        caught = suspicious(getattr(found, quantity), getattr(real, quantity))
        assert caught[:20].all() and caught[20:].mean() < 0.06


def test_copies_among_arrays_of_anybody():
    train, held_out, made = (rows(num, seed).numpy() for num, seed in ((500, 0), (400, 1), (100, 2)))
    usual = copies(made, train, held_out)
    assert usual["distance"] < 0.06 > usual["ratio"] and min(usual["distance p"], usual["ratio p"]) > LEVEL
    made[:20] = train[40:60] + 0.01
    found = copies(made, train, held_out)
    assert 0.2 <= found["ratio"] < 0.26 and max(found["distance p"], found["ratio p"]) < 1e-6
    assert copies(made, train, held_out, np.zeros(400))["ratio p"] > LEVEL, "of one patient nothing is told"
    with pytest.raises(MandorlaError, match="rows of different lengths"):
        copies(made[:, :10], train, held_out)
    with pytest.raises(MandorlaError, match="3 patients do not say whose 400"):
        copies(made, train, held_out, np.arange(3))


def test_blur_alone_does_not_look_like_copying_in_the_ratio():
    train, held_out = rows(500, 0), rows(400, 1)
    blurred = 0.5 + 0.1 * (rows(400, 2) - 0.5)
    found, real = nearest(blurred, train), nearest(held_out, train)
    assert suspicious(found.distance, real.distance).mean() > 0.3
    assert suspicious(found.ratio, real.ratio).mean() < 0.05


def test_copies_are_caught_beside_empty_slices_and_samples_that_occur_twice():
    train, held_out = rows(500, 0), rows(400, 1)
    train[:20], held_out[:12] = 0, 0  # empty slices: none of them is a copy by its ratio
    held_out[12:24] = train[30:42]  # unseen they are not
    found, real = nearest(train[100:200], train), nearest(held_out, train)
    assert suspicious(found.distance, real.distance).mean() > 0.5 < suspicious(found.ratio, real.ratio).mean()
    assert (real.ratio[:12] == 1).all() and usual_share(real.distance, np.arange(400)) > 0.03


@pytest.mark.parametrize("num", [10, 40, 400])
def test_the_usual_share_is_that_of_samples_like_the_unseen_ones(num):
    """Of ten unseen samples the nearest has the place of one in eleven."""
    draws = np.random.default_rng(0).random((200, 200 + num))
    pairs = [(suspicious(each[num:], each[:num]).mean(), usual_share(each[:num], np.arange(num))) for each in draws]
    expected, told = np.mean(pairs, axis=0)
    assert told == pytest.approx(expected, abs=0.02)


def failed(samples, held_out, whose=None, threshold=0.05):
    whose = np.arange(len(held_out)) if whose is None else whose
    return suspicious(samples, held_out).mean() > threshold and chance_of_as_many(samples, held_out, whose) <= LEVEL


def test_the_chance_of_as_many_is_that_of_all_orders():
    """Of three samples and of one hundred and one: the second nearest of the unseen ones is the percentile."""
    for num, unseen in ((3, 2), (2, 101)):
        places = list(combinations(range(num + unseen), num))
        shares, chances = [], []
        for mine in places:
            order = np.delete(np.arange(num + unseen), mine)
            shares.append(suspicious(np.array(mine), order).sum())
            chances.append(chance_of_as_many(np.array(mine), order, np.arange(unseen)))
        expected = [np.mean(np.array(shares) >= share) for share in shares]
        np.testing.assert_allclose(chances, expected)


@pytest.mark.parametrize("unseen", [20, 50, 100, 300])
def test_few_unseen_samples_do_not_make_copies_of_others(unseen):
    """By the share alone more than a third of these audits fail beside 20 unseen samples, and still some beside 100."""
    draws = np.random.default_rng(0).random((300, 1000 + unseen))
    alarms = np.mean([failed(each[unseen:], each[:unseen]) for each in draws])
    assert alarms <= LEVEL + 3 * np.sqrt(LEVEL / 300)
    shares = [suspicious(each[unseen:], each[:unseen]).mean() > 0.05 for each in draws]
    assert unseen > 20 or np.mean(shares) > 0.3
    for each in draws[:20]:
        each[unseen : unseen + (200 if unseen < 100 else 50)] = -1  # a fifth of all are copies, or one in twenty
    assert np.mean([failed(each[unseen:], each[:unseen]) for each in draws[:20]]) > 0.8


@pytest.fixture
def slices(benchmark_named):
    """Return what draws figures of some slices of every patient, two of one of whom correlate as asked."""
    return benchmark_named("audit").draw


@pytest.mark.parametrize("alike", [0, 0.5, 0.9])
@pytest.mark.parametrize("patients", [5, 30])
def test_slices_of_one_patient_are_not_as_good_as_slices_of_many(slices, patients, alike):
    """Counted as independent, alike ones of five patients fail more than a tenth of the models that copy nothing."""
    rng, whose = np.random.default_rng(0), np.repeat(np.arange(patients), 20)
    alarms, naive = [], []
    for _ in range(150):
        made, held_out = slices(rng, 300, 1, alike), slices(rng, patients, 20, alike)
        alarms.append(failed(made, held_out, whose))
        naive.append(failed(made, held_out))
    assert np.mean(alarms) <= LEVEL + 3 * np.sqrt(LEVEL / 150)
    assert np.mean(naive) > 0.1 or patients > 5 or alike < 0.5
    made[:60] = -9  # a fifth of all are copies
    assert failed(made, held_out, whose) or (alike and patients < 30), "five patients who are alike tell too little"


def test_the_effective_number_is_between_that_of_patients_and_of_slices(slices):
    rng, whose = np.random.default_rng(0), np.repeat(np.arange(400), 20)
    numbers = [effective_number(slices(rng, 400, 20, alike), whose) for alike in (0, 0.3, 1)]
    assert numbers[0] > 6000 and numbers[2] == pytest.approx(400)
    assert numbers[1] == pytest.approx(8000 / (1 + 19 * 0.3), rel=0.15)
    assert effective_number(rng.random(800), np.arange(800)) == 800
    assert effective_number(rng.random(20), np.zeros(20)) == pytest.approx(1) and effective_number(
        np.ones(4), [0, 0, 1, 1]
    )
    assert usual_share(rng.random(20), np.zeros(20)) is None
    np.testing.assert_allclose(usual_share(np.array([0.1, 0.2, 5, 6]), np.array([0, 0, 1, 1])), 0.5)


def test_where_all_are_alike_nothing_is_a_copy():
    assert not failed(np.ones(50), np.ones(50))
    grey = torch.full((60, 300), 0.3)
    rounded = grey + 1e-7 * torch.randn(60, 300, generator=torch.Generator().manual_seed(0))
    assert (nearest(grey, rounded).ratio == 1).all()


@pytest.mark.parametrize(("num", "unseen"), [(12, 1), (50, 2), (50, 20), (50, 400)])
def test_an_audit_notices_what_it_says_and_no_less(num, unseen):
    """Copies put one by one among samples that are none: the audit fails from the told share on."""
    rng = np.random.default_rng(0)
    held_out, samples = rng.random(unseen), 1 + rng.random(num)
    told = least_noticed(num, held_out, np.arange(unseen))
    failing = []
    for copied in range(num + 1):
        samples[:copied] = 0
        failing.append(failed(samples, held_out, threshold=0))
    assert told == (failing.index(True) / num if any(failing) else None)
    assert (told is None) == (unseen == 1)
    one_patient = least_noticed(num, held_out, np.zeros(unseen))
    assert one_patient is None or one_patient >= told, "as much as one sample"


def test_large_images_are_averaged_down_and_modalities_joined():
    x = {"a": torch.rand(2, 3, 64, 48), "b": torch.rand(2, 1, 8, 8, 8), "c": torch.rand(2, 5)}
    assert flatten_tuples(x).shape == (2, 3 * 32 * 32 + 512 + 5)


class Clouds:
    """Answer pairs of smooth random images by index; some samples lack the second."""

    def __init__(self, num: int, seed: int, lacking: int = 0):
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(num, 2, 5, 5, generator=generator)
        fine = torch.nn.functional.interpolate(coarse, (20, 20), mode="bicubic").clamp(0, 1)
        self.x = {"a": fine[:, :1], "b": fine[:, 1:]}
        self.lacking = lacking

    def __len__(self) -> int:
        return len(self.x["a"])

    def batch(self, indices) -> Batch:
        x = {name: z[indices].clone() for name, z in self.x.items()}
        present = all_present(x)
        present["b"] = torch.as_tensor(np.asarray(indices) >= self.lacking)
        x["b"][~present["b"]] = 0
        return Batch(x, present)


def audited(x, train, test):
    return audit(x, train, np.arange(len(train)), test, np.arange(len(test)))


def test_a_model_that_copies_nothing_looks_like_held_out_samples():
    found = audited(Clouds(300, 2).x, Clouds(600, 0), Clouds(300, 1))
    assert found.searched == 600 and found.compared == 300
    for space in ("pixels", "features"):
        for quantity in ("distance", "ratio"):
            shares = suspicious(getattr(found.made[space], quantity), getattr(found.held_out[space], quantity))
            assert shares.mean() < 0.04, (space, quantity)  # 1 % and three binomial standard errors
        assert abs(found.nearer[space].mean() - 0.5) < 0.1


@pytest.mark.parametrize("space", ["pixels", "features"])
def test_copies_are_found_in_both_spaces_and_named(space):
    train = Clouds(600, 0)
    x = {name: z.clone() for name, z in Clouds(300, 2).x.items()}
    for name, z in x.items():
        z[:30] = train.x[name][570:] + 0.01
    found = audited(x, train, Clouds(300, 1))
    assert (found.made[space].index[:30] == np.arange(570, 600)).all()
    assert suspicious(found.made[space].ratio, found.held_out[space].ratio)[:30].all()
    assert found.nearer[space][:30].mean() > 0.55  # half of the training samples are compared: .75 +- .08 is expected


def test_incomplete_samples_are_passed_over():
    """Also in the indices: sample 570 is named 570."""
    train, test = Clouds(600, 0, lacking=100), Clouds(300, 1, lacking=250)
    x = {name: z[570:].clone() for name, z in train.x.items()}
    found = audited(x, train, test)
    assert found.searched == 500 and len(found.held_out["pixels"].index) == 50 and 25 < found.compared <= 50
    assert (found.made["pixels"].index == np.arange(570, 600)).all()
    assert audited(x, train, Clouds(20, 1, lacking=20)) is None
    assert audited(x, Clouds(20, 1, lacking=20), test) is None


def test_whole_patients_are_compared_with_whole_patients():
    """Slices of many patients are nearer to everything than as many of a few: nothing was copied here."""

    def scans(patients: int, seed: int) -> Clouds:
        clouds, one = Clouds(patients, seed), np.repeat(np.arange(patients), 15)
        clouds.x = {name: z[one] + 0.02 * torch.randn(len(one), 1, 1, 1) for name, z in clouds.x.items()}
        clouds.groups = one
        return clouds

    x, train, test = {name: z[:300] for name, z in Clouds(300, 2).x.items()}, scans(80, 0), scans(10, 1)
    found = audited(x, train, test)
    assert found.compared == 150 and len(np.unique(found.whose)) == 10
    assert abs(found.nearer["pixels"].mean() - 0.5) < 0.2
    del train.groups
    assert audited(x, train, test).nearer["pixels"].mean() > 0.7


def test_samples_in_order_of_their_classes_are_no_copies():
    """Only five hundred of the test samples can be compared: of all classes, or all others would be far from them."""

    def sorted_by_class(num: int, seed: int) -> Clouds:
        clouds, label = Clouds(num, seed), torch.arange(num) * 10 // num
        shade = (0.2 * clouds.x["a"] + 0.08 * label.view(-1, 1, 1, 1)).clamp(0, 1)
        clouds.x = {"a": shade, "b": shade.flip(3)}
        return clouds

    found = audited(sorted_by_class(300, 2).x, sorted_by_class(2000, 0), sorted_by_class(900, 1))
    assert found.compared == 500
    assert all(abs(nearer.mean() - 0.5) < 0.06 for nearer in found.nearer.values())


def test_half_of_what_is_as_near_to_both():
    same = Clouds(50, 0)
    found = audited({name: z[:10] for name, z in same.x.items()}, same, same)
    assert (found.nearer["pixels"] == 0.5).all()
