"""Ranks of partners, by hand and by chance."""

import numpy as np
import torch

from mandorla.evaluate import ranks, recall_at


def test_ranks_by_hand():
    gallery = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    queries = torch.tensor([[5.0, 1.0], [1.0, 0.1], [1.0, 1.0]])  # length does not count
    assert ranks(queries, gallery).tolist() == [0, 2, 0]
    found = recall_at(np.array([0, 2, 0]), (1, 2, 3))
    assert [right.mean() for right in found.values()] == [2 / 3, 2 / 3, 1]


def test_codes_that_are_all_alike_find_nothing():
    """Ties count half: a constant code is in the middle of the list, not at its top."""
    assert ranks(torch.ones(5, 3), torch.ones(5, 3)).tolist() == [2.0] * 5


def test_unrelated_codes_find_by_chance():
    generator = torch.Generator().manual_seed(0)
    queries, gallery = torch.randn(2, 1000, 4, 2, generator=generator)
    for k, right in recall_at(ranks(queries, gallery), (10, 100)).items():
        assert abs(right.mean() - k / 1000) < 4 * np.sqrt(k / 1000 / 1000)
