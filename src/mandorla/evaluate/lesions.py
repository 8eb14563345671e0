"""A thing that one modality shows and another cannot: does the model reproduce it, and does it invent it?

A lesion has a *contrast*: its mean brightness minus that of a ring of tissue around it. In a reconstruction the
contrast should stay; in a translation from a modality that does not show the lesion, nothing should tell where it is.
"""

import numpy as np
from torch import Tensor

_GAP, _RING = 2, 3  # pixels left out around the lesion (its soft edge), and width of the ring


def contrast(images: Tensor, mask: np.ndarray) -> np.ndarray:
    """Return for each image `(B, 1, *size)` the mean inside its `mask` `(B, *size)` minus that of the ring, `(B,)`.

    Samples without a lesion, or with an empty ring, give nan. Pixels of mask above one half are inside.
    """
    from scipy.ndimage import binary_dilation

    values = images[:, 0].float().cpu().numpy()
    answers = np.full(len(values), np.nan)
    for i, (image, inside) in enumerate(zip(values, mask > 0.5, strict=True)):
        if inside.any():
            near = binary_dilation(inside, iterations=_GAP)
            ring = binary_dilation(near, iterations=_RING) & ~near
            if ring.any():
                answers[i] = image[inside].mean() - image[ring].mean()
    return answers


def contrast_share(images: Tensor, truth: Tensor, mask: np.ndarray) -> np.ndarray:
    """Return each lesion's contrast in `images` over the mean contrast in `truth`, `(lesions,)`; 1 is faithful.

    Division by the mean keeps one faint lesion from deciding the figure. One NaN where there is no lesion.
    """
    found, real = contrast(images, mask), contrast(truth, mask)
    has = ~np.isnan(real)
    return found[has] / real[has].mean() if has.any() else np.array([np.nan])
