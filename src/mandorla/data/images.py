"""Image files in and out: PNG, JPEG and TIFF as arrays `(C, H, W)`.

Pillow decodes them. What it would do without a word is refused here: cutting 16-bit colours to 8 bits, reading only the
first of several pages, leaving out a channel beside the colours. Transparent pixels are laid over black, palettes
become colours, and a camera's orientation tag is applied.
"""

import io
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from mandorla.errors import MandorlaError
from mandorla.storage import whole

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}
TIFF = {".tif", ".tiff"}
HOLDS = {"uint8": SUFFIXES, "uint16": {".png", *TIFF}, "float32": TIFF}
FORMATS = ("PNG", "JPEG", "TIFF")  # whatever a file is called: some decoders start other programs
MOST_BYTES: ContextVar[int] = ContextVar("MOST_BYTES", default=2**33)  # that one place may hold
BITS_PER_SAMPLE, PHOTOMETRIC, EXTRA_SAMPLES, SAMPLE_FORMAT = 258, 262, 338, 339  # TIFF tags


def write_image(path: Path, image: np.ndarray, note: str = "") -> None:
    """Write `image`, float `(C, H, W)`, cut to [0, 1], with 8 bits. Raises `MandorlaError` as `write_pixels` does."""
    image = np.asarray(image)
    if not np.isfinite(image).all():
        raise MandorlaError(f"{path}: the image holds NaN or infinite values")
    write_pixels(path, np.rint(image.clip(0, 1) * 255).astype(np.uint8), note)


def write_pixels(path: Path, pixels: np.ndarray, note: str = "") -> None:
    """Write `pixels` `(C, H, W)`, C = 1 or 3, as they are to the kind of file that the suffix of `path` names, whole or
    not at all. A `note` is in it as the PNG text `mandorla`, or the description of a TIFF.

    Raises `MandorlaError` for another shape, for a type that such files do not have (see `can_hold`), or where the file
    cannot be written.
    """
    path = Path(path)
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise MandorlaError(f"{path}: an image is (1 or 3, height, width), not {pixels.shape}")
    if not can_hold(path.suffix, pixels.dtype, len(pixels)):
        raise MandorlaError(
            f"{path}: this kind of file has no {pixels.dtype} pixels of {len(pixels)} channel(s); use 8 bits and one "
            f"of {', '.join(sorted(SUFFIXES))}"
        )
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    with whole(path) as part:
        texts = {"pnginfo": png_text(note), "description": note} if note else {}
        image.save(part, Image.registered_extensions()[path.suffix.lower()], **texts)


def png_text(note: str) -> PngInfo:
    """Return what a PNG is saved with to say `note` in its text `mandorla`."""
    text = PngInfo()
    text.add_text("mandorla", note)
    return text


def can_hold(suffix: str, dtype: np.dtype | str, channels: int) -> bool:
    """Return whether files with `suffix` can hold pixels of `dtype`, such as uint16 only where they are grey."""
    name = np.dtype(dtype).name
    return suffix.lower() in HOLDS.get(name, ()) and (channels == 1 or name == "uint8")


def decode_image(path: Path) -> np.ndarray:
    """Return the image `(C, H, W)` as it is stored: uint8, uint16 or, from a float TIFF, float32.

    Raises `MandorlaError` if the file is missing, is no image, is broken, holds several pages, or holds 16-bit colours.
    """
    path = Path(path)
    if not path.is_file():
        raise MandorlaError(f"{path}: no such file")
    try:
        content = path.read_bytes()  # of a file a decoder may ask for as many bytes as damaged ones declare
        with io.BytesIO(content) as file, Image.open(file, formats=FORMATS) as image:
            check_size((len(image.getbands()), image.height, image.width), np.dtype(np.uint8))  # at least
            image.load()
            pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # a JPEG may have a preview
            bits, odd = _bits(file, image), _oddity(image)
            image = ImageOps.exif_transpose(image)
            pixels = None if odd else _pixels(image)
    except Exception as error:  # a broken file makes a decoder raise anything
        why = "of no kind that is known" if isinstance(error, UnidentifiedImageError) else error
        raise MandorlaError(f"{path}: cannot be read as an image ({why}); replace or remove it") from error
    if pages > 1:
        raise MandorlaError(f"{path}: holds {pages} images where one is expected; save them as files of their own")
    if pixels is None or bits > 8 * pixels.dtype.itemsize:
        raise MandorlaError(
            f"{path}: {bits}-bit pixels of type {image.mode}{odd} cannot be read without loss; "
            "convert to 8 bits, to 16-bit grey or to a .npy array (kind: arrays)"
        )
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def check_size(shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raise `MandorlaError` if an array of `shape` and `dtype` is larger than one sample can be meant to be."""
    declared = int(np.prod([int(n) for n in shape], dtype=object)) * dtype.itemsize
    most = MOST_BYTES.get()
    if declared > most or min(shape, default=1) < 0:
        raise MandorlaError(
            f"declares {declared / 2**30:.1f} GiB (shape {tuple(map(int, shape))}), more than {most / 2**30:g} "
            "GiB for one sample; divide it, or mend the file"
        )


def _pixels(image: Image.Image) -> np.ndarray | None:
    """Return `(H, W)` or `(H, W, 3)`, or None for a pixel type that has no unsigned or float form here."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode == "F":
        return np.asarray(image, dtype=np.float32)
    if image.mode == "I":
        return None
    if image.mode in ("1", "L") and not image.has_transparency_data:
        return np.asarray(image.convert("L"))
    if image.mode in ("1", "L", "LA", "La"):
        grey, alpha = image.convert("LA").split()
        return np.asarray(Image.composite(grey, Image.new("L", image.size), alpha))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "black"), image))[..., :3]
    return np.asarray(image.convert("RGB"))


def _bits(file: BinaryIO, image: Image.Image) -> int:
    """Return the bits per channel in the file, which Pillow may have cut to 8."""
    if image.format == "PNG":
        file.seek(24)
        return file.read(1)[0]
    if image.format == "TIFF":
        return max(image.tag_v2.get(BITS_PER_SAMPLE, (1,)))
    return 8


def _oddity(image: Image.Image) -> str:
    """Return in words what Pillow passes over in a TIFF: a channel, a sign, 0 for white; empty for nothing."""
    if image.format != "TIFF":
        return ""
    if 0 in image.tag_v2.get(EXTRA_SAMPLES, ()):
        return " with a channel that is neither colour nor transparency"
    if 2 in image.tag_v2.get(SAMPLE_FORMAT, ()) and image.mode not in ("I", "F"):
        return " with a sign"
    return " with 0 as white" if image.tag_v2.get(PHOTOMETRIC) == 0 and image.mode not in ("1", "L") else ""
