"""How far stage 1 separates, measured on validation data while it trains, without labels.

x' = d_m(c_i, u_j) joins the shared code of one sample with the private code of another, and is read again: c', u'.

shared_kept   = 1 - E|c' - c_i|^2 / Var c     what was shared is still read from x': 1 if all of it, 0 if nothing
private_kept  = 1 - E|u' - u_j|^2 / Var u     the same for what was private
private_known = 1 - E|f(c) - u|^2 / Var u     how much of u can be foretold from c, on other samples than f is fitted to

The first two should be near 1, the last near 0; all are means over the modalities. f is kernel ridge regression, which
also sees what no straight line does.
"""

import torch
from torch import Tensor

from mandorla.data.dataset import Batch
from mandorla.vae.losses import gaussian_kernel
from mandorla.vae.model import VAE, pool
from mandorla.vae.objective import paired_rows

_ROWS = 512  # samples, or cells of maps, that f is fitted to and tested on
_RIDGES = (1e-2, 1e-1, 1.0, 10.0, 100.0)
_FEW = 8  # samples below which nothing can be said


@torch.no_grad()
def separation(vae: VAE, batch: Batch) -> dict[str, float]:
    """Return `shared_kept`, `private_kept` and `private_known` of a batch; empty if it is too small.

    A swap joins neighbours in the batch, so it should hold different subjects.
    """
    features, codes = vae.encode(batch.x, batch.present)
    whole = pool(codes, batch.present)
    found: dict[str, list[float]] = {"shared_kept": [], "private_kept": [], "private_known": []}
    for name, rows in batch.present.items():
        c = whole[rows]
        if len(c) < _FEW:
            continue
        u, _ = vae.posterior(name, features[name], c)
        other = u.roll(1, 0)
        everyone = torch.ones(len(c), dtype=torch.bool, device=c.device)
        again, shared = vae.encode({name: vae.decode(name, c, other).clamp(0, 1)}, {name: everyone})
        found["shared_kept"].append(explained(c, shared[name]))
        found["private_kept"].append(explained(other, vae.posterior(name, again[name], shared[name])[0]))
        found["private_known"].append(foretold(u, c))
    return {name: sum(values) / len(values) for name, values in found.items() if values}


def explained(truth: Tensor, guess: Tensor) -> float:
    """Return the share of the variance of `truth` `(B, ...)` that `guess` explains; at most 1, 0 for the mean."""
    spread = (truth - truth.mean(0)).square().sum().clamp_min(1e-12)
    return float(1 - (guess - truth).square().sum() / spread)


def foretold(u: Tensor, c: Tensor) -> float:
    """Return the share of the variance of `u` `(B, ...)` that kernel ridge regression foretells from `c`, 0 .. 1.

    It is fitted to the first half of the samples and scored on the second, cell by cell where u is a map.

    References: The Elements of Statistical Learning, Hastie, Tibshirani, Friedman, 2009,
    https://hastie.su.domains/ElemStatLearn (Eq. 5.50, regularisation in a reproducing kernel Hilbert space).
    """
    half = len(u) // 2
    (u_fit, c_fit), (u_new, c_new) = (paired_rows(u[part], c[part], _ROWS) for part in (slice(half), slice(half, None)))
    kernel = gaussian_kernel(torch.cat([c_fit, c_new]))
    fitted, new = kernel[: len(c_fit), : len(c_fit)], kernel[len(c_fit) :, : len(c_fit)]
    mean, eye = u_fit.mean(0), torch.eye(len(fitted), device=u.device)
    scores = [explained(u_new, mean + new @ torch.linalg.solve(fitted + r * eye, u_fit - mean)) for r in _RIDGES]
    return max(0.0, *scores)
