"""Divide a number of tokens among frames in proportion to weights."""

from __future__ import annotations

import math

from torch import Tensor

_UNITS = 2**40


def apportion(weights: Tensor, total: int, most: int) -> list[int]:
    """Divide `total` tokens in proportion to weights; the largest remainders are rounded up.

    Args:
        weights: `[F]`, non-negative, not all 0; values that are not finite count as 0.
        total: number of tokens to divide, at most F * `most`.
        most: number of tokens of a frame. What exceeds it is divided among the other frames in the same way.
    """
    # In integers, so that sums are exact and equal weights stay equal.
    shares = [round(weight * _UNITS) if 0 < weight < math.inf else 0 for weight in weights.tolist()]
    counts = [0] * len(shares)
    free = [*range(len(shares))]
    while free:
        left = total - sum(counts)
        whole = sum(shares[frame] for frame in free)
        if whole == 0:
            shares = [1] * len(shares)
            continue
        over = [frame for frame in free if shares[frame] * left >= most * whole]
        if not over:
            _largest_remainders(counts, shares, free, left, whole)
            return counts
        for frame in over:
            counts[frame] = most
        free = [frame for frame in free if frame not in over]
    return counts


def _largest_remainders(counts: list[int], shares: list[int], frames: list[int], total: int, whole: int) -> None:
    remainders = {}
    for frame in frames:
        counts[frame], remainders[frame] = divmod(shares[frame] * total, whole)
    missing = total - sum(counts[frame] for frame in frames)
    for frame in sorted(frames, key=remainders.__getitem__, reverse=True)[:missing]:
        counts[frame] += 1
