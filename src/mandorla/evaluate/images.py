"""Likeness of images in [0, 1]: one number per sample, so that means carry their standard error.

Every function takes `(B, C, *size)` tensors, clips them to [0, 1], and returns float64 `(B,)`. With a `mask`
`(B, 1 or C, *size)` only the pixels inside count.
"""

import numpy as np
from torch import Tensor

_LEAST_ERROR = 1e-10  # identical images: 100 dB instead of infinity


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.double().flatten(1).mean(1)
    weight = mask.cpu().expand_as(values).double().flatten(1)
    return (values.double().flatten(1) * weight).sum(1) / weight.sum(1).clamp_min(1)


def _difference(images: Tensor, truth: Tensor) -> Tensor:
    return images.cpu().float().clamp(0, 1) - truth.cpu().float().clamp(0, 1)


def mae(images: Tensor, truth: Tensor, mask: Tensor | None = None) -> np.ndarray:
    """Return the mean absolute error of each sample."""
    return _mean(_difference(images, truth).abs(), mask).numpy()


def psnr(images: Tensor, truth: Tensor, mask: Tensor | None = None) -> np.ndarray:
    """Return the peak signal-to-noise ratio of each sample, -10 log10(mean squared error), in dB."""
    error = _mean(_difference(images, truth).square(), mask).clamp_min(_LEAST_ERROR)
    return (-10 * error.log10()).numpy()


def ssim(images: Tensor, truth: Tensor) -> np.ndarray:
    """Return the structural similarity of each sample, 2D or 3D (window 11, sigma 1.5).

    Reference: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004,
    https://doi.org/10.1109/TIP.2003.819861, equation 13
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    images, truth = (z.cpu().float().clamp(0, 1) for z in (images, truth))
    return structural_similarity_index_measure(images, truth, reduction="none", data_range=1.0).double().numpy()


def foreground(truth: Tensor, above: float = 0.05) -> Tensor:
    """Return where the true image is brighter than `above`, bool `(B, C, *size)`."""
    return truth > above
