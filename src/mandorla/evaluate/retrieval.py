"""Finding a sample's other modality among many by the shared part alone: how far c tells samples apart, without labels.

c is read from modality a of one sample and from modality b of all; the candidates are ordered by cosine similarity.
Where modalities share a class and nothing else, no more than the class can be found again.
"""

from collections.abc import Sequence

import numpy as np
from torch.nn import functional as F

from mandorla.errors import MandorlaError
from mandorla.evaluate.arrays import Array, code_rows, numbers

_ROUNDING = 1e-12  # of a cosine


def ranks(queries: Array, gallery: Array) -> np.ndarray:
    """Return how many of `gallery` `(N, ...)` are more like query i than its own partner, gallery i, `(N,)`.

    Likeness is the cosine; candidates exactly as like as the partner count half.
    Raises MandorlaError where the codes are not as many and as long, or not finite.
    """
    q, g = (code_rows(z, what).double() for z, what in ((queries, "the queries"), (gallery, "the gallery")))
    if q.shape != g.shape:
        raise MandorlaError(f"{len(q)} codes of {q.shape[1]} numbers have no partners in {len(g)} of {g.shape[1]}")
    q, g = F.normalize(q, dim=1), F.normalize(g, dim=1)
    likeness = q @ g.T
    more = likeness - likeness.diagonal()[:, None]
    return ((more > _ROUNDING).sum(1) + 0.5 * ((more.abs() <= _ROUNDING).sum(1) - 1)).numpy()


def recall_at(found: Array, ks: Sequence[int] = (1, 5, 10)) -> dict[int, np.ndarray]:
    """Return for each k which partners are among the first k, bool `(N,)`; `found` as `ranks` gives it.

    Chance is k / N. Raises MandorlaError for no ranks, and those that are not finite.
    """
    places = numbers(found, "ranks")
    return {k: places < k for k in ks}
