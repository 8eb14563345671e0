"""Likeness against independent formulas and libraries."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mandorla.evaluate.images import foreground, mae, psnr, ssim


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(3, 2, 24, 24, generator=generator)
    return (truth + 0.1 * torch.randn(truth.shape, generator=generator)).clamp(0, 1), truth


def test_psnr_is_that_of_skimage(pair):
    images, truth = (z.numpy() for z in pair)
    expected = [peak_signal_noise_ratio(t, i, data_range=1) for i, t in zip(images, truth, strict=True)]
    np.testing.assert_allclose(psnr(*pair), expected, rtol=1e-5)


def test_ssim_is_that_of_skimage_with_gaussian_window(pair):
    images, truth = (z[:, 0].double().numpy() for z in pair)
    options = {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = [structural_similarity(t, i, **options) for i, t in zip(images, truth, strict=True)]
    np.testing.assert_allclose(ssim(pair[0][:, :1], pair[1][:, :1]), expected, atol=0.02)  # borders differ


@pytest.mark.parametrize("size", [(16, 16), (16, 16, 16)])
def test_ssim_of_equal_images_is_one_also_for_a_single_sample(size):
    x = torch.rand(1, 1, *size)
    assert ssim(x, x) == pytest.approx([1])


def test_a_constant_offset_is_known_everywhere():
    truth = torch.full((2, 1, 8, 8), 0.5)
    np.testing.assert_allclose(mae(truth + 0.1, truth), 0.1, rtol=1e-5)
    np.testing.assert_allclose(psnr(truth + 0.1, truth), 20, rtol=1e-5)


def test_outside_the_mask_nothing_counts():
    truth = torch.zeros(1, 1, 8, 8)
    truth[..., :4] = 0.5
    images = truth.clone()
    images[..., :4] += 0.1
    images[..., 4:] = 1.0
    np.testing.assert_allclose(mae(images, truth, foreground(truth)), 0.1, rtol=1e-5)
    np.testing.assert_allclose(psnr(images, truth, foreground(truth)), 20, rtol=1e-5)


def test_values_outside_the_range_are_clipped():
    assert mae(torch.full((1, 1, 2, 2), 5.0), torch.ones(1, 1, 2, 2)) == 0
    assert psnr(torch.ones(1, 4), torch.ones(1, 4)) == 100
