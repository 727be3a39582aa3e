"""How many tokens the videos of a model had and kept, for whoever asks."""

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
        kept: how many of these are left.
    """

    frames: int
    tokens: int
    kept: int


_COUNTS: ContextVar[list[VideoCount] | None] = ContextVar("fastvid_counts", default=None)


@contextmanager
def counted_videos() -> Iterator[list[VideoCount]]:
    """A list to which every video that is pruned while the block runs is added."""
    counts: list[VideoCount] = []
    token = _COUNTS.set(counts)
    try:
        yield counts
    finally:
        _COUNTS.reset(token)


def count_videos(lengths: Sequence[int], tokens_per_frame: int, indices: Tensor) -> None:
    """Tell whoever asked what a call kept.

    Args:
        lengths: frames of its videos.
        tokens_per_frame: N.
        indices: int64 `[rows]`, ascending flat indices of what was kept.
    """
    counts = _COUNTS.get()
    if counts is None:
        return
    starts = [frames * tokens_per_frame for frames in accumulate(lengths, initial=0)]
    rows = torch.searchsorted(indices, torch.tensor(starts, device=indices.device)).tolist()
    for length, (first, last) in zip(lengths, pairwise(rows), strict=True):
        counts.append(VideoCount(length, length * tokens_per_frame, last - first))
