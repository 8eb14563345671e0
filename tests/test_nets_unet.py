"""The U-Net answers in the shape of its images, in any dimension, and listens to time, vector and image."""

import pytest
import torch

from mandorla.nets.unet import UNet, UNetConfig


@pytest.mark.parametrize("size", [(7,), (9, 12), (5, 6, 7)])
@pytest.mark.parametrize("batch, patch", [(1, 1), (3, 1), (2, 2), (2, 3)])
def test_sizes_that_no_stride_divides(size, batch, patch):
    network = UNet(UNetConfig(channels=(4, 6, 8), embedding=8, patch=patch), len(size), 3, 2, 5)
    out = network(torch.randn(batch, 3, *size), torch.rand(batch), torch.randn(batch, 5))
    assert out.shape == (batch, 2, *size)
    assert not out.any(), "before any training it says nothing"


def test_it_depends_on_all_that_it_is_given():
    torch.manual_seed(0)
    network = UNet(UNetConfig(channels=(4, 6), num_blocks=2, embedding=8), 2, 3, 2, 5)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    given = [torch.randn(2, 3, 8, 8), torch.rand(2), torch.randn(2, 5)]
    out = network(*given)
    for place in range(3):
        changed = [z + 0.5 * (k == place) * torch.ones_like(z) for k, z in enumerate(given)]
        assert (network(*changed) - out).abs().amax((1, 2, 3)).min() > 1e-3
    alone = network(*(z[1:] for z in given))
    torch.testing.assert_close(alone, out[1:])


def test_no_vector_at_all():
    network = UNet(UNetConfig(channels=(4,), embedding=8), 2, 1, 1, 0)
    assert network(torch.randn(2, 1, 4, 4), torch.rand(2), torch.zeros(2, 0)).shape == (2, 1, 4, 4)
