"""Draw the result of pruning: the sampled frames in order, their segments, and the kept tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastvid_kernels.cli.common.output import written_whole
from fastvid_kernels.cli.drawing.layout import BAR, CAPTION, GAP, MARGIN, OUTLINE, Layout, choose_layout

Colour = tuple[int, int, int]

BACKGROUND: Colour = (13, 17, 23)
TEXT: Colour = (230, 237, 243)
MUTED: Colour = (145, 152, 161)
SALIENT: Colour = (255, 184, 28)
ANCHOR: Colour = (38, 226, 214)
SEGMENT_COLOURS: tuple[Colour, ...] = ((167, 139, 250), (244, 114, 182), (96, 165, 250), (190, 214, 110))

_DIMMED = np.array([0.60, 0.62, 0.66], dtype=np.float32)  # a dimmed pixel's colour: this times its luma
_DIMMED_STEP = 4  # luma is rounded down to multiples of this: invisible, and the file is a quarter smaller
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def draw_pruning(
    frames: np.ndarray,
    captions: Sequence[Sequence[str]],
    segments: Sequence[tuple[int, int]],
    salient: Sequence[int],
    anchors: Sequence[int],
    grid: int,
    title: str,
    figures: str,
    note: str,
) -> tuple[Image.Image, Layout]:
    """Draw the frames with their segments and tokens.

    Args:
        frames: `[F, H, W, 3]` uint8 RGB.
        captions: for each frame, candidates for the line above it; the first that fits is drawn.
        segments: (first frame, one past the last) of each segment, in order.
        salient: flat indices frame * grid² + position of the tokens kept unchanged; outlined in `SALIENT`.
        anchors: flat indices of the tokens that others were merged into; outlined in `ANCHOR`.
        grid: tokens along each side of a frame.
        title: at the left of the first line.
        figures: at the right of the first line, in smaller type.
        note: a line below the legend.

    Returns:
        The picture and its layout.
    """
    layout = choose_layout(len(frames), frames.shape[2], frames.shape[1], grid)
    picture = Image.new("RGB", layout.size, BACKGROUND)
    draw = ImageDraw.Draw(picture)
    drawn = [
        Image.fromarray(np.ascontiguousarray(frame)).resize(layout.frame_size, Image.Resampling.LANCZOS)
        for frame in frames
    ]
    for frame, image in enumerate(drawn):
        picture.paste(dimmed(image), layout.frame_box(frame))
    for colour, kept in ((SALIENT, salient), (ANCHOR, anchors)):
        for token in kept:
            frame = token // grid**2
            left, top, right, bottom = layout.token_box(token)
            x, y, _, _ = layout.frame_box(frame)
            picture.paste(drawn[frame].crop((left - x, top - y, right - x, bottom - y)), (left, top))
            draw.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=OUTLINE)
    for number, (start, end) in enumerate(segments, start=1):
        _draw_segment(draw, layout, number, start, end, captions)
    _draw_header(draw, layout, title, figures)
    _draw_legend(draw, layout, _dimmed_label(segments, anchors, grid), note)
    return picture, layout


def _dimmed_label(segments: Sequence[tuple[int, int]], anchors: Sequence[int], grid: int) -> str:
    """The legend of dimmed tokens. A very small budget leaves segments without anchors, where nothing is merged."""
    anchor_frames = {token // grid**2 for token in anchors}
    if all(any(start <= frame < end for frame in anchor_frames) for start, end in segments):
        return "dimmed: removed, merged into anchors"
    return "dimmed: removed"


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a PNG file completely or not at all.

    Raises:
        CommandError: it cannot be written.
    """
    with written_whole(path) as unfinished:
        picture.save(unfinished, format="PNG", compress_level=7)


def dimmed(image: Image.Image) -> Image.Image:
    """The image, darker and without colour, so that only kept tokens have colour."""
    luma = np.asarray(image, dtype=np.float32) @ _LUMA // _DIMMED_STEP * _DIMMED_STEP
    return Image.fromarray((luma[..., None] * _DIMMED).astype(np.uint8))


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that the picture is the same on every machine."""
    return ImageFont.load_default(size)


def drawable(text: str) -> str:
    """`text` with "?" for characters that Pillow's own font lacks: file names may contain any."""
    glyphs = font(20)
    missing = bytes(glyphs.getmask("\uffff"))
    return "".join(c if c.isspace() or bytes(glyphs.getmask(c)) != missing else "?" for c in text)


def _draw_header(draw: ImageDraw.ImageDraw, layout: Layout, title: str, figures: str) -> None:
    left, right = MARGIN, layout.size[0] - MARGIN
    title, figures = drawable(title), drawable(figures)
    size = 52
    while size > 20 and width_of(title, size) + width_of(figures, _smaller(size)) + 60 > right - left:
        size -= 1
    room = right - left - width_of(figures, _smaller(size)) - 60
    if width_of(title, size) > room:
        while title and width_of(title + "...", size) > room:
            title = title[:-1]
        title += "..."
    baseline = 80
    draw.text((left, baseline), title, fill=TEXT, font=font(size), anchor="ls")
    draw.text((right, baseline), figures, fill=MUTED, font=font(_smaller(size)), anchor="rs")


def _smaller(size: int) -> int:
    return round(size * 0.6)


def width_of(text: str, size: int) -> int:
    """The width of a line of text in pixels."""
    return math.ceil(font(size).getlength(text))


def _draw_legend(draw: ImageDraw.ImageDraw, layout: Layout, dimmed_label: str, note: str) -> None:
    left, top = layout.legend_corner
    entries = (
        (SALIENT, "salient token: kept as it is"),
        (ANCHOR, "anchor token: similar tokens are merged into it"),
        (None, dimmed_label),
    )
    for row, (colour, label) in enumerate(entries):
        middle = top + 22 + row * 46
        swatch = (left, middle - 13, left + 42, middle + 12)
        if colour is None:
            draw.rectangle(swatch, fill=(58, 61, 65))
        else:
            draw.rectangle(swatch, outline=colour, width=4)
        draw.text((left + 64, middle), label, fill=TEXT, font=font(27), anchor="lm")
    draw.text((left, top + 22 + 3 * 46 + 4), drawable(note), fill=MUTED, font=font(22), anchor="lm")


def _draw_segment(
    draw: ImageDraw.ImageDraw, layout: Layout, number: int, start: int, end: int, captions: Sequence[Sequence[str]]
) -> None:
    """A line above the segment's frames, with a numbered flag and an edge where the segment begins."""
    colour = SEGMENT_COLOURS[(number - 1) % len(SEGMENT_COLOURS)]
    for frame in range(start, end):
        left, top, right, bottom = layout.frame_box(frame)
        bar_top = top - CAPTION - BAR
        goes_on = frame + 1 < end and (frame + 1) % layout.columns != 0
        draw.rectangle((left, bar_top, (right + GAP if goes_on else right) - 1, bar_top + BAR - 1), fill=colour)
        text_left, middle = left, top - CAPTION // 2
        if frame == start:
            flag_right = left + max(36, width_of(str(number), 25) + 20)
            draw.rectangle((left - BAR, bar_top, left - 1, bottom - 1), fill=colour)
            draw.rectangle((left, bar_top, flag_right, top - 6), fill=colour)
            flag_middle = ((left - BAR + flag_right) / 2, middle - 3)
            draw.text(flag_middle, str(number), fill=BACKGROUND, font=font(25), anchor="mm")
            text_left = flag_right + 12
        caption = next((text for text in captions[frame] if width_of(text, 22) <= right - text_left), "")
        draw.text((text_left, middle), caption, fill=MUTED, font=font(22), anchor="lm")
