#!/usr/bin/env python3
"""Write NumPy arrays as one folder of PNG files per modality, paired by name.

    python utils/arrays_to_folders.py OUT t1=scans.npz:x:0 flair=scans.npz:x:1 --groups scans.npz:patient

writes OUT/t1/7-00042.png, OUT/flair/7-00042.png, ...: patient 7, row 42. `kind: folders` trains on such folders and
`mandorla translate` reads them. Arrays are named as for `kind: arrays`: FILE.npz:KEY, FILE.npz:KEY:CHANNEL (of the last
axis) or FILE.npy, of shape (N, H, W) or (N, H, W, 3). uint8 and uint16 are written as they are; floats must lie in
[0, 1] and get 16 bits, colours 8.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from mandorla.data.arrays import read_array
from mandorla.errors import MandorlaError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("arrays", nargs="+", metavar="NAME=ARRAY", help="modality and its array")
    parser.add_argument("--groups", metavar="ARRAY", help="group (patient) of each row: the name's first part")
    parser.add_argument("--num", type=int, help="write the first NUM rows only")
    arguments = parser.parse_args()
    if arguments.num is not None and arguments.num < 1:
        sys.exit("--num takes a whole number from 1")
    images = {}
    for text in arguments.arrays:
        name, equals, array = text.partition("=")
        if not (equals and array) or not is_name(name) or name in images:
            sys.exit(f"{text}: expected NAME=ARRAY, each name once, one that a folder can have")
        images[name] = to_pixels(read(array)[: arguments.num], array)
    if len({len(pixels) for pixels in images.values()}) > 1:
        sys.exit("arrays of different length: " + ", ".join(f"{name} {len(pixels)}" for name, pixels in images.items()))
    num = len(next(iter(images.values())))
    names = [f"{row:05d}" for row in range(num)]
    if arguments.groups:
        groups = read(arguments.groups, as_text=True)
        if groups.ndim != 1 or len(groups) < num:
            sys.exit(f"{arguments.groups}: shape {groups.shape}, expected a group for each of {num} images")
        names = [f"{group}-{name}" for group, name in zip(groups[:num], names, strict=True)]
        if wrong := [name for name in names if not is_name(name)]:
            sys.exit(f"{arguments.groups}: {wrong[0][:80]!r} can be no file's name")
    if arguments.out.exists():
        sys.exit(f"{arguments.out}: exists already")
    for name, pixels in images.items():
        folder = arguments.out / name
        folder.mkdir(parents=True)
        for stem, image in zip(names, pixels, strict=True):
            Image.fromarray(image).save(folder / f"{stem}.png")
    print(f"{arguments.out}: {num} images for each of {', '.join(images)}")


def is_name(text: str) -> bool:
    """Return whether a file or folder can be called so."""
    return bool(text) and text not in (".", "..") and not set(text) & set("/\\\0") and len(text.encode()) < 200


def read(name: str, as_text: bool = False) -> np.ndarray:
    """Return the array of that name, as those of `kind: arrays` are called."""
    try:
        return read_array(name, Path, name, as_text)
    except MandorlaError as error:
        sys.exit(str(error))


def to_pixels(array: np.ndarray, place: str) -> np.ndarray:
    """Return images (N, H, W) or (N, H, W, 3) as pixels that a PNG can hold; colours have 8 bits."""
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[-1] != 3):
        sys.exit(f"{place}: shape {array.shape}, expected (N, H, W) or (N, H, W, 3)")
    if not array.size:
        sys.exit(f"{place}: no image, its shape is {array.shape}")
    colour = array.ndim == 4
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):  # also false for NaN
            sys.exit(f"{place}: values from {array.min():g} to {array.max():g}, expected [0, 1]")
        return np.rint(array * 255).astype(np.uint8) if colour else np.rint(array * 65535).astype(np.uint16)
    if array.dtype not in ((np.uint8,) if colour else (np.uint8, np.uint16)):
        sys.exit(f"{place}: {array.dtype} pixels; a PNG holds uint8, and uint16 without colours")
    return array


if __name__ == "__main__":
    main()
