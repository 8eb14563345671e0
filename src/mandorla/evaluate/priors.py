"""Simpler priors on the same stage 1: what the flow of stage 2 is worth.

- *gaussian*: one Gaussian over all latents, its covariance that of the training latents
- *mixture*: a mixture of Gaussians, fitted afterwards to the leading principal components, of 5000 samples at most;
  what these leave out is that of a training sample
- *independent*: every component of another training sample, so that each is right and nothing belongs together

References: Gaussian mixtures as priors fitted after the training: From Variational to Deterministic Autoencoders,
Ghosh et al., 2020, https://arxiv.org/abs/1903.12436 (Sec. 4).
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mandorla.data.dataset import evenly
from mandorla.latents import Components, Layout

_DIRECTIONS = 64  # principal components that a mixture is fitted to
_MIXED = 20  # Gaussians in a mixture
_FITTED = 5000  # samples that a mixture is fitted to: of more it takes minutes


def draw_gaussian(train: Components, num: int, seed: int) -> Components:
    """Return `num` draws of all components together from the Gaussian with the moments of `train`, `(num, *shape)`."""
    layout, z = _joined(train)
    scores, back = _principal(z, min(len(z) - 1, z.shape[1]))
    normal = np.random.default_rng(seed).standard_normal((num, scores.shape[1]))
    return layout.split(_tensor(back(normal * scores.std(0))))


def draw_mixture(train: Components, num: int, seed: int) -> Components:
    """Return `num` draws of all components together from a mixture of Gaussians fitted to `train`, `(num, *shape)`."""
    from sklearn.mixture import GaussianMixture

    layout, z = _joined(train)
    z = z[evenly(len(z), _FITTED)]
    scores, back = _principal(z, min(_DIRECTIONS, len(z) - 1, z.shape[1]))
    scale = np.maximum(scores.std(0), 1e-12)
    mixture = GaussianMixture(min(_MIXED, len(z)), reg_covar=1e-4, random_state=seed).fit(scores / scale)
    rng, rest = np.random.default_rng(seed), z - back(scores)
    drawn = back(rng.permutation(mixture.sample(num)[0]) * scale)
    return layout.split(_tensor(drawn + rest[rng.integers(len(z), size=num)]))


def draw_independent(train: Components, num: int, seed: int) -> Components:
    """Return `num` tuples, each component that of a training sample of its own, `(num, *shape)`."""
    rng = np.random.default_rng(seed)
    return {name: z[torch.from_numpy(rng.integers(len(z), size=num))] for name, z in train.items()}


PRIORS: dict[str, Callable[[Components, int, int], Components]] = {
    "gaussian": draw_gaussian,
    "mixture": draw_mixture,
    "independent": draw_independent,
}


def _joined(train: Components) -> tuple[Layout, np.ndarray]:
    layout = Layout({name: tuple(z.shape[1:]) for name, z in train.items()})
    return layout, layout.join(train).double().cpu().numpy()


def _principal(z: np.ndarray, num: int) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Return the leading principal components of the rows of `z` and the way back from such to rows."""
    from sklearn.decomposition import PCA

    pca = PCA(num, svd_solver="full" if num > 0.5 * min(z.shape) else "randomized", random_state=0).fit(z)
    return pca.transform(z), pca.inverse_transform


def _tensor(rows: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows, np.float32))
