"""The benchmark of a GPU's use counts what a step does; without a GPU it says so."""

import sys
from argparse import Namespace

import pytest
import torch
from torch import nn


@pytest.fixture
def gpu(benchmark_named):
    return benchmark_named("gpu")


@pytest.mark.parametrize("channels_last", [False, True])
def test_every_row_is_measured(gpu, channels_last):
    asked = Namespace(device="cpu", settings=["lgg"], size=32, batch=2, repeats=1, profile=False, how=gpu.HOW)
    asked.channels_last = channels_last
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in gpu.table(asked)][1:]
    assert [row[1] for row in rows] == ["step of", "---", "vae", "diffusion", "evaluation"]
    assert all(len(row) == len(rows[0]) for row in rows)
    assert all(float(row[4]) > 0 for row in rows[2:])


def test_operations_and_what_is_kept_are_counted(gpu):
    """A layer of m x n on B rows: 2Bmn operations forwards, and as many for weights and, if asked, for inputs."""
    layer, x = nn.Linear(8, 4), torch.randn(16, 8, requires_grad=True)
    flops, kept = gpu.count_work(layer, lambda: layer(x).sum().backward())
    assert flops == 3 * 2 * 16 * 8 * 4
    assert kept == 4 * 16 * 8, "the inputs, not the weights"


def test_without_a_gpu_it_says_so(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="torch sees no GPU"):
        gpu.main()
