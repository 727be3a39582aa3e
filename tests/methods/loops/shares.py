"""Budgets of frames from real-valued shares."""

import math
from collections.abc import Sequence

from reference.budgets import MILLION, millionths


def by_largest_fraction(shares: Sequence[float], total: int, cap: int) -> list[int]:
    """Round shares down, at most to `cap`; give the rest of `total` in rounds, one each by largest fraction.

    A round skips frames that are full; every round has the same order. Fractions that differ by rounding are equal.
    """
    budgets = [min(math.floor(share), cap) for share in shares]
    order = sorted(range(len(shares)), key=lambda frame: (round(math.floor(shares[frame]) - shares[frame], 9), frame))
    left = total - sum(budgets)
    while left > 0:
        for frame in order:
            if left > 0 and budgets[frame] < cap:
                budgets[frame] += 1
                left -= 1
    return budgets


def in_proportion(weights: Sequence[float], total: int, cap: int) -> list[int]:
    """Share out `total` in proportion to `weights`, at most `cap` each.

    While any share exceeds the cap, the frames whose shares do get the cap, and the others share what is left in
    proportion. Then `by_largest_fraction` rounds the shares.
    """
    budgets = [0] * len(weights)
    open_frames = list(range(len(weights)))
    left = total
    while open_frames:
        scale = sum(weights[frame] for frame in open_frames)
        shares = [left * weights[frame] / scale for frame in open_frames]
        full = [frame for frame, share in zip(open_frames, shares, strict=True) if share > cap]
        if not full:
            for frame, budget in zip(open_frames, by_largest_fraction(shares, left, cap), strict=True):
                budgets[frame] = budget
            break
        for frame in full:
            budgets[frame] = cap
            open_frames.remove(frame)
            left -= cap
    return budgets


def rounded_total(frames: int, size: int, ratio: float) -> int:
    """`F N R` to the nearest integer, half to even."""
    whole, rest = divmod(frames * size * millionths(ratio), MILLION)
    return whole + (2 * rest > MILLION or (2 * rest == MILLION and whole % 2 == 1))
