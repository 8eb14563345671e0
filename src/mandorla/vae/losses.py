"""The terms of stage 1, one function each, in nats (per latent or per value, as said).

Symbols: c shared code, u private code, x data, S the observed modalities, tau temperature, B batch.
"""

import math
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from mandorla.data.dataset import rows_of


def info_nce(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Return the symmetric contrastive loss of N matching pairs, in nats, 0 .. about log N.

    -1/2 mean_i log softmax_j(a_i . b_j / tau)_i, and the same with a and b exchanged; rows are normalised first, so
    that the products are cosines. log N minus the loss bounds the mutual information from below.

    Arguments: `a`, `b` `(N, E)`, `temperature` of at least 0.02: exponentials of cosines over less leave float32.

    References: Representation Learning with Contrastive Predictive Coding, van den Oord et al., 2018,
    https://arxiv.org/abs/1807.03748 (Eq. 4).
    """
    with torch.autocast(a.device.type, enabled=False):  # the products are cheap, and their differences matter
        a, b = F.normalize(a, dim=1) / temperature, F.normalize(b, dim=1)
        scores = torch.exp(a @ b.T)
        return (scores.sum(0).log() + scores.sum(1).log()).mean() / 2 - (a * b).sum(1).mean()


def agreement(codes: dict[str, Tensor], present: dict[str, Tensor], temperature: float, max_cells: int) -> Tensor:
    """Return the mean InfoNCE over all pairs of modalities, each pair on the samples that have both.

    Vectors `(B, C)` are matched across the batch. Maps `(B, C, *grid)` are matched per location, over at most
    `max_cells` locations drawn from the whole batch (dense InfoNCE): the modalities must be registered.

    References: Dense Contrastive Learning, Wang et al., 2021, https://arxiv.org/abs/2011.09157 (Eq. 2);
    Contrastive Multiview Coding, Tian et al., 2020, https://arxiv.org/abs/1906.05849 (full graph over views).
    """
    terms = []
    for first, second in combinations(codes, 2):
        both = present[first] & present[second]
        if both.sum() < 2:
            continue
        a, b = (rows_of(codes[name], both) for name in (first, second))
        if a.ndim > 2:
            a, b = (z.flatten(2).transpose(1, 2).flatten(0, 1) for z in (a, b))
            chosen = torch.randperm(len(a), device=a.device)[:max_cells]
            a, b = a[chosen], b[chosen]
        terms.append(info_nce(a, b, temperature))
    return torch.stack(terms).mean() if terms else next(iter(codes.values())).new_zeros(())


def alignment(codes: dict[str, Tensor], present: dict[str, Tensor]) -> Tensor:
    """Return the mean squared difference of the codes of two modalities of one sample, over all pairs; 0 .. 4.

    Agreement is content where partners are nearest; what a code says beyond its partner is what they differ in.

    References: Understanding Contrastive Representation Learning through Alignment and Uniformity, Wang and Isola,
    2020, https://arxiv.org/abs/2005.10242 (Eq. 3, alpha = 2).
    """
    terms = []
    for first, second in combinations(codes, 2):
        both = present[first] & present[second]
        if both.any():
            terms.append(F.mse_loss(rows_of(codes[first], both), rows_of(codes[second], both)))
    return torch.stack(terms).mean() if terms else next(iter(codes.values())).new_zeros(())


def reconstruction(x: Tensor, decoded: Tensor, std: float | Tensor, laplace: bool = False) -> Tensor:
    """Return -log N(x; decoded, std^2) without its constant, per value (mean over channels and space), `(B,)`.

    Of a Laplace law of that standard deviation instead, sqrt(2) |x - decoded| / std, if `laplace`.
    What a fixed `std` adds is a constant and left out; one that is a tensor counts in full.

    References: Auto-Encoding Variational Bayes, Kingma and Welling, 2014, https://arxiv.org/abs/1312.6114 (Eq. 10).
    """
    normaliser = std.log() if isinstance(std, Tensor) else 0.0
    measure, scale = (F.l1_loss, std / math.sqrt(2)) if laplace else (F.mse_loss, 2 * std**2)
    return measure(decoded, x, reduction="none").flatten(1).mean(1) / scale + normaliser


def kl(mean: Tensor, log_std: Tensor) -> Tensor:
    """Return KL(N(mean, std^2) || N(0, I)) in nats per sample, `(B,)`.

    References: Auto-Encoding Variational Bayes, Kingma and Welling, 2014, https://arxiv.org/abs/1312.6114 (App. B).
    """
    return 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).flatten(1).sum(1)


def private_recovery(u: Tensor, again: Tensor) -> Tensor:
    """Return -log N(u; again, I) without its constant, per value, `(B,)`: u must be readable from what it decodes to.

    References: InfoGAN, Chen et al., 2016, https://arxiv.org/abs/1606.03657 (Eq. 5, variational information bound).
    """
    return 0.5 * (u - again).square().flatten(1).mean(1)


def dependence(u: Tensor, c: Tensor) -> Tensor:
    """Return how far the N rows of `u` and `c` depend on each other: 0 if not at all, at most 1; differentiable.

    The Hilbert-Schmidt independence criterion of two Gaussian kernels, without bias (about zero, of either sign, for
    independent rows) and normalised like a correlation, HSIC(u, c) / sqrt(HSIC(u, u) HSIC(c, c)). Columns are
    standardised first: a code that says little, but says it clearly, counts in full. The width of each kernel
    follows the mean distance of its rows. Needs N >= 4.

    References: Feature Selection via Dependence Maximization, Song et al., 2012, https://jmlr.org/papers/v13/song12a.html
    (Eq. 4); Similarity of Neural Network Representations Revisited, Kornblith et al., 2019,
    https://arxiv.org/abs/1905.00414 (Eq. 4).
    """
    with torch.autocast(u.device.type, enabled=False):
        k, l = gaussian_kernel(u), gaussian_kernel(c)  # noqa: E741
        return _hsic(k, l) / (_hsic(k, k) * _hsic(l, l)).clamp_min(1e-12).sqrt()


_KERNEL_WIDTH = 0.3  # of the mean squared distance: wide kernels see means only, this one also what an MLP reads


def gaussian_kernel(z: Tensor) -> Tensor:
    """Return the similarities `(N, N)` in (0, 1] of the rows of `z` `(N, E)`, exp(-distance^2 / width).

    Columns are standardised first, and the width follows the mean distance.
    """
    with torch.autocast(z.device.type, enabled=False):  # differences of products matter
        z = (z - z.mean(0)) / (z.std(0) + 1e-3)
        squares = z.square().sum(1, keepdim=True)
        distance = 2 * squares.detach().mean()  # its mean over all pairs
        width = (_KERNEL_WIDTH * distance).clamp_min(1e-6)  # a collapsed code has no distances
        one = torch.ones_like(squares)
        return torch.exp(torch.cat([2 * z, -squares, -one], 1) @ (torch.cat([z, one, squares], 1).T / width))


def _hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    """Return the criterion of two kernels, whose diagonals are 1 and do not count."""
    n, sums, others = len(k), k.sum(0) - 1, l.sum(0) - 1
    ones = sums.sum() * others.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * sums.dot(others)
    return (torch.linalg.vecdot(k, l).sum() - n + ones) / (n * (n - 3))
