"""From files to arrays: what all sources share that read files one by one."""

from collections.abc import Sequence

import numpy as np

from mandorla.data.dataset import Splits
from mandorla.data.images import decode_image
from mandorla.data.pairing import PairingConfig, Pairs
from mandorla.data.stored import divide
from mandorla.errors import MandorlaError


class FilesConfig(PairingConfig):
    """Say how files are paired and read."""


def load_pairs(pairs: Pairs, config: FilesConfig, seed: int, source: str) -> Splits:
    """Return the files of `pairs` as train, val and test, divided by subject under `seed`.

    `source` names the data in errors. Raises `MandorlaError` for an unreadable image, images of different shape in one
    modality, and as `divide` does.
    """
    x = {name: _decode_all(places) for name, places in pairs.files.items()}
    present = {name: np.array([place is not None for place in places]) for name, places in pairs.files.items()}
    labels = pairs.labels | {name: _decode_all(places)[:, 0] for name, places in pairs.masks.items()}
    return divide(x, present, pairs.ids, pairs.groups, config, seed, source, labels, pairs.parts)


def _decode_all(places: Sequence[str | None]) -> np.ndarray:
    """Return the images `(N, C, H, W)`, all of one shape and type; zeros where there is no file."""
    first = next(place for place in places if place)
    model = decode_image(first)
    images = np.zeros((len(places), *model.shape), dtype=model.dtype)
    for image, place in zip(images, places, strict=True):
        if place:
            pixels = decode_image(place)
            if (pixels.shape, pixels.dtype) != (model.shape, model.dtype):
                raise MandorlaError(
                    f"{place}: {_describe(pixels)}, unlike {first} with {_describe(model)}; make all of a modality"
                    " alike"
                )
            image[:] = pixels
    return images


def _describe(pixels: np.ndarray) -> str:
    """Return a picture's height, width, channels and type in words."""
    channels, height, width = pixels.shape
    return f"{height}x{width} pixels of {channels} channel(s) in {pixels.dtype}"
