"""Finding a sample's other modality among many by the shared part alone: how far c tells samples apart, without labels.

c is read from modality a of one sample and from modality b of all; the candidates are ordered by cosine similarity.
Where modalities share a class and nothing else, no more than the class can be found again.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torch.nn import functional as F


def ranks(queries: Tensor, gallery: Tensor) -> np.ndarray:
    """Return how many of `gallery` `(N, ...)` are more like query i than its own partner, gallery i, `(N,)`.

    Likeness is the cosine; candidates exactly as like as the partner count half.
    """
    q, g = (F.normalize(z.detach().double().cpu().flatten(1), dim=1) for z in (queries, gallery))
    likeness = q @ g.T
    own = likeness.diagonal()[:, None]
    return ((likeness > own).sum(1) + 0.5 * ((likeness == own).sum(1) - 1)).numpy()


def recall_at(found: np.ndarray, ks: Sequence[int] = (1, 5, 10)) -> dict[int, np.ndarray]:
    """Return for each k which partners are among the first k, bool `(N,)`; `found` as `ranks` gives it.

    Chance is k / N.
    """
    return {k: found < k for k in ks}
