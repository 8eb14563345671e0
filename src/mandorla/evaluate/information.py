"""An estimate of I(a; b) in nats between two sets of codes, and what the same estimator says where there is nothing.

Two estimators, neither of which suffices alone:

- *Gaussian*: -1/2 sum log(1 - r^2) over the canonical correlations r; exact for Gaussian codes, blind to what no
  straight line sees, biased upward by about F F' / 2N;
- *critic*: log K + E log softmax over K candidates of f(a).g(b) (InfoNCE), with f and g trained on other samples than
  it is measured on: a lower bound on average, at most log K, that sees any dependence its networks can learn.

The zero of both comes from permuted pairs: codes of different samples, independent by construction. An estimate means
something as far as it lies above that.

References: van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018,
https://arxiv.org/abs/1807.03748, equation 4; Poole et al., "On Variational Bounds of Mutual Information", 2019,
https://arxiv.org/abs/1905.06922; Kullback, "Information Theory and Statistics", 1959 (canonical correlations).
"""

import math
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mandorla.device import own_random
from mandorla.errors import MandorlaError
from mandorla.evaluate.arrays import Array, code_rows, same_number

MOST = 64  # principal components of a code that are looked at
_WIDTH, _EMBEDDING, _CANDIDATES = 256, 32, 256
_STEPS, _CHECK, _PATIENCE = 500, 25, 100  # at most so many; every so many looked at; without gain for so many: enough


@dataclass(frozen=True)
class Information:
    """Hold an estimate in `nats`, and what it is for permuted pairs, `zeros` `(P,)`.

    `p` is the share of estimates, this one and the permuted ones, that are as large as this one; None where these know
    nothing of the luck of a training.
    """

    nats: float
    zeros: np.ndarray
    p: float | None = None


def gaussian_information(
    a: Array, b: Array, permutations: int = 100, seed: int = 0, groups: np.ndarray | None = None
) -> Information:
    """Estimate I(a; b) as if codes `a` `(N, F)` and `b` `(N, G)` were jointly Gaussian.

    `groups` `(N,)` says whose (which patient's) each pair is: whole groups are permuted.
    Raises MandorlaError if there are not more samples than features, and for codes that are no pairs or not finite.
    """
    a, b = _pairs(a, b, groups)
    if len(a) <= a.shape[1] + b.shape[1] + 1:
        raise MandorlaError(f"{len(a)} samples are too few for codes of {a.shape[1]} and {b.shape[1]}: give more")
    p, q = (_whitened(np.float64(z)) for z in (a, b))

    def nats(q: np.ndarray) -> float:
        correlations = np.linalg.svd(p.T @ q, compute_uv=False).clip(0, 1 - 1e-12)  # none of a constant
        return float(-0.5 * np.log1p(-(correlations**2)).sum())

    rng = np.random.default_rng(seed)
    zeros = np.array([nats(q[_permutation(rng, len(q), groups)]) for _ in range(permutations)])
    found = nats(q)
    return Information(found, zeros, float((1 + (zeros >= found).sum()) / (1 + permutations)))


def critic_information(
    a: Array,
    b: Array,
    new_a: Array,
    new_b: Array,
    permutations: int = 100,
    seed: int = 0,
    groups: np.ndarray | None = None,
    new_groups: np.ndarray | None = None,
) -> Information:
    """Train a critic on pairs `a` `(N, F)`, `b` `(N, G)` and estimate the information in the new pairs, `(K, ...)`.

    A fifth of the training pairs says when to stop. At most the logarithm of the number of candidates can be found. The
    zero is that of a second critic, trained on permuted pairs: the first would be confidently wrong of them. It is one
    critic's, so that there is no p: another training may find a little more or less. In what order pairs are given
    plays no role. `groups` `(N,)` and `new_groups` `(K,)` say whose (which patient's) each pair is: whole groups say
    when to stop, and are permuted. Raises MandorlaError for fewer than 20 pairs, and for codes that are no pairs, not
    as long as the new ones, or not finite.
    """
    (a, b), (new_a, new_b) = _pairs(a, b, groups), _pairs(new_a, new_b, new_groups)
    if (a.shape[1], b.shape[1]) != (new_a.shape[1], new_b.shape[1]):
        raise MandorlaError(
            f"pairs of {a.shape[1]} and {b.shape[1]} numbers, new ones of {new_a.shape[1]} and {new_b.shape[1]}: give"
            " codes of one kind"
        )
    if min(len(a), len(new_a)) < 20:
        raise MandorlaError(f"{min(len(a), len(new_a))} pairs are too few to train and test a critic: give 20 or more")
    (a, new_a), (b, new_b) = (_standardised(old, new) for old, new in ((a, new_a), (b, new_b)))
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(new_a))  # candidates are those of any patient and class
    new_a, new_b, new_groups = new_a[order], new_b[order], None if new_groups is None else new_groups[order]
    f, g = _train_critic(a, b, rng, seed, groups).read(new_a, new_b)
    null_b = b[_permutation(rng, len(b), groups)]
    null_f, null_g = _train_critic(a, null_b, rng, seed, groups).read(new_a, new_b)
    zeros = [_held_out(null_f, null_g[_permutation(rng, len(new_b), new_groups)]) for _ in range(permutations)]
    return Information(_held_out(f, g), np.array(zeros))


def _pairs(a: Array, b: Array, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    a, b = (code_rows(z, "codes").numpy() for z in (a, b))
    same_number(a, b, what="paired codes")
    same_number(a, a if groups is None else groups, what="pairs of codes and their groups")
    return a, b


def _whitened(z: np.ndarray) -> np.ndarray:
    """Return orthonormal columns that span the centred columns of `z` `(N, F)`, none of a constant."""
    left, sizes, _ = np.linalg.svd(z - z.mean(0), full_matrices=False)
    return left[:, sizes > 1e-9 * np.linalg.norm(z)]


def principal(train: Tensor, test: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the first principal components, at most `MOST`, of codes `(N, ...)`, fitted on the training ones."""
    from sklearn.decomposition import PCA

    flat, new = (np.asarray(z.detach().cpu().flatten(1), np.float64) for z in (train, test))
    if flat.shape[1] <= MOST:
        return flat, new
    pca = PCA(min(MOST, len(flat) // 4), svd_solver="randomized", random_state=0).fit(flat)
    return pca.transform(flat), pca.transform(new)


class _Critic(nn.Module):
    """Score every pair of a batch by the scalar product of two embeddings."""

    def __init__(self, width_a: int, width_b: int) -> None:
        super().__init__()
        self.f, self.g = (
            nn.Sequential(nn.Linear(w, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, _EMBEDDING)) for w in (width_a, width_b)
        )

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.f(a), self.g(b)

    @torch.no_grad()
    def read(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self(a, b)


def _train_critic(a: Tensor, b: Tensor, rng: np.random.Generator, seed: int, groups: np.ndarray | None) -> _Critic:
    """Return the critic that does best on a fifth of the pairs while it is trained on the others."""
    order = shuffled(rng, len(a), groups)
    fit, check = order[len(a) // 5 :], rng.permutation(order[: len(a) // 5])
    with own_random(seed):
        critic = _Critic(a.shape[1], b.shape[1])
    optimiser = torch.optim.AdamW(critic.parameters(), lr=1e-3, weight_decay=0.1)
    best, kept, since = -math.inf, critic.state_dict(), 0
    for step in range(_STEPS):
        rows = fit[rng.choice(len(fit), min(_CANDIDATES, len(fit)), replace=False)]
        loss = -_bound(*critic(a[rows], b[rows]))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if step % _CHECK == _CHECK - 1:
            value = _held_out(*critic.read(a[check], b[check]))
            if value > best:
                best, kept, since = value, deepcopy(critic.state_dict()), step
            elif step - since >= _PATIENCE:
                break
    critic.load_state_dict(kept)
    return critic


def shuffled(rng: np.random.Generator, num: int, groups: np.ndarray | None) -> np.ndarray:
    """Return `num` rows in a random order in which those of one of `groups` `(num,)` (patients) stay together."""
    order = rng.permutation(num)
    if groups is None:
        return order
    index = np.unique(groups, return_inverse=True)[1]
    return order[np.argsort(rng.permutation(num)[index[order]], kind="stable")]


def _permutation(rng: np.random.Generator, num: int, groups: np.ndarray | None) -> np.ndarray:
    """Return for each of `num` rows another one, `(num,)`: those of one group get those of another, in any order.

    So slices of one patient are paired with those of another, but not the highest with the highest.
    """
    partner = np.empty(num, int)
    partner[np.argsort(np.arange(num) if groups is None else groups, kind="stable")] = shuffled(rng, num, groups)
    return partner


def _bound(f: Tensor, g: Tensor) -> Tensor:
    """Return the InfoNCE estimate from embeddings of K pairs, mean of both directions."""
    scores, own = f @ g.T, torch.arange(len(f))
    return math.log(len(f)) - (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


def _held_out(f: Tensor, g: Tensor) -> float:
    """Return the mean estimate over batches of as many candidates as in training, or of all if they are fewer."""
    num = max(1, len(f) // _CANDIDATES)
    parts = [_bound(f_part, g_part) for f_part, g_part in zip(f.chunk(num), g.chunk(num), strict=True)]
    return float(torch.stack(parts).mean())


def _standardised(train: np.ndarray, new: np.ndarray) -> tuple[Tensor, Tensor]:
    mean, std = train.mean(0), train.std(0)
    std = np.where(std > 1e-6, std, 1)
    return tuple(torch.from_numpy(np.asarray((z - mean) / std, np.float32)) for z in (train, new))
