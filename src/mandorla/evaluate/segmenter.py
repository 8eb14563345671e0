"""A small U-Net that outlines a lesion in images of one modality: does it find in others what it finds in real ones?

It is trained on real images; how well it does on real images of other patients is the most that others can be expected
to give. Whether a lesion is outlined as well in reconstructions says more than its contrast: also its edge and place.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mandorla.data.dataset import Batch, Dataset
from mandorla.errors import MandorlaError
from mandorla.evaluate.arrays import Array, tensor
from mandorla.evaluate.supervised import train_network
from mandorla.nets.unet import UNet, UNetConfig

MASK = "lesion_mask"  # the factor that says where a lesion is, `(B, *size)`; above one half is inside
_BATCH = 16  # images of a training step
_CHUNK = 64  # images that are outlined at once
_CELLS = 48**2  # at most, about, that the first layer gives: larger images are cut into patches


class Segmenter(nn.Module):
    """Map images `(B, 1, *size)` in [0, 1] to logits `(B, *size)` of lying in a lesion."""

    def __init__(self, size: tuple[int, ...]):
        super().__init__()
        patch = math.ceil((math.prod(size) / _CELLS) ** (1 / len(size)))
        self.network = UNet(UNetConfig(patch=patch, channels=(16, 32, 64)), len(size), 1, 1, vector=0)

    def forward(self, x: Tensor) -> Tensor:
        nothing = x.new_zeros(len(x), 0)
        return self.network(2 * x - 1, x.new_zeros(len(x)), nothing)[:, 0]

    @torch.no_grad()
    def outline(self, x: Tensor) -> np.ndarray:
        """Return what lies in a lesion, bool `(B, *size)`, of images in [0, 1]."""
        device = next(self.parameters()).device
        return torch.cat([self(part.to(device).clamp(0, 1)).cpu() > 0 for part in x.split(_CHUNK)]).numpy()


def train_segmenter(
    train: Dataset, name: str, steps: int, seed: int = 0, device: torch.device | str = "cpu"
) -> Segmenter:
    """Train on the images of modality `name`, of one channel, and the factor `lesion_mask`; missing ones do not count.

    As `train_network` does, by cross-entropy plus 1 - the soft Dice coefficient of the batch.

    References: V-Net, Milletari et al., 2016, https://arxiv.org/abs/1606.04797 (Sec. 3).
    """
    size = next(modality.size for modality in train.modalities if modality.name == name)

    def loss(segmenter: nn.Module, batch: Batch, autocast: torch.autocast) -> Tensor | None:
        here = batch.present[name]
        if not here.any():
            return None
        inside = (torch.as_tensor(batch.factors[MASK])[here] > 0.5).float().to(device)
        with autocast:
            logits = segmenter(batch.x[name][here].to(device))
        found = logits.float().sigmoid()
        overlap = (2 * (found * inside).sum() + 1) / (found.sum() + inside.sum() + 1)
        return F.binary_cross_entropy_with_logits(logits.float(), inside) + 1 - overlap

    return train_network(lambda: Segmenter(size), loss, train, steps, _BATCH, seed, device)


def dice(found: Array, truth: Array) -> np.ndarray:
    """Return the Dice coefficient 2 |A and B| / (|A| + |B|) of each pair of masks `(B, *size)`, `(B,)`.

    1 is the same mask, 0 no common pixel; NaN where both are empty. Pixels above one half are inside. Raises
    MandorlaError where masks do not have one shape.

    References: Measures of the Amount of Ecologic Association Between Species, Dice, 1945,
    https://doi.org/10.2307/1932409.
    """
    masks = [tensor(each, "masks").numpy() for each in (found, truth)]
    if masks[0].shape != masks[1].shape or not masks[0].ndim:
        raise MandorlaError(f"masks have shapes {masks[0].shape} and {masks[1].shape}: give pairs (B, *size)")
    a, b = (mask.reshape(len(mask), -1) > 0.5 for mask in masks)
    both = a.sum(1) + b.sum(1)
    return np.where(both > 0, 2 * (a & b).sum(1) / np.maximum(both, 1), np.nan)
