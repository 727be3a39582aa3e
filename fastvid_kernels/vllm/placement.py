"""Where tokens stand: the positions of a prompt before its videos are seen, and of a video's tokens once they are.

A position is three numbers (time, row, column), as in M-RoPE. What a video takes of them depends on its size alone, so
the text after it is placed before the data is there, and a cache hit that covers the video changes nothing. Which of
the video's own positions are kept depends on what it shows; they come with its embeddings, relative to its first.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import torch
from torch import Tensor

from fastvid_kernels.vllm.digits import from_digits, to_digits


@dataclass(frozen=True)
class Item:
    """An image or a video in a prompt.

    Attributes:
        offset: its first token.
        length: its tokens in the prompt.
        span: the positions it takes: what follows it stands this far behind its first.
        rows: int64 `[3, length]`, relative positions; None: a pruned video's, not known yet.
    """

    offset: int
    length: int
    span: int
    rows: Tensor | None = None


def prompt_positions(length: int, items: Sequence[Item]) -> tuple[Tensor, int]:
    """Positions of a prompt, but for the tokens of pruned videos: all of these have their video's last position.

    That one is right for a video's last token where that is never pruned; and what follows can be placed by what is
    before it.

    Args:
        length: of the prompt.
        items: in order of their offsets.

    Returns:
        int64 `[3, length]`, and how far the first generated token stands behind `length`.
    """
    positions = torch.empty(3, length, dtype=torch.int64)
    at = cursor = 0
    for item in items:
        text = item.offset - cursor
        positions[:, cursor : item.offset] = torch.arange(at, at + text)
        at += text
        cursor = item.offset + item.length
        positions[:, item.offset : cursor] = at + item.span - 1 if item.rows is None else at + item.rows
        at += item.span
    positions[:, cursor:] = torch.arange(at, at + length - cursor)
    return positions, at - cursor


def in_grid(frames: int, rows: int, columns: int, per_frame: float = 1.0) -> Tensor:
    """Relative positions of a grid of tokens, int64 `[3, frames * rows * columns]`.

    Args:
        frames: in time.
        rows: in a frame.
        columns: in a row.
        per_frame: positions from a frame to the next, rounded down after they are summed.
    """
    # float64, as the model itself counts them.
    times = (torch.arange(frames, dtype=torch.float64) * per_frame).long()
    grid = torch.meshgrid(times, torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([axis.flatten() for axis in grid])


def between_timestamps(texts: Sequence[int], rows: int, columns: int, kept: Tensor) -> Tensor:
    """Relative positions of a video whose frames stand between words, int64 `[3, length]`.

    Args:
        texts: for each frame, tokens of text before it; after each there is one more.
        rows: of tokens in a frame.
        columns: in a row.
        kept: int64 `[kept]`, ascending: `frame * rows * columns + place` of the kept tokens.
    """
    parts: list[Tensor] = []
    at = 0
    frames = torch.div(kept, rows * columns, rounding_mode="floor")
    grid = in_grid(1, rows, columns)
    for frame, text in enumerate(texts):
        parts.append(torch.arange(at, at + text).expand(3, -1))
        at += text
        parts.append(grid[:, kept[frames == frame] % (rows * columns)] + at)
        at += max(rows, columns)
        parts.append(torch.full((3, 1), at))
        at += 1
    return torch.cat(parts, dim=1)


def with_positions(rows: Tensor, positions: Tensor, lead: int = 0) -> Tensor:
    """A video's rows with what `place` needs.

    Args:
        rows: `[length, D]`, the embeddings of a pruned video.
        positions: int64 `[3, length]`, relative.
        lead: how many of its tokens in the prompt come before its first placeholder.

    Returns:
        `[length, D + 15]`.
    """
    return torch.cat([rows, position_channels(positions, lead).to(rows)], dim=1)


def position_channels(positions: Tensor, lead: int = 0) -> Tensor:
    """The added channels of `with_positions`, float32 `[length, 15]`: rank in the video, lead, time, row, column."""
    length = positions.shape[1]
    rank = torch.arange(length, device=positions.device)
    return to_digits(torch.stack([rank, torch.full_like(rank, lead), *positions], dim=1), torch.float32)


def place(
    ids: Sequence[int],
    embeddings: Sequence[Tensor],
    positions: Tensor,
    computed: int,
    placeholders: AbstractSet[int],
    width: int,
) -> tuple[list[Tensor], Tensor]:
    """Place the tokens of the videos in a part of a prompt.

    The same whatever was placed before, so that a request that is interrupted can start again.

    Args:
        ids: of the whole prompt.
        embeddings: of the images and videos in the part, in order, each `[length, width]` if nothing of it was pruned
            and `[length, width + 15]` otherwise; the first may lack what an earlier part had.
        positions: int64 `[3, length]`, of the whole prompt.
        computed: where the part begins.
        placeholders: ids that stand for tokens of images and videos.
        width: channels of an embedding.

    Returns:
        The embeddings `[length, width]`, and the positions.
    """
    positions = positions.clone()
    cursor = computed
    for rows in embeddings:
        if rows.shape[1] == width:
            cursor = _next(ids, placeholders, cursor) + len(rows)
            continue
        rank, lead, *relative = from_digits(rows[:, width:]).to(positions.device).T
        first = int(rank[0])
        start = computed - first if first else _next(ids, placeholders, cursor) - int(lead[0])
        base = positions[:, start - 1].max() + 1 if start else 0
        positions[:, start + first : start + first + len(rows)] = torch.stack(relative) + base
        cursor = start + first + len(rows)
    return [rows[:, :width] for rows in embeddings], positions


def delta(positions: Tensor) -> int:
    """How far the first generated token stands behind the prompt's length."""
    return int(positions[:, -1].max()) + 1 - positions.shape[1]


def _next(ids: Sequence[int], placeholders: AbstractSet[int], start: int) -> int:
    return next(place for place in range(start, len(ids)) if ids[place] in placeholders)
