"""How far a set of made samples is from a set of real ones, in a space of features `(N, F)`, of whoever's model.

With means m, covariances S of both sets, k(x, y) = (x.y / F + 1)^3, and B(x) the ball around x that reaches to the
k-th neighbour of x in its own set:

    Fréchet    |m - m'|^2 + Tr S + Tr S' - 2 Tr (S S')^1/2     0 for equal Gaussians; biased: falls as N grows
    kernel     E k(x, x*) + E k(y, y*) - 2 E k(x, y)            0 on average for equal laws; unbiased, may be negative
    precision  share of made samples that lie in some B(real)   recall: share of real ones that lie in some B(made)
    density    mean number of B(real) around a made sample / k  coverage: share of B(real) that hold a made sample

Figures of different spaces, or of sets of different size, cannot be compared. See also `mandorla.evaluate.features`.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mandorla.arguments import check_whole
from mandorla.errors import MandorlaError
from mandorla.evaluate.arrays import Array, tensor

Features = Array  # (N, F)
_LARGEST = 1e50  # its sixth power, in the kernel, is still a number
NEAR, AROUND = 3, 5  # the neighbour that a ball of precision and recall, of density and coverage, reaches to
_CHUNK = 1000  # rows whose distances to all others are held at once


def frechet_distance(real: Features, made: Features) -> float:
    """Return the squared Fréchet distance between the Gaussians of both sets, at least 0.

    The trace of the root of S S' is the sum of the roots of the eigenvalues of S^1/2 S' S^1/2, which is symmetric: real
    and stable also where a covariance has no full rank. Those of X Y' Y X', with X and Y the centred rows, are the same
    and fewer where there are fewer samples than features. Raises MandorlaError for sets that cannot be compared.

    Reference: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017,
    https://arxiv.org/abs/1706.08500, equation 6
    """
    real, made = _checked(real, made, least=2)
    offset = (real.mean(0) - made.mean(0)).square().sum()
    ours, theirs = ((rows - rows.mean(0)) / (len(rows) - 1) ** 0.5 for rows in (real, made))  # covariance is X'X
    if max(len(real), len(made)) < real.shape[1]:
        across = ours @ theirs.T
        middle = across @ across.T
    else:
        values, vectors = torch.linalg.eigh(ours.T @ ours)
        root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
        middle = root @ (theirs.T @ theirs) @ root
    overlap = torch.linalg.eigvalsh(middle).clamp_min(0).sqrt().sum()
    return max(0.0, float(offset + ours.square().sum() + theirs.square().sum() - 2 * overlap))


def kernel_distance(real: Features, made: Features) -> float:
    """Return the squared maximum mean discrepancy of both sets under a polynomial kernel, unbiased (KID).

    Raises MandorlaError for sets that cannot be compared.

    Reference: Bińkowski et al., "Demystifying MMD GANs", 2018, https://arxiv.org/abs/1801.01401, section 4
    """
    real, made = _checked(real, made, least=2)
    return _mean_kernel(real) + _mean_kernel(made) - 2 * _mean_kernel(real, made)


def precision_recall(real: Features, made: Features, neighbours: int = NEAR) -> tuple[np.ndarray, np.ndarray]:
    """Return which made samples look real, `(made,)`, and which real ones could have been made, `(real,)`, bool.

    Their means are precision (quality) and recall (variety). Raises MandorlaError for sets that cannot be compared.

    Reference: Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", 2019,
    https://arxiv.org/abs/1904.06991, equation 2
    """
    check_whole("neighbours", neighbours, 1)
    real, made = _checked(real, made, least=neighbours + 1)
    answers = []
    for balls, points in ((real, made), (made, real)):
        radii = _radii(balls, neighbours)
        answers.append(np.concatenate([(d <= radii).any(1).numpy() for d in _distances(points, balls)]))
    return answers[0], answers[1]


def density_coverage(real: Features, made: Features, neighbours: int = AROUND) -> tuple[np.ndarray, np.ndarray]:
    """Return how many balls of real samples are around each made one, over k, and which balls hold a made sample.

    The first is `(made,)`, the second bool `(real,)`. Their means are density (quality, not bounded by 1) and coverage
    (variety): one outlier among the real samples spoils neither. Raises MandorlaError for sets that cannot be compared.

    Reference: Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", 2020,
    https://arxiv.org/abs/2002.09797, equations 2 and 3
    """
    check_whole("neighbours", neighbours, 1)
    real, made = _checked(real, made, least=neighbours + 1)
    radii = _radii(real, neighbours)
    inside = torch.cat([d < radii for d in _distances(made, real)])
    return (inside.sum(1).double() / neighbours).numpy(), inside.any(0).numpy()


def _checked(real: Features, made: Features, least: int) -> tuple[Tensor, Tensor]:
    sets = {name: tensor(rows, f"the {name} features").double() for name, rows in (("real", real), ("made", made))}
    for name, rows in sets.items():
        if rows.ndim != 2 or len(rows) < least or not rows.shape[1]:
            raise MandorlaError(
                f"the {name} features have shape {tuple(rows.shape)}: expected (N, F) with at least {least} samples"
            )
        if not (rows.abs() < _LARGEST).all():
            raise MandorlaError(f"the {name} features have NaN or infinite values: leave those samples out")
    if sets["real"].shape[1] != sets["made"].shape[1]:
        widths = " and ".join(str(rows.shape[1]) for rows in sets.values())
        raise MandorlaError(f"real and made samples have {widths} features: read both with one network")
    return sets["real"], sets["made"]


def _mean_kernel(x: Tensor, y: Tensor | None = None) -> float:
    """Return the mean of k over all pairs of `x` and `y` or, without `y`, over all pairs of two samples of `x`."""
    other, total = x if y is None else y, 0.0
    for rows in x.split(_CHUNK):
        total += float((rows @ other.T / x.shape[1] + 1).pow(3).sum())
    if y is not None:
        return total / (len(x) * len(y))
    own = float((x.square().sum(1) / x.shape[1] + 1).pow(3).sum())
    return (total - own) / (len(x) * (len(x) - 1))


def _distances(points: Tensor, others: Tensor) -> Iterator[Tensor]:
    """Yield the distances from all `points`, some rows at a time, to all `others`."""
    for rows in points.split(_CHUNK):
        yield torch.cdist(rows, others)


def _radii(points: Tensor, neighbours: int) -> Tensor:
    """Return the distance of each point to its `neighbours`-th neighbour, itself not counted, `(N,)`."""
    return torch.cat([d.kthvalue(neighbours + 1, 1).values for d in _distances(points, points)])
