import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image
from tiny import read_image

from mandorla.data.images import decode_image, write_image
from mandorla.errors import MandorlaError

RNG = np.random.default_rng(0)
GREY8 = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR8 = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(("pixels", "most"), [(GREY8, 255), (COLOUR8, 255), (GREY16, 65535)])
def test_reads_every_bit(tmp_path, suffix, pixels, most):
    path = tmp_path / f"image{suffix}"
    Image.fromarray(pixels).save(path)
    image = read_image(path)
    assert image.dtype == np.float32
    assert decode_image(path).dtype == pixels.dtype
    np.testing.assert_allclose(image, np.atleast_3d(pixels).transpose(2, 0, 1) / most, atol=1e-7)


def test_reads_big_endian_float_bilevel_and_jpeg(tmp_path):
    tifffile.imwrite(tmp_path / "big.tif", GREY16, byteorder=">")
    np.testing.assert_array_equal(decode_image(tmp_path / "big.tif")[0], GREY16)
    tifffile.imwrite(tmp_path / "float.tif", (GREY16 / 65535).astype(np.float32))
    np.testing.assert_allclose(read_image(tmp_path / "float.tif")[0], GREY16 / 65535, atol=1e-6)
    Image.fromarray(GREY8 > 99).save(tmp_path / "bilevel.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bilevel.png")[0], GREY8 > 99)
    Image.fromarray(np.full((16, 16), 77, np.uint8)).save(tmp_path / "flat.jpg")
    np.testing.assert_allclose(read_image(tmp_path / "flat.jpg"), 77 / 255, atol=1.1 / 255)


def test_palette_becomes_colour_and_transparency_black(tmp_path):
    palette = Image.fromarray(COLOUR8).quantize(256)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(
        decode_image(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")).transpose(2, 0, 1)
    )
    alpha = np.array([0, 255, 51, 255, 0, 255, 255], np.uint8) * np.ones((5, 1), np.uint8)
    Image.fromarray(np.dstack([COLOUR8, alpha])).save(tmp_path / "colour.png")
    expected = COLOUR8 / 255 * (alpha / 255)[..., None]
    np.testing.assert_allclose(read_image(tmp_path / "colour.png"), expected.transpose(2, 0, 1), atol=1 / 255)
    Image.fromarray(np.dstack([GREY8, alpha])).save(tmp_path / "grey.png")
    np.testing.assert_allclose(read_image(tmp_path / "grey.png")[0], GREY8 / 255 * (alpha / 255), atol=1 / 255)
    Image.fromarray(GREY8).save(tmp_path / "one.png", transparency=int(GREY8[2, 3]))
    np.testing.assert_array_equal(decode_image(tmp_path / "one.png")[0], np.where(GREY8[2, 3] == GREY8, 0, GREY8))


def test_applies_the_orientation_tag(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show upright
    Image.fromarray(GREY8).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(decode_image(tmp_path / "turned.png")[0], np.rot90(GREY8, -1))


def write_png(path, pixels, colour_type):
    """Write a 16-bit PNG by hand; Pillow cannot."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_refuses_what_would_be_cut(tmp_path):
    colour16 = RNG.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    write_png(tmp_path / "colour.png", colour16, 2)
    write_png(tmp_path / "alpha.png", colour16[..., :2], 4)
    tifffile.imwrite(tmp_path / "colour.tif", colour16, photometric="rgb")
    tifffile.imwrite(tmp_path / "signed.tif", GREY16.astype(np.int32) - 9)
    for name in ("colour.png", "alpha.png", "colour.tif", "signed.tif"):
        with pytest.raises(MandorlaError, match=rf"{name}: (16|32)-bit pixels .* without loss"):
            decode_image(tmp_path / name)


def test_names_what_cannot_be_read(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("no image")
    Image.fromarray(COLOUR8).resize((64, 64)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    for name in ("empty.png", "text.jpg", "cut.png"):
        with pytest.raises(MandorlaError, match=f"{name}: cannot be read as an image"):
            decode_image(tmp_path / name)
    with pytest.raises(MandorlaError, match=r"absent.png: no such file"):
        decode_image(tmp_path / "absent.png")
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([GREY8] * 3), photometric="minisblack")
    with pytest.raises(MandorlaError, match="pages.tif: holds 3 images"):
        decode_image(tmp_path / "pages.tif")


def test_writes_what_it_reads(tmp_path):
    for channels in (1, 3):
        image = RNG.uniform(-0.2, 1.2, (channels, 6, 8))
        write_image(tmp_path / "image.png", image)
        np.testing.assert_allclose(read_image(tmp_path / "image.png"), image.clip(0, 1), atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize(
    ("name", "image", "message"),
    [
        ("a.png", np.zeros((2, 4, 4)), r"not \(2, 4, 4\)"),
        ("a.png", np.full((1, 4, 4), np.nan), "NaN"),
        ("a.gif", np.zeros((1, 4, 4)), "this kind of file has no uint8 pixels"),
        ("absent/a.png", np.zeros((1, 4, 4)), "cannot be written"),
    ],
)
def test_refuses_to_write(tmp_path, name, image, message):
    with pytest.raises(MandorlaError, match=message):
        write_image(tmp_path / name, image)
    assert not list(tmp_path.iterdir())
