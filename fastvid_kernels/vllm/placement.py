"""Positions of tokens: of a prompt before its videos are encoded, and of a video's kept tokens afterwards.

A position is three numbers (time, row, column), as in M-RoPE. How many positions a video spans depends only on its
size, so the text after it can be placed before the video is encoded, and a cache hit that covers the video changes
nothing. Which tokens of the video are kept depends on its content; their positions come with its embeddings, relative
to the video's first position.
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
        offset: index of its first token in the prompt.
        length: number of its tokens in the prompt.
        span: the distance from its first position to the first position after it.
        rows: int64 `[3, length]`, relative positions; None for a pruned video, where they are not known yet.
    """

    offset: int
    length: int
    span: int
    rows: Tensor | None = None


def prompt_positions(length: int, items: Sequence[Item]) -> tuple[Tensor, int]:
    """Positions of a prompt, where all tokens of a pruned video get the video's last position for now.

    This is right for the last token of a video if that token is never pruned, and it lets what follows be placed by
    the token before it.

    Args:
        length: number of tokens of the prompt.
        items: its images and videos, in order of their offsets.

    Returns:
        int64 `[3, length]`, and the position of the first generated token minus `length`.
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
        frames: number of frames.
        rows: number of rows in a frame.
        columns: number of tokens in a row.
        per_frame: time positions from one frame to the next; the product with the frame's number is rounded down.
    """
    # In float64, as the model itself computes them.
    times = (torch.arange(frames, dtype=torch.float64) * per_frame).long()
    grid = torch.meshgrid(times, torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([axis.flatten() for axis in grid])


def between_texts(lengths: Sequence[int], grid: Tensor, kept: Tensor) -> Tensor:
    """Relative positions of a video with text around its F frames, int64 `[3, length]`.

    Args:
        lengths: F + 1 numbers of text tokens: before the first frame, between frames, and after the last one.
        grid: int64 `[3, N]`, positions of a frame's tokens from 0; the text behind a frame follows the largest one.
        kept: int64 `[kept]`, ascending: `frame * N + place` of the kept tokens.
    """
    parts: list[Tensor] = []
    at = 0
    n = grid.shape[1]
    frames = torch.div(kept, n, rounding_mode="floor")
    span = int(grid.max()) + 1
    for frame, length in enumerate(lengths):
        parts.append(torch.arange(at, at + length).expand(3, -1))
        at += length
        # After the last frame there is only text.
        parts.append(grid[:, kept[frames == frame] % n] + at)
        at += span
    return torch.cat(parts, dim=1)


def with_positions(rows: Tensor, positions: Tensor, lead: int = 0) -> Tensor:
    """Append to a video's embeddings the channels that `place` reads.

    Args:
        rows: `[length, D]`, the embeddings of a pruned video.
        positions: int64 `[3, length]`, relative.
        lead: how many of the video's tokens in the prompt come before its first placeholder.

    Returns:
        `[length, D + 15]`.
    """
    return torch.cat([rows, position_channels(positions, lead).to(rows)], dim=1)


def position_channels(positions: Tensor, lead: int = 0) -> Tensor:
    """The channels that `with_positions` adds, float32 `[length, 15]`: rank in the video, lead, time, row, column."""
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
    """Compute the positions of the video tokens in a part of a prompt.

    The result does not depend on what was placed before, so that an interrupted request can start again.

    Args:
        ids: token ids of the whole prompt.
        embeddings: those of the images and videos in the part, in order: `[length, width]` each, or
            `[length, width + 15]` for a pruned video. The first may lack tokens that an earlier part had.
        positions: int64 `[3, length]`, of the whole prompt.
        computed: index of the part's first token.
        placeholders: ids that stand for tokens of images and videos.
        width: channels of an embedding.

    Returns:
        The embeddings `[length, width]`, without the added channels, and the positions.
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
    """The position of the first generated token minus the prompt's length."""
    return int(positions[:, -1].max()) + 1 - positions.shape[1]


def _next(ids: Sequence[int], placeholders: AbstractSet[int], start: int) -> int:
    return next(place for place in range(start, len(ids)) if ids[place] in placeholders)
