"""Probes are at chance on noise, right on one-hot codes, and the MLP sees what a linear probe cannot."""

import numpy as np
import pytest
import torch

from mandorla.evaluate.probes import auc, chance_share, features, hits, probe


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
