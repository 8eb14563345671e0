"""Copy audit: are generated samples closer to training images than unseen real images are?

d(x) is the distance from x to its nearest training image. Two calibrated questions, each answered with the share of
generated samples below the first percentile of held-out real ones (so .01 is what a copy-free generator scores):
- *distance*: is d(x) itself that small? Smooth samples are close to everything, so this one also reacts to blur;
- *ratio*: is d(x) that small beside the distance to the next neighbours? Only a copy has one neighbour that close.

References: Meehan et al., "A Non-Parametric Test to Detect Data-Copying in Generative Models", 2020,
https://arxiv.org/abs/2004.05675; Dar et al., "Investigating Data Memorization in 3D Latent Diffusion Models", 2024,
https://arxiv.org/abs/2402.01054
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_LARGEST = 32  # images are averaged down to at most this many pixels a side
_NEXT = 10  # neighbours after the first that set the scale of the ratio


@dataclass(frozen=True)
class Neighbours:
    """Hold the `index` of each query's nearest training sample, its `distance`, and its `ratio` to the next ones."""

    index: np.ndarray
    distance: np.ndarray
    ratio: np.ndarray


def flatten_tuples(x: Mapping[str, Tensor]) -> Tensor:
    """Join all modalities of a tuple to one vector `(B, F)`, large images averaged down."""
    parts = []
    for image in x.values():
        size = [min(side, _LARGEST) for side in image.shape[2:]]
        if size and list(image.shape[2:]) != size:
            pool = (
                torch.nn.functional.adaptive_avg_pool1d,
                torch.nn.functional.adaptive_avg_pool2d,
                torch.nn.functional.adaptive_avg_pool3d,
            )[len(size) - 1]
            image = pool(image.float(), size)
        parts.append(image.float().clamp(0, 1).flatten(1).cpu())
    return torch.cat(parts, dim=1)


def nearest(queries: Tensor, train: Tensor) -> Neighbours:
    """Find the nearest row of `train` `(N, F)` for each row of `queries` `(B, F)`; the distance is root mean square."""
    next_ones = min(_NEXT, len(train) - 1)
    distance, index = (torch.cdist(queries, train) / queries.shape[1] ** 0.5).topk(1 + next_ones, largest=False)
    first, others = distance[:, 0], distance[:, 1:].mean(1)
    return Neighbours(index[:, 0].numpy(), first.numpy(), (first / others.clamp_min(1e-12)).numpy())


def suspicious(samples: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Return which of `samples` `(B,)` lie below the first percentile of `held_out` `(N,)`."""
    return samples < np.percentile(held_out, 1)
