"""Where everything is in the picture that `picture` draws."""

from __future__ import annotations

import math
from dataclasses import dataclass

Box = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom exclusive

# All lengths are pixels of a picture meant to be shown at half its size.
_WIDTH = 2400  # target; the real width differs, since tokens are whole pixels and large enough to be seen
_ASPECT = 1.6  # target ratio of width to height
MARGIN = 48
GAP = 20  # between frames
BAR = 8  # the coloured line around the beginning of a segment
CAPTION = 38  # line of text between the bar and the frame
_HEADER = 124
_LEGEND_WIDTH, _LEGEND_HEIGHT = 840, 188
OUTLINE = 2
_MIN_PATCH, _MAX_PATCH = 10, 48


@dataclass(frozen=True)
class Layout:
    """Where everything is: `num_frames` frames of `grid` x `grid` tokens in `columns` columns."""

    num_frames: int
    columns: int
    grid: int
    patch_width: int
    patch_height: int

    @property
    def rows(self) -> int:
        """Number of rows of frames; the last row may not be full."""
        return math.ceil(self.num_frames / self.columns)

    @property
    def frame_size(self) -> tuple[int, int]:
        """(width, height) of a drawn frame."""
        return self.grid * self.patch_width, self.grid * self.patch_height

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the picture."""
        _, _, right, bottom = self._place(self.rows - 1, self.columns - 1)
        below = 0 if self._legend_fits_last_row else GAP + _LEGEND_HEIGHT
        return max(right, MARGIN + _LEGEND_WIDTH) + MARGIN, bottom + below + MARGIN

    @property
    def legend_corner(self) -> tuple[int, int]:
        """Left and top of the legend: in the empty places of the last row, or below it."""
        if self._legend_fits_last_row:
            left, top, _, bottom = self._place(self.rows - 1, self.num_frames % self.columns)
            return left + GAP, (top - CAPTION - BAR + bottom - _LEGEND_HEIGHT) // 2
        left, _, _, bottom = self._place(self.rows - 1, 0)
        return left, bottom + GAP

    def frame_box(self, frame: int) -> Box:
        """The box of a frame, without bar and caption."""
        return self._place(*divmod(frame, self.columns))

    def token_box(self, flat_index: int) -> Box:
        """The box of a token, given its flat index frame * N + position."""
        frame, position = divmod(flat_index, self.grid**2)
        row, column = divmod(position, self.grid)
        left, top, _, _ = self.frame_box(frame)
        left, top = left + column * self.patch_width, top + row * self.patch_height
        return left, top, left + self.patch_width, top + self.patch_height

    @property
    def _legend_fits_last_row(self) -> bool:
        free = -self.num_frames % self.columns
        width, height = self.frame_size
        return free * (width + GAP) >= _LEGEND_WIDTH + 2 * GAP and BAR + CAPTION + height >= _LEGEND_HEIGHT

    def _place(self, row: int, column: int) -> Box:
        width, height = self.frame_size
        left = MARGIN + column * (width + GAP)
        top = _HEADER + row * (BAR + CAPTION + height + GAP) + BAR + CAPTION
        return left, top, left + width, top + height


def choose_layout(num_frames: int, frame_width: int, frame_height: int, grid: int) -> Layout:
    """The layout whose number of columns best balances the target shape and few empty places."""

    ratio = frame_height / frame_width

    def layout(columns: int) -> Layout:
        room = (_WIDTH - 2 * MARGIN - (columns - 1) * GAP) / (columns * grid)
        width = min(max(room, _MIN_PATCH / min(1.0, ratio)), _MAX_PATCH / max(1.0, ratio))
        return Layout(
            num_frames=num_frames,
            columns=columns,
            grid=grid,
            patch_width=max(2 * OUTLINE, round(width)),
            patch_height=max(2 * OUTLINE, round(width * ratio)),
        )

    def misfit(candidate: Layout) -> float:
        width, height = candidate.size
        empty = candidate.columns * candidate.rows / num_frames - 1
        return abs(math.log(width / height / _ASPECT)) + empty

    return min((layout(columns) for columns in range(1, num_frames + 1)), key=misfit)
