"""Likeness of images in [0, 1]: one number per sample, so that means carry their standard error.

Every function takes tensors or arrays `(B, C, *size)` of floats, clips them to [0, 1], and returns float64 `(B,)`. With
a `mask` `(B, 1 or C, *size)` only the pixels inside count: NaN where there are none. All raise MandorlaError for
integers, NaN, infinity, values that cannot be meant for [0, 1], a mask that does not fit, and images that are not of
one shape.
"""

import numpy as np
import torch
from torch import Tensor

from mandorla.errors import MandorlaError
from mandorla.evaluate.arrays import Array, tensor

Images = Array  # (B, C, *size), floats in [0, 1]
_BEYOND = 0.5  # how far a network's output may leave [0, 1] and still be clipped
_LEAST_ERROR = 1e-10  # identical images: 100 dB instead of infinity
_WINDOW = 11  # pixels a side of the window of structural similarity
FOREGROUND = 0.05  # true values above which pixels are no background
STEPS = 32  # of [0, 1] in which intensities are alike
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, table 1


def unit_images(images: Images, what: str = "images", before: int = 1) -> Tensor:
    """Return `images` `(B, C, *size)` as a float32 tensor on the CPU, clipped to [0, 1].

    There may be no image; `before` axes come before the channels.

    Raises MandorlaError, which says `what` they are, for integers, whose range nobody knows, for NaN and infinity, and
    for values so far outside that they must be of another range, such as [0, 255] or [-1, 1].
    """
    images = tensor(images, what)
    if images.ndim < 2 or 0 in images.shape[before:]:
        raise MandorlaError(f"{what} have shape {tuple(images.shape)}: expected (B, C, *size)")
    if not images.is_floating_point():
        raise MandorlaError(
            f"{what} are {str(images.dtype).removeprefix('torch.')}: give floats in [0, 1], bytes / 255"
        )
    if not images.isfinite().all():
        raise MandorlaError(f"{what} have NaN or infinite values: leave those samples out")
    if images.numel() and (images.amin() < -_BEYOND or images.amax() > 1 + _BEYOND):
        raise MandorlaError(
            f"{what} range from {float(images.amin()):.3g} to {float(images.amax()):.3g}: bring them to [0, 1]"
        )
    return images.float().clamp(0, 1)


def _pair(images: Images, truth: Images) -> tuple[Tensor, Tensor]:
    pair = unit_images(images), unit_images(truth, "true images")
    if pair[0].shape != pair[1].shape:
        raise MandorlaError(f"images {tuple(pair[0].shape)} and true ones {tuple(pair[1].shape)} differ in shape")
    return pair


def _mean(values: Tensor, mask: Images | None) -> Tensor:
    if mask is None:
        return values.double().flatten(1).mean(1)
    mask = tensor(mask, "the mask")
    if mask.shape not in (values.shape, values[:, :1].shape):
        raise MandorlaError(f"the mask {tuple(mask.shape)} does not fit images {tuple(values.shape)}")
    weight = mask.expand_as(values).double().flatten(1)
    return (values.double().flatten(1) * weight).sum(1) / weight.sum(1)


def _difference(images: Images, truth: Images) -> Tensor:
    images, truth = _pair(images, truth)
    return images - truth


def mae(images: Images, truth: Images, mask: Images | None = None) -> np.ndarray:
    """Return the mean absolute error of each sample."""
    return _mean(_difference(images, truth).abs(), mask).numpy()


def psnr(images: Images, truth: Images, mask: Images | None = None) -> np.ndarray:
    """Return the peak signal-to-noise ratio of each sample, -10 log10(mean squared error), in dB."""
    error = _mean(_difference(images, truth).square(), mask).clamp_min(_LEAST_ERROR)
    return (-10 * error.log10()).numpy()


def ssim(images: Images, truth: Images, mask: Images | None = None) -> np.ndarray:
    """Return the structural similarity of each sample, 2D or 3D (window 11, sigma 1.5).

    Reference: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004,
    https://doi.org/10.1109/TIP.2003.819861, equation 13
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    images, truth = _with_window(*_pair(images, truth))
    mean, local = structural_similarity_index_measure(
        images, truth, reduction="none", data_range=1.0, return_full_image=True
    )
    return mean.double().numpy() if mask is None else _mean(local, mask).numpy()


def has_ssim(x: Tensor) -> bool:
    """Return whether images `(B, C, *size)` have two or three axes that hold the window of `ssim`."""
    return x.ndim in (4, 5) and min(x.shape[2:]) >= _WINDOW


def _with_window(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if not has_ssim(a) or not len(a):
        raise MandorlaError(
            f"images {tuple(a.shape)} have no structural similarity: two or three axes of {_WINDOW} pixels at least"
        )
    return a, b


def ms_ssim(a: Images, b: Images) -> np.ndarray:
    """Return the structural similarity over several scales of each pair; small images have fewer of the five scales.

    Reference: Wang et al., "Multi-scale structural similarity for image quality assessment", 2003,
    https://doi.org/10.1109/ACSSC.2003.1292216, equation 7
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    a, b = _with_window(*_pair(a, b))
    scales = max(n for n in range(1, 6) if n == 1 or min(a.shape[2:]) >= _WINDOW * max(2 ** (n - 1), (n - 1) ** 2))
    weights = _SCALE_WEIGHTS[:scales]
    betas = tuple(weight / sum(weights) for weight in weights)
    return (
        multiscale_structural_similarity_index_measure(
            a, b, data_range=1.0, betas=betas, normalize="relu", reduction=None
        )
        .double()
        .numpy()
    )


def mutual_information(a: Images, b: Images) -> np.ndarray:
    """Return how far the intensities of a pair tell each other, (H(a) + H(b)) / H(a, b): 1 not at all, 2 entirely.

    Of means over channels, in `STEPS` steps of [0, 1]; two modalities may have unlike channels.

    Reference: Studholme, Hill, Hawkes: "An overlap invariant entropy measure of 3D medical image alignment", 1999,
    https://doi.org/10.1016/S0031-3203(98)00091-0
    """
    from skimage.metrics import normalized_mutual_information

    with np.errstate(invalid="ignore"):
        pairs, edges = zip(*_grey(a, b), strict=True), np.linspace(0, 1, STEPS + 1)
        found = [normalized_mutual_information(one, other, bins=[edges, edges]) for one, other in pairs]
    return np.nan_to_num(np.array(found, np.float64), nan=1.0)  # nothing is told of what is everywhere the same


def edge_overlap(a: Images, b: Images) -> np.ndarray:
    """Return how far the edges of a pair lie in one place: the correlation of Sobel magnitudes, 0 without any edge.

    How strong the edges of an image are as a whole does not count.

    Of means over channels; two modalities may have unlike channels.
    """
    from skimage.filters import sobel

    found = []
    for pair in zip(*_grey(a, b), strict=True):
        one, other = (edges - edges.mean() for edges in map(np.abs, map(sobel, pair)))
        scale = np.sqrt(np.square(one).sum() * np.square(other).sum())
        found.append((one * other).sum() / scale if scale else 0.0)
    return np.array(found, np.float64)


def _grey(a: Images, b: Images) -> tuple[np.ndarray, np.ndarray]:
    """Return the means over channels of both, `(B, *size)`, float64. Raises MandorlaError for unlike or no sizes."""
    one, other = (unit_images(z).double().mean(1).numpy() for z in (a, b))
    if one.shape != other.shape or one.ndim < 2:
        raise MandorlaError(f"images {tuple(a.shape)} and {tuple(b.shape)} are no pairs: give as many, of one size")
    return one, other


def foreground(truth: Images, above: float = FOREGROUND) -> Tensor:
    """Return where the true image is brighter than `above`, bool `(B, C, *size)`."""
    return unit_images(truth, "true images") > above


def spread_and_error(samples: Images, truth: Images, mask: Images | None = None) -> dict[str, np.ndarray]:
    """Return how well K `samples` `(K, B, C, *size)` of an answer tell their own error, each `(B,)`, float64.

    If samples and truth come from one distribution, then, of the pixels inside `mask`:

    - `ratio` = sqrt(mean variance of the samples * (1 + 1/K)) / rmse of their mean: about 1; below 1 is overconfident
    - `coverage` = share of true values between the smallest and the largest sample: (K - 1) / (K + 1)
    - `correlation` of the samples' standard deviation with the absolute error of their mean: above 0

    Raises MandorlaError for a single sample, which has no spread.

    Reference: Fortin et al., "Why Should Ensemble Spread Match the RMSE of the Ensemble Mean?", 2014,
    https://doi.org/10.1175/JHM-D-14-0008.1, equation 15
    """
    samples, truth = unit_images(samples, "samples", 2).double(), unit_images(truth, "true images").double()
    if samples.shape[1:] != truth.shape or len(samples) < 2:
        raise MandorlaError(
            f"samples {tuple(samples.shape)} do not fit true images {tuple(truth.shape)}: expected (K, B, C, *size), K"
            " at least 2"
        )
    variance, error = samples.var(0), samples.mean(0) - truth
    inside = (samples.amin(0) <= truth) & (truth <= samples.amax(0))
    spread = _mean(variance, mask) * (1 + 1 / len(samples))
    std, wrong = (
        z - _mean(z, mask).view(-1, *[1] * (z.ndim - 1)) for z in (variance.sqrt(), error.abs())
    )  # both centred
    scale = (_mean(std.square(), mask) * _mean(wrong.square(), mask)).sqrt()
    common = torch.where(scale == 0, 0.0, _mean(std * wrong, mask) / scale)
    return {
        "ratio": (spread / _mean(error.square(), mask).clamp_min(_LEAST_ERROR)).sqrt().numpy(),
        "coverage": _mean(inside, mask).numpy(),
        "correlation": common.numpy(),
    }


def calibration(
    samples: Images, truth: Images, above: float | None = None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return what `spread_and_error` says of K - 1 of K `samples` `(K, B, C, *size)`, twice, each `(B,)`.

    First against the `truth` `(B, C, *size)`; then against the sample that is left out, as if that were the truth: what
    right uncertainty gives. Both are means over which one is left out. If samples and truth come from one distribution
    they are alike on average, whatever it is: how errors of neighbouring pixels depend on each other, values that are
    cut off at 0 and 1, a foreground that the truth itself decides. With `above` only pixels count in which the truth,
    or what stands for it, is brighter: NaN where none is.

    Raises MandorlaError for fewer than three samples, and as `spread_and_error` does.
    """
    samples, truth = unit_images(samples, "samples", 2), unit_images(truth, "true images")
    if len(samples) < 3:
        raise MandorlaError(f"{len(samples)} samples, of which one is the truth, have no spread: give at least 3")
    found: tuple[list[dict[str, np.ndarray]], ...] = ([], [])
    for k, left_out in enumerate(samples):
        rest = torch.cat([samples[:k], samples[k + 1 :]])
        for of, true in zip(found, (truth, left_out), strict=True):
            of.append(spread_and_error(rest, true, None if above is None else foreground(true, above)))
    return tuple({name: _mean_known([each[name] for each in of]) for name in of[0]} for of in found)


def _mean_known(values: list[np.ndarray]) -> np.ndarray:
    """Return the mean over K of values `(B,)` that are not NaN; NaN where all are."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(0) / known.sum(0)
