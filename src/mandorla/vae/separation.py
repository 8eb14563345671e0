"""How far stage 1 separates, measured on validation data while it trains, without labels.

x' = d_m(c_i, u_j) joins the shared code of one sample with the private code of another, and is read again: c', u'.

shared_kept   = 1 - E|c' - c_i|^2 / Var c     what was shared is still read from x': 1 if all of it, 0 if nothing
private_kept  = 1 - E|u' - u_j|^2 / Var u     the same for what was private
private_known = 1 - E|f(c) - u|^2 / Var u     how much of u can be foretold from c, on other samples than f is fitted to

The first two should be near 1, the last near 0; all are means over the modalities. f is kernel ridge regression, which
also sees what no straight line does; "other samples" are those of other subjects (patients) where these are known.
"""

import numpy as np
import torch
from torch import Tensor

from mandorla.data.dataset import Batch, all_present
from mandorla.vae.losses import gaussian_kernel
from mandorla.vae.model import VAE, pool
from mandorla.vae.objective import paired_rows

_ROWS = 512  # samples, or cells of maps, that f is fitted to and tested on
_RIDGES = (1e-2, 1e-1, 1.0, 10.0, 100.0)
_FEW = 8  # samples below which nothing can be said


@torch.no_grad()
def separation(vae: VAE, batch: Batch) -> dict[str, float]:
    """Return `shared_kept`, `private_kept` and `private_known` of a batch; empty if it is too small.

    Where the batch says whose (which patient's) a sample is, swaps join two patients, and what is foretold is of
    patients that the regression has not seen; it is left out where there is one alone.
    """
    features, codes = vae.encode(batch.x, batch.present)
    whole = pool(codes, batch.present)
    found: dict[str, list[float]] = {"shared_kept": [], "private_kept": [], "private_known": []}
    for name, rows in batch.present.items():
        c, whose = whole[rows], batch.whose[rows.cpu().numpy()]
        if len(c) < _FEW:
            continue
        u, _ = vae.posterior(name, features[name], c)
        other = u[torch.from_numpy(partners(np.arange(len(whose)), whose))]
        swapped = {name: vae.decode(name, c, other).clamp(0, 1)}
        again, shared = vae.encode(swapped, all_present(swapped))
        found["shared_kept"].append(explained(c, shared[name]))
        found["private_kept"].append(explained(other, vae.posterior(name, again[name], shared[name])[0]))
        if len(np.unique(whose)) > 1:
            found["private_known"].append(foretold(u, c, whose))
    return {name: sum(values) / len(values) for name, values in found.items() if values}


def explained(truth: Tensor, guess: Tensor) -> float:
    """Return the share of the variance of `truth` `(B, ...)` that `guess` explains; at most 1, 0 for the mean."""
    spread = (truth - truth.mean(0)).square().sum().clamp_min(1e-12)
    return float(1 - (guess - truth).square().sum() / spread)


def partners(order: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Return for each sample another one `(B,)`: another patient's, if nobody has more than half of them.

    All are chosen once: a cyclic shift of the samples in `order`, brought together by `patients` `(B,)`, by as many as
    the largest has.
    """
    order = order[np.argsort(patients[order], kind="stable")]
    partner = np.empty_like(order)
    partner[order] = np.roll(order, np.unique(patients, return_counts=True)[1].max() % len(order) or 1)
    return partner


def _first_half(whose: np.ndarray) -> np.ndarray:
    """Return which samples are of the patients that come first, bool `(B,)`: about half of them, of two or more."""
    _, first, index, counts = np.unique(whose, return_index=True, return_inverse=True, return_counts=True)
    place = np.argsort(first)
    middle = np.empty(len(counts))
    middle[place] = np.cumsum(counts[place]) - counts[place] / 2
    return middle[index] < len(whose) / 2


def foretold(u: Tensor, c: Tensor, whose: np.ndarray | None = None) -> float:
    """Return the share of the variance of `u` `(B, ...)` that kernel ridge regression foretells from `c`, 0 .. 1.

    It is fitted to the first half of the samples and scored on the second, cell by cell where u is a map. `whose`
    `(B,)` says whose (which patient's, of two at least) each sample is: nobody is in both halves.

    References: The Elements of Statistical Learning, Hastie, Tibshirani, Friedman, 2009,
    https://hastie.su.domains/ElemStatLearn (Eq. 5.50, regularisation in a reproducing kernel Hilbert space).
    """
    fit = torch.from_numpy(_first_half(np.arange(len(u)) if whose is None else whose)).to(u.device)
    (u_fit, c_fit), (u_new, c_new) = (paired_rows(u[part], c[part], _ROWS) for part in (fit, ~fit))
    kernel = gaussian_kernel(torch.cat([c_fit, c_new]))
    fitted, new = kernel[: len(c_fit), : len(c_fit)], kernel[len(c_fit) :, : len(c_fit)]
    mean, eye = u_fit.mean(0), torch.eye(len(fitted), device=u.device)
    scores = [explained(u_new, mean + new @ torch.linalg.solve(fitted + r * eye, u_fit - mean)) for r in _RIDGES]
    return max(0.0, *scores)
