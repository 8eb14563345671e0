"""Probes are at chance on noise, right on one-hot codes, and the MLP sees what a linear probe cannot."""

import numpy as np
import pytest
import torch

from mandorla.errors import MandorlaError
from mandorla.evaluate.probes import auc, chance_share, explained, features, hits, probe, regress


@pytest.fixture
def labels():
    return np.random.default_rng(0).integers(10, size=(2, 1500))


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_probe_of_noise_is_at_chance(kind, labels):
    codes = np.random.default_rng(1).normal(size=(2, 1500, 16))
    right = hits(probe(kind, codes[0], labels[0], codes[1]), labels[1], labels[0])
    assert abs(right.mean() - 0.1) < 0.03  # four binomial standard errors


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_probe_of_one_hot_codes_is_right(kind, labels):
    right = hits(probe(kind, np.eye(10)[labels[0]], labels[0], np.eye(10)[labels[1]]), labels[1], labels[0])
    assert right.mean() == 1


def test_only_the_mlp_sees_the_product_of_two_signs():
    codes = np.random.default_rng(2).normal(size=(2, 3000, 2))
    labels = (codes.prod(axis=2) > 0).astype(int)
    scores = {
        kind: hits(probe(kind, codes[0], labels[0], codes[1]), labels[1], labels[0]).mean()
        for kind in ("linear", "mlp")
    }
    assert scores["linear"] < 0.6 and scores["mlp"] > 0.9


def test_whitening_shows_what_is_far_fainter_than_the_rest(labels):
    """The label lies in one direction across all features, ten thousand times shorter than the others."""
    rng = np.random.default_rng(3)
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    halves = labels % 2
    codes = np.concatenate([rng.normal(size=(2, 1500, 7)), 1e-4 * (halves[..., None] - 0.5)], 2) @ turn
    scores = {
        whiten: hits(probe("mlp", codes[0], halves[0], codes[1], whiten=whiten), halves[1], halves[0]).mean()
        for whiten in (False, True)
    }
    assert scores[False] < 0.6 and scores[True] > 0.95


@pytest.mark.parametrize("last", [0.0, 1.0])
def test_a_direction_without_variance_is_left_out_of_whitening(labels, last):
    """A feature that is constant in training and almost so on test samples hides nothing."""
    rng = np.random.default_rng(4)
    codes = np.float32(rng.normal(size=(2, 1500, 6)))
    codes[0, :, 5], codes[1, :, 5] = last, last + 1e-3 * rng.normal(size=1500)
    halves = (codes[..., 0] > 0).astype(int)
    right = hits(probe("mlp", codes[0], halves[0], codes[1], whiten=True), halves[1], halves[0])
    assert right.mean() > 0.9
    assert probe("mlp", np.ones((30, 3)), halves[0, :30], np.ones((5, 3)), whiten=True).shape == (5, 2)


def test_labels_need_not_start_at_zero(labels):
    shifted = 2 * labels + 5
    right = hits(probe("linear", np.eye(10)[labels[0]], shifted[0], np.eye(10)[labels[1]]), shifted[1], shifted[0])
    assert right.mean() == 1


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_numbers_are_found_where_they_are(kind):
    rng = np.random.default_rng(5)
    codes = rng.normal(size=(2, 1500, 8))
    values = np.stack([100 + 7 * codes[..., 0], rng.normal(size=(2, 1500))], axis=2)
    found = explained(values[1], regress(kind, codes[0], values[0], codes[1]))
    alone = [explained(values[1, :, d], regress(kind, codes[0], values[0, :, d], codes[1])) for d in (0, 1)]
    assert alone[0].mean() > 0.97 and abs(alone[1].mean()) < 0.1
    assert found.mean() == pytest.approx(0.5, abs=0.06)


def test_only_the_mlp_sees_a_square():
    codes = np.random.default_rng(6).normal(size=(2, 3000, 3))
    values = codes[..., :1] ** 2
    scores = {
        kind: explained(values[1], regress(kind, codes[0], values[0], codes[1])).mean() for kind in ("linear", "mlp")
    }
    assert abs(scores["linear"]) < 0.02 and scores["mlp"] > 0.95


def test_explained_is_r2():
    from sklearn.metrics import r2_score

    rng = np.random.default_rng(7)
    values, guesses = rng.normal(size=(2, 50, 3))
    guesses = values + 0.5 * guesses
    assert explained(values, guesses).mean() == pytest.approx(r2_score(values, guesses), abs=1e-12)
    still = np.concatenate([values, np.ones((50, 1))], 1)
    assert explained(still, np.concatenate([guesses, np.zeros((50, 1))], 1)).mean() == pytest.approx(
        r2_score(values, guesses), abs=1e-12
    ), "a column that does not vary does not count"
    assert np.isnan(explained(np.ones((5, 1)), np.ones((5, 1)))).all()
    same = np.full(12, 0.1)
    assert same.var() > 0 and np.isnan(explained(same, same + 0.01)).all(), "rounding is no variance"


def test_numbers_that_do_not_fit_are_refused():
    codes, values = np.ones((30, 2)), np.ones((30, 1))
    for bad in ({"kind": "tree"}, {"test": np.ones((5, 3))}, {"values": np.ones((29, 1))}, {"values": np.nan * values}):
        given = {"kind": "linear", "train": codes, "values": values, "test": codes} | bad
        with pytest.raises(MandorlaError):
            regress(given["kind"], given["train"], given["values"], given["test"])
    for given in (np.ones((4, 1)), np.ones((5, 2)), np.array(["a"] * 5), np.ones((0,))):
        with pytest.raises(MandorlaError):
            explained(np.ones((5, 1)), given)
    guesses = torch.ones(5, dtype=torch.bfloat16, requires_grad=True)
    assert (
        explained(torch.arange(5.0), guesses).shape
        == regress("linear", codes, guesses.new_ones(30), codes)[:5, 0].shape
    )


def test_features_of_a_map_show_its_extremes():
    code = torch.zeros(3, 2, 4, 4)
    code[1, 0, 2, 3] = 7
    assert features(code).shape == (3, 2 * 16 + 2 * 2)
    assert features(code)[1, 32] == 7
    assert features(torch.zeros(3, 5)).shape == (3, 5)


def test_auc_by_hand():
    assert auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])) == 0.75


def test_chance_is_the_share_of_the_commonest_training_label():
    assert chance_share(np.array([1, 1, 2]), np.array([1, 2, 2, 2])) == 0.25


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("labels", [[0, 1] * 5, [0, 1, 2, 3, 4] * 2, [0] * 9 + [3], [7] * 10])
def test_few_samples_are_probed_too(kind, labels):
    labels = np.array(labels)
    guess = probe(kind, np.random.default_rng(0).normal(size=(10, 3)), labels, np.zeros((4, 3)))
    assert guess.shape == (4, len(np.unique(labels)))
    np.testing.assert_allclose(guess.sum(1), 1, atol=1e-6)
