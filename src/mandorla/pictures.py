"""Grids of samples of any modality as PNG.

A picture is transparent between its tiles and its lettering is mid-grey, so that it suits light and dark pages.
Volumes show their middle slice, signals lines, plain vectors bars.
"""

import io
from collections.abc import Sequence
from functools import cache
from itertools import accumulate

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mandorla.data.images import png_text

_TILE, _LARGEST_TILE, _GAP, _FONT, _GREY = 72, 160, 4, 13, (128, 128, 128, 255)
_LINE = 17  # pixels from one line of lettering to the next
_PLOT = (160, 96)  # pixels of a signal's picture, width and height
_MOST_LINES = 3  # in one plot: more of them hide each other
_MOST_NAMES = 9  # of bars: more are higher than a tile
_BAND = 10  # space before a row or column that begins a new block


def grid(
    rows: Sequence[Sequence[Tensor | Image.Image | None]],
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
    bands: tuple[Sequence[int], Sequence[int]] = ((), ()),
    note: str = "",
) -> bytes:
    """Draw samples `(C, *size)` in [0, 1], or their tiles, as a table; None leaves a place empty. Returns a PNG.

    Small images are enlarged by a whole number, pixel by pixel. `bands` are the rows and columns set off by a gap. A
    `note` is the PNG's text `mandorla`.
    """
    tiles = [[tile(x) if isinstance(x, Tensor) else x for x in row] for row in rows]
    width = max(picture.width for row in tiles for picture in row if picture)
    heights = [max((picture.height for picture in row if picture), default=0) for row in tiles]
    font = _font()
    left = max((int(font.getlength(name)) + 12 for name in row_names), default=0)
    words = [font.getlength(word) for name in column_names for word in name.split()]
    room = max([width, *(int(word) + 1 for word in words)])  # of a column
    column_names = [_wrapped(name, font, room) for name in column_names]
    top = max((22 + _LINE * name.count("\n") for name in column_names), default=0)
    xs = [left + j * (room + _GAP) + _BAND * sum(b <= j for b in bands[1]) for j in range(max(map(len, tiles)))]
    above = [0, *accumulate(height + _GAP for height in heights)]
    ys = [top + y + _BAND * sum(b <= i for b in bands[0]) for i, y in enumerate(above[:-1])]
    canvas = Image.new("RGBA", (xs[-1] + room, ys[-1] + heights[-1]))
    pen = ImageDraw.Draw(canvas)
    for y, height, name in zip(ys, heights, row_names, strict=False):
        pen.text((left - 8, y + height // 2), name, _GREY, font, anchor="rm")
    for x, name in zip(xs, column_names, strict=False):
        pen.text((x + room // 2, top // 2 - 2), name, _GREY, font, anchor="mm", align="center")
    for y, height, row in zip(ys, heights, tiles, strict=True):
        for x, picture in zip(xs, row, strict=False):
            if picture:
                canvas.paste(picture, (x + (room - picture.width) // 2, y + (height - picture.height) // 2))
    return to_png(canvas, note)


def tile(x: Tensor, names: Sequence[str] = ()) -> Image.Image:
    """Return the picture of one sample `(C, *size)` in [0, 1], of a handy size; `names` are those of `drawable`."""
    x = drawable(x, names)
    rgb = x if len(x) == 3 else x.expand(3, -1, -1)
    zoom = max(1, round(_TILE / max(rgb.shape[1:])))
    pixels = (255 * rgb).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels.repeat(zoom, axis=0).repeat(zoom, axis=1))
    picture.thumbnail((_LARGEST_TILE, _LARGEST_TILE), Image.Resampling.BOX)
    return picture


def drawable(x: Tensor, names: Sequence[str] = ()) -> Tensor:
    """Return a picture `(1 or 3, H, W)` of one sample `(C, *size)` in [0, 1].

    It is the image itself, of neither one nor three channels the first; of a volume the middle slice; of a signal
    `(C, L)` a line for each channel, of many one above the other; of a plain vector `(C,)` or `(C, 1)` a bar for each,
    from 0 at the left to 1, with the `names` of the channels if they are few.
    """
    x = x.detach().float().cpu().clamp(0, 1)
    if x.ndim < 3:
        return _lines(x) if x.ndim == 2 and x.shape[1] > 1 else _bars(x.flatten().tolist(), names)
    if x.ndim == 4:
        x = x[:, x.shape[1] // 2]
    return x if len(x) == 3 else x[:1]


def _bars(values: Sequence[float], names: Sequence[str]) -> Tensor:
    (width, height), named = _PLOT, len(names) == len(values) <= _MOST_NAMES
    height = max(height, _LINE * len(values) + 4) if named else height
    image = Image.new("L", (width, height), 255)
    pen = ImageDraw.Draw(image)
    room = (height - 4) / len(values)
    for number, value in enumerate(values):
        top, bottom = 2 + number * room, 2 + (number + 1) * room - (2 if room > 4 else 0)
        if value:
            pen.rectangle((2, top, 2 + (width - 5) * value, bottom), fill=190)
        if named:
            pen.text((6, (top + bottom) / 2), _cut(names[number], width - 12), 0, _font(), anchor="lm")
    pen.rectangle((0, 0, width - 1, height - 1), outline=220)
    return torch.from_numpy(np.array(image))[None] / 255


def _cut(text: str, room: int) -> str:
    """Return what of `text` is not wider than `room` pixels."""
    while _font().getlength(text) > room:
        text = text.removesuffix("…")[:-1] + "…"
    return text


def _lines(x: Tensor) -> Tensor:
    (width, height), image = _PLOT, Image.new("L", _PLOT, 255)
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, width - 1, height - 1), outline=220)
    apart = len(x) > _MOST_LINES
    room = (height - 5) / (len(x) if apart else 1)
    for number, line in enumerate(x.tolist()):
        top, fill, thick = (2 + number * room, 0, 1) if apart else (2, 60 * number, 3)
        points = [(2 + (width - 5) * i / (len(line) - 1), top + room * (1 - y)) for i, y in enumerate(line)]
        pen.line(points, fill=fill, width=thick, joint="curve")
    return torch.from_numpy(np.array(image))[None] / 255


def _wrapped(text: str, font: ImageFont.FreeTypeFont, room: int) -> str:
    """Return `text` with ends of lines between words, so that none is wider than `room` pixels, but for a long word."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


@cache
def _font() -> ImageFont.FreeTypeFont:
    """Return the font of the lettering: Pillow's own has no letters beyond English."""
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", _FONT)


def to_png(image: Image.Image, note: str = "") -> bytes:
    """Return a picture as PNG; a `note` is its text `mandorla`."""
    file = io.BytesIO()
    image.save(file, format="PNG", pnginfo=png_text(note) if note else None)
    return file.getvalue()
