"""Lesion contrast of images in which it was put by hand."""

import numpy as np
import pytest
import torch

from mandorla.evaluate.lesions import contrast, contrast_share


@pytest.fixture
def lesions():
    mask = np.zeros((3, 24, 24))
    mask[0, 8:12, 8:12] = mask[1, 3:6, 3:6] = 1
    return mask, torch.full((3, 1, 24, 24), 0.4) + 0.3 * torch.as_tensor(mask).float()[:, None]


def test_contrast_is_what_was_put_in(lesions):
    mask, images = lesions
    answer = contrast(images, mask)
    np.testing.assert_allclose(answer[:2], 0.3, rtol=1e-5)
    assert np.isnan(answer[2])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_share_of_a_fainter_copy(lesions, share):
    mask, truth = lesions
    np.testing.assert_allclose(contrast_share(0.4 + share * (truth - 0.4), truth, mask), share, atol=1e-6)
