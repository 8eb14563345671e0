"""Variance explained of a model in which it is known: x is the sum of what c and u say."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mandorla.data.dataset import Batch
from mandorla.evaluate.figures.separation import explained_figures
from mandorla.evaluate.figures.subject import Codes
from mandorla.evaluate.settings import EvaluateConfig
from mandorla.latents import Latents

SHARE = 0.7  # of the variance that is of c, before noise
NOISE = 0.25  # of the variance that neither knows


class Additive:
    def encode(self, x):
        return self.latents

    def decode(self, latents, refined=True):
        return {"a": latents.shared + latents.private["a"]}

    def swap(self, shared_from, private_from):
        return self.decode(Latents(shared_from.shared, private_from.private))


def test_what_c_and_u_explain_is_their_share():
    model, normal = Additive(), np.random.default_rng(0).standard_normal((3, 4000, 1, 6))
    scales = np.sqrt([SHARE * (1 - NOISE), (1 - SHARE) * (1 - NOISE), NOISE])
    c, u, rest = (torch.as_tensor(scale * z) for scale, z in zip(scales, normal, strict=True))
    model.latents = Latents(c, {"a": u})
    codes = Codes(model, EvaluateConfig(), 0, {}, None, None)
    translated = Batch({}, {"a": torch.ones(4000, dtype=torch.bool)})
    subject = SimpleNamespace(codes=codes, complete=lambda num: {"a": c + u + rest}, translated=translated)
    found = {record.name: record for record in explained_figures(subject)}
    assert found["explained/shared alone"].value == pytest.approx(SHARE * (1 - NOISE), abs=0.02)
    assert found["explained/private alone"].value == pytest.approx((1 - SHARE) * (1 - NOISE), abs=0.02)
    assert found["explained/shared alone/a"].ceiling == pytest.approx(1 - NOISE, abs=0.02)
