"""Draw with Pillow: ranked lists with right, wrong and junk marked, attention maps, thumbnails for a page.

Marks are told apart by the border's style and by a symbol, so that they can be read in grey and by everybody.
"""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmfa.data.records import Bytes, Floats

Mark = Literal["query", "right", "wrong", "junk", "plain"]

MAX_BYTES = 200_000
"""Of one picture file."""
THUMBNAIL_HEIGHT = 160
"""Pixels, on a page."""
WHITE, INK, FAINT = (255, 255, 255), (24, 24, 24), (110, 110, 110)
COLOURS: dict[Mark, tuple[int, int, int]] = {
    "query": INK, "right": (0, 114, 78), "wrong": (200, 62, 18), "junk": FAINT, "plain": (200, 200, 200),
}  # fmt: skip
"""Of borders; apart for colour-blind readers too."""
_DASHES: dict[Mark, tuple[int, int]] = {
    "right": (1, 0),
    "wrong": (9, 5),
    "junk": (2, 4),
    "query": (1, 0),
    "plain": (1, 0),
}
"""Pixels drawn and left out in turn; (1, 0) is a solid line."""
_BORDER, _GAP, _FONT = 3, 8, 12
_HEAT = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=np.float32)
"""Anchors of matplotlib's inferno: lightness rises all the way, so it reads in grey."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Cell:
    """One image in a row."""

    image_HWC: Bytes
    """uint8."""
    mark: Mark = "plain"
    """Decides border and symbol."""
    caption: tuple[str, ...] = ()
    """Lines below it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Row:
    """One line of a sheet."""

    title: str
    """Above the images."""
    cells: Sequence[Cell]
    """From left to right."""


def sheet(rows: Sequence[Row], *, height: int = 112, width: int = 56) -> Image.Image:
    """Draw rows of images, all of one size.

    Args:
        rows: from top to bottom.
        height: of an image, pixels.
        width: of an image, pixels.
    """
    font = ImageFont.load_default(_FONT)
    text_height = _FONT + 3
    lines = max((len(cell.caption) for row in rows for cell in row.cells), default=0)
    title_height = text_height if any(row.title for row in rows) else 0
    cell_width, row_height = width + 2 * _BORDER + _GAP, text_height * lines + height + 2 * _BORDER + 2 * _GAP
    row_height += title_height
    longest = max(font.getlength(row.title) for row in rows)
    total = max(max(len(row.cells) for row in rows) * cell_width + _GAP, int(longest) + 2 * _GAP)
    canvas = Image.new("RGB", (total, len(rows) * row_height + _GAP), WHITE)
    draw = ImageDraw.Draw(canvas)
    for number, row in enumerate(rows):
        top = _GAP + number * row_height
        draw.text((_GAP, top), row.title, fill=INK, font=font)
        for column, cell in enumerate(row.cells):
            left = _GAP + column * cell_width
            _draw_cell(draw, canvas, cell, left=left, top=top + title_height + 2, size=(width, height), font=font)
    return canvas


def _draw_cell(
    draw: ImageDraw.ImageDraw,
    canvas: Image.Image,
    cell: Cell,
    *,
    left: int,
    top: int,
    size: tuple[int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    width, height = size
    image = Image.fromarray(cell.image_HWC).resize(size, Image.Resampling.BICUBIC)
    canvas.paste(image, (left + _BORDER, top + _BORDER))
    right, bottom = left + width + 2 * _BORDER - 1, top + height + 2 * _BORDER - 1
    colour, style = COLOURS[cell.mark], _DASHES.get(cell.mark, (1, 0))
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    for inset in range(_BORDER):
        inner = [(x + (inset if x == left else -inset), y + (inset if y == top else -inset)) for x, y in corners]
        for start, end in itertools.pairwise(inner):
            for piece in _pieces(start, end, style):
                draw.line(piece, fill=colour)
    _draw_symbol(draw, cell.mark, right - 15, bottom - 15)
    for number, line in enumerate(cell.caption):
        draw.text((left + _BORDER, bottom + 2 + number * (_FONT + 3)), line, fill=INK, font=font)


def _pieces(start: tuple[int, int], end: tuple[int, int], style: tuple[int, int]) -> Iterator[list[tuple[int, int]]]:
    """Yield the drawn pieces of a horizontal or vertical line."""
    drawn, left_out = style
    if not left_out:
        yield [start, end]
        return
    (x0, y0), (x1, y1) = start, end
    length = abs(x1 - x0) + abs(y1 - y0)
    step = ((x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0))
    for begin in range(0, length + 1, drawn + left_out):
        last = min(begin + drawn - 1, length)
        yield [(x0 + step[0] * begin, y0 + step[1] * begin), (x0 + step[0] * last, y0 + step[1] * last)]


def _draw_symbol(draw: ImageDraw.ImageDraw, mark: Mark, x: int, y: int) -> None:
    """Draw a tick, a cross or a dash on a white disc, its corner at (x, y)."""
    strokes: dict[Mark, list[list[tuple[int, int]]]] = {
        "right": [[(3, 7), (6, 10), (11, 3)]],
        "wrong": [[(4, 4), (10, 10)], [(10, 4), (4, 10)]],
        "junk": [[(3, 7), (11, 7)]],
    }
    if mark in strokes:
        draw.ellipse([x, y, x + 14, y + 14], fill=WHITE, outline=COLOURS[mark])
        for stroke in strokes[mark]:
            draw.line([(x + dx, y + dy) for dx, dy in stroke], fill=COLOURS[mark], width=2)


def attention(image_HWC: Bytes, map_hw: Floats, *, height: int, width: int) -> Bytes:
    """Lay a feature map over an image: dark where it is silent, through red to pale yellow where it is highest.

    Args:
        image_HWC: uint8.
        map_hw: activations, scaled by their own largest; what is below 0 counts as silent.
        height: of the result, pixels.
        width: of the result, pixels.

    Returns:
        uint8 [height, width, 3].
    """
    image = Image.fromarray(image_HWC).resize((width, height), Image.Resampling.BICUBIC)
    grey_HW1 = np.asarray(image.convert("L"), dtype=np.float32)[:, :, None]
    wide = Image.fromarray(np.maximum(map_hw, 0).astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    heat_HW = np.clip(np.asarray(wide) / max(float(map_hw.max()), 1e-12), 0, 1)
    at_HW = heat_HW * (len(_HEAT) - 1)
    below_HW = np.minimum(at_HW.astype(np.int64), len(_HEAT) - 2)
    share_HW1 = (at_HW - below_HW)[:, :, None]
    colour_HWC = _HEAT[below_HW] * (1 - share_HW1) + _HEAT[below_HW + 1] * share_HW1
    # The image stays visible where the map is silent, and gives way where it is not.
    weight_HW1 = 0.15 + 0.7 * heat_HW[:, :, None]
    mixed_HWC: Floats = grey_HW1 * 0.9 * (1 - weight_HW1) + colour_HWC * weight_HW1
    return np.clip(mixed_HWC, 0, 255).astype(np.uint8)


def write(picture: Image.Image, path: Path) -> None:
    """Write a JPEG of at most :data:`MAX_BYTES`, as good as that allows.

    Raises:
        OSError: the file cannot be written.
    """
    for quality in (90, 80, 70, 60, 45, 30, 15):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= MAX_BYTES:
            break
    path.write_bytes(buffer.getvalue())


def thumbnail(image_HWC: Bytes, *, height: int = THUMBNAIL_HEIGHT) -> str:
    """Return an image as a JPEG in a ``data:`` address, no higher than that and twice as wide at most."""
    image = Image.fromarray(image_HWC)
    image.thumbnail((2 * height, height))
    return f"data:image/jpeg;base64,{base64.b64encode(encoded(np.asarray(image))).decode()}"


def encoded(image_HWC: Bytes) -> bytes:
    """Return an image as the content of a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
