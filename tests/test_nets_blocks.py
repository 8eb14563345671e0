"""Blocks in one, two and three dimensions."""

import pytest
import torch
from torch import nn

from mandorla.nets.blocks import Residual, batch_norm, conv, initialise, resize, trains_in_bf16, transposed_conv

SIZES = {1: (8,), 2: (8, 6), 3: (4, 6, 8)}


@pytest.mark.parametrize("dims", SIZES)
def test_strided_convolution_and_its_transpose(dims):
    x = torch.randn(2, 3, *SIZES[dims])
    down = conv(dims, 3, 5, 4, stride=2, padding=1)(x)
    assert down.shape == (2, 5, *(n // 2 for n in SIZES[dims]))
    assert transposed_conv(dims, 5, 3, 4, stride=2, padding=1)(down).shape == x.shape
    assert batch_norm(dims, 3)(x).shape == x.shape
    assert Residual(dims, 3)(x).shape == x.shape


@pytest.mark.parametrize("dims", SIZES)
def test_initialise_keeps_the_size_of_activations(dims):
    """A layer after SiLU gets inputs of half the power, and weights of twice: the power stays (within a factor)."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.SiLU(),
        conv(dims, 16, 16, 4, stride=2, padding=1),
        nn.SiLU(),
        transposed_conv(dims, 16, 16, 4, stride=2, padding=1),
    )
    initialise(layers)
    x = torch.randn(8, 16, *(4 * n for n in SIZES[dims]))
    power = layers(x).square().mean().item()
    assert 0.3 < power < 1.5  # zeros beyond the border take some away
    assert all((layer.bias == 0).all() for layer in layers if hasattr(layer, "bias"))


def test_output_layers_start_a_tenth_as_large():
    layer = nn.Linear(100, 400)
    initialise(layer, outputs=(layer,))
    assert layer.weight.std().item() == pytest.approx(0.1 * (2 / 100) ** 0.5, rel=0.05)


@pytest.mark.parametrize("dims", SIZES)
def test_resize(dims):
    x = torch.randn(2, 3, *SIZES[dims])
    half = tuple(n // 2 for n in SIZES[dims])
    smaller = resize(x, half)
    assert smaller.shape[2:] == half
    torch.testing.assert_close(smaller.mean(), x.mean())
    larger = resize(smaller, SIZES[dims])
    assert larger.shape == x.shape
    torch.testing.assert_close(resize(larger, half), smaller)
    assert resize(x, ()) is x
    assert resize(x, SIZES[dims]) is x
    assert resize(x[:0], half).shape == (0, 3, *half)


@pytest.mark.parametrize("channels", [2, 6, 8, 12, 16, 20, 32])
def test_a_block_takes_one_cell_of_one_sample(channels):
    x = torch.randn(1, channels, 1, 1)
    assert Residual(2, channels)(x).shape == x.shape


def test_volumes_on_a_cpu_train_in_float32():
    assert trains_in_bf16(nn.Sequential(conv(2, 1, 1, 3), nn.Linear(2, 2)))
    assert not trains_in_bf16(nn.Sequential(nn.Linear(2, 2), nn.Sequential(conv(3, 1, 1, 3))))
    assert not trains_in_bf16(transposed_conv(3, 1, 1, 2, 2))
