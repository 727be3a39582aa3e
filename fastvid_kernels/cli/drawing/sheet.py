"""A contact sheet of several methods: one row for each, the same frames in every row, kept tokens in colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from fastvid_kernels.cli.drawing.picture import BACKGROUND, MUTED, SALIENT, TEXT, dimmed, drawable, font, width_of

# Pixels of a picture meant to be shown at half its size.
_WIDTH, _MARGIN, _GAP = 2400, 48, 16
_LABEL = 420
_HEADER, _FOOTER = 150, 76
_OUTLINE = 2
_LEAST_TOKEN = 3 * _OUTLINE


@dataclass(frozen=True)
class Row:
    """What one method kept.

    Attributes:
        title: its name.
        figures: lines below the title.
        indices: flat indices frame * grid² + position of what it kept.
    """

    title: str
    figures: Sequence[str]
    indices: Sequence[int]


def draw_sheet(
    frames: np.ndarray,
    shown: Sequence[int],
    captions: Sequence[str],
    rows: Sequence[Row],
    grid: int,
    title: str,
    note: str,
) -> Image.Image:
    """Draw the rows below each other.

    Args:
        frames: `[F, H, W, 3]` uint8 RGB.
        shown: the frames that have a column.
        captions: the line above each of these.
        rows: the rows, from top to bottom.
        grid: tokens along each side of a frame.
        title: the first line.
        note: the last line.
    """
    _, height, width, _ = frames.shape
    room = (_WIDTH - 2 * _MARGIN - _LABEL) // len(shown) - _GAP
    token_width = max(_LEAST_TOKEN, min(room, 640) // grid)
    token_height = max(_LEAST_TOKEN, round(token_width * height / width))
    size = (token_width * grid, token_height * grid)
    step_x, step_y = size[0] + _GAP, max(size[1], 40 + 34 * (1 + max(len(row.figures) for row in rows))) + _GAP
    right = _MARGIN + _LABEL + len(shown) * step_x - _GAP
    picture = Image.new("RGB", (max(_WIDTH, right + _MARGIN), _HEADER + len(rows) * step_y + _FOOTER), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    _draw_text(draw, (_MARGIN, 78), title, 46, TEXT, picture.width - 2 * _MARGIN)
    images = [
        Image.fromarray(np.ascontiguousarray(frames[frame])).resize(size, Image.Resampling.LANCZOS) for frame in shown
    ]
    for column, caption in enumerate(captions):
        _draw_text(draw, (_MARGIN + _LABEL + column * step_x, _HEADER - 14), caption, 22, MUTED, size[0])
    for number, row in enumerate(rows):
        top = _HEADER + number * step_y
        _draw_text(draw, (_MARGIN, top + 34), row.title, 32, TEXT, _LABEL - _GAP)
        for line, figure in enumerate(row.figures):
            _draw_text(draw, (_MARGIN, top + 72 + 32 * line), figure, 24, MUTED, _LABEL - _GAP)
        kept = set(row.indices)
        for column, (frame, image) in enumerate(zip(shown, images, strict=True)):
            places = [place for place in range(grid**2) if frame * grid**2 + place in kept]
            cell = _cell(image, places, grid, (token_width, token_height))
            picture.paste(cell, (_MARGIN + _LABEL + column * step_x, top))
    _draw_text(draw, (_MARGIN, picture.height - 30), note, 24, MUTED, picture.width - 2 * _MARGIN)
    return picture


def _cell(image: Image.Image, places: Sequence[int], grid: int, token: tuple[int, int]) -> Image.Image:
    cell = dimmed(image)
    draw = ImageDraw.Draw(cell)
    for place in places:
        row, column = divmod(place, grid)
        left, top = column * token[0], row * token[1]
        box = (left, top, left + token[0], top + token[1])
        cell.paste(image.crop(box), box)
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=SALIENT, width=_OUTLINE)
    return cell


def _draw_text(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: tuple[int, int, int], room: int
) -> None:
    """Draw a line of text, `at` its left end on the baseline, in a font small enough for `room` pixels."""
    text = drawable(text)
    while size > 14 and width_of(text, size) > room:
        size -= 1
    draw.text(at, text, fill=colour, font=font(size), anchor="ls")
