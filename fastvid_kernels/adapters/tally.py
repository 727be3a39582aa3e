"""Count the tokens that the videos of a model had and kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class VideoCount:
    """One pruned video.

    Attributes:
        frames: F.
        tokens: F * N, newlines not counted.
        kept: how many of these were kept.
    """

    frames: int
    tokens: int
    kept: int


_COUNTS: ContextVar[list[VideoCount] | None] = ContextVar("fastvid_counts", default=None)


@contextmanager
def counted_videos() -> Iterator[list[VideoCount]]:
    """Yield a list to which a count is appended for each video pruned while the block runs."""
    counts: list[VideoCount] = []
    token = _COUNTS.set(counts)
    try:
        yield counts
    finally:
        _COUNTS.reset(token)


def count_videos(lengths: Sequence[int], tokens_per_frame: int, indices: Tensor) -> None:
    """Append what a call kept to the list of `counted_videos`, if there is one.

    Args:
        lengths: number of frames of each video.
        tokens_per_frame: N.
        indices: int64 `[rows]`, ascending flat indices of the kept tokens.
    """
    counts = _COUNTS.get()
    if counts is None:
        return
    starts = [frames * tokens_per_frame for frames in accumulate(lengths, initial=0)]
    rows = torch.searchsorted(indices, torch.tensor(starts, device=indices.device)).tolist()
    for length, (first, last) in zip(lengths, pairwise(rows), strict=True):
        counts.append(VideoCount(length, length * tokens_per_frame, last - first))
