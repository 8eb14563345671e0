"""Figures of separation: exact on codes whose dependence is known, and of a whole model."""

import numpy as np
import pytest
import torch

from mandorla.data.dataset import Batch, Modality
from mandorla.imports import register
from mandorla.nets.encoder_decoder import EncoderDecoder
from mandorla.vae.model import VAE, LatentConfig, ModelConfig
from mandorla.vae.separation import _first_half, explained, foretold, partners, separation


@register("halves of x")
class Halves(EncoderDecoder):
    """Take the first half of x as shared and the second as private code; `mixed` lets u contain c."""

    def __init__(self, modality, shared, private, mixed: bool = False):
        super().__init__(modality, shared, private)
        self.mixed = mixed

    def encode_shared(self, h):
        return h[:, :4] - 0.5

    def encode_private(self, h, c):
        u = h[:, :4] if self.mixed else h[:, 4:]
        return u, torch.zeros_like(u)

    def decode(self, c, u):
        return torch.cat([u, u] if self.mixed else [c / 4 + 0.5, u], 1)


def figures(mixed: bool, whose: np.ndarray | None = None) -> dict[str, float]:
    config = ModelConfig(
        shared=LatentConfig(channels=4),
        private=LatentConfig(channels=4),
        encoder_decoder={"kind": "halves of x", "options": {"mixed": mixed}},
    )
    modalities = tuple(Modality(name, 8, ()) for name in ("a", "b"))
    c = torch.nn.functional.normalize(torch.randn(400, 4)) * 0.4 + 0.5
    x = {m.name: torch.cat([c, torch.rand(400, 4)], 1) for m in modalities}
    factors = {} if whose is None else {"group": whose}
    present = {name: torch.ones(400, dtype=torch.bool) for name in x}
    return separation(VAE(config, modalities), Batch(x, present, factors))


def test_a_perfect_split():
    found = figures(mixed=False)
    assert found["shared_kept"] == pytest.approx(1, abs=1e-4)
    assert found["private_kept"] == pytest.approx(1, abs=1e-4)
    assert found["private_known"] < 0.03


def test_a_private_code_that_holds_all_of_the_shared_one():
    found = figures(mixed=True)
    assert found["shared_kept"] < 0, "the other sample's shared part comes with its private code"
    assert found["private_known"] > 0.9


def test_too_few_samples_say_nothing():
    config = ModelConfig(encoder_decoder={"kind": "perceptron"})
    modalities = tuple(Modality(name, 8, ()) for name in ("a", "b"))
    x = {m.name: torch.rand(5, 8) for m in modalities}
    present = {name: torch.ones(5, dtype=torch.bool) for name in x}
    assert separation(VAE(config, modalities), Batch(x, present)) == {}


def test_explained_is_one_for_the_truth_and_zero_for_the_mean():
    truth = torch.randn(50, 3)
    assert explained(truth, truth) == 1
    assert explained(truth, truth.mean(0)) == pytest.approx(0, abs=1e-6)


def test_foretold_sees_what_no_straight_line_does():
    c = torch.randn(1000, 2)
    noise = torch.randn(1000, 1)
    assert foretold(noise, c) < 0.03
    assert foretold(c[:, :1].square() + 0.1 * noise, c) > 0.8
    assert foretold((2 * c[:, :1]).sin(), c) > 0.8


def test_foretold_compares_cells_of_maps():
    c = torch.randn(40, 2, 8, 8)
    coarse = torch.nn.functional.adaptive_avg_pool2d(c, 4)
    assert foretold(coarse, c) > 0.8
    assert foretold(coarse.flip(0), c) < 0.05


def test_what_is_known_of_a_patient_is_not_foretold_of_another():
    """c tells who it is, and u is everyone's own: other slices of the same patients would give it all away."""
    who = torch.arange(400) % 40
    c, u = (torch.randn(40, 4)[who] + 0.05 * torch.randn(400, 4) for _ in range(2))
    assert foretold(u, c) > 0.8
    assert foretold(u, c, who.numpy()) < 0.1
    told = c[:, :1] + 0.1 * torch.randn(400, 1)
    assert foretold(told, c, np.array([f"patient {k}" for k in who.tolist()])) > 0.3, "what is true of all is"


def test_a_batch_is_divided_and_swapped_by_patient():
    whole, known = figures(mixed=False, whose=np.arange(400) // 8), figures(mixed=False, whose=np.zeros(400))
    assert whole["private_kept"] == pytest.approx(1, abs=1e-4) and whole["private_known"] < 0.1
    assert "private_known" not in known and known["shared_kept"] > 0.99, "of one patient there is no other"
    own, lone = np.array([0, 0, 1, 1, 1, 2]), np.arange(5)
    assert (own[partners(np.arange(6), own)] != own).all()
    assert partners(np.arange(5), lone).tolist() == [4, 0, 1, 2, 3]
    assert partners(np.arange(5), np.zeros(5)).tolist() == [4, 0, 1, 2, 3], "of one patient, another sample"
    assert _first_half(own).tolist() == [True, True, False, False, False, False]
    assert _first_half(lone).tolist() == [True, True, False, False, False]
