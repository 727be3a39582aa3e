"""Timing several arms side by side on a CPU that is never quite idle."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Input = TypeVar("Input")


@dataclass(frozen=True)
class Spread:
    """The 20th, 50th and 80th percentile of a sample."""

    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, sample: Sequence[float]) -> Spread:
        """Percentiles by linear interpolation; the sample has two values or more."""
        deciles = statistics.quantiles(sample, n=10, method="inclusive")
        return cls(p20=deciles[1], p50=deciles[4], p80=deciles[7])


def time_interleaved(
    arms: Mapping[str, Callable[[Input], object]], inputs: Sequence[Input], *, rounds: int
) -> dict[str, list[float]]:
    """Seconds that each arm took in each of `rounds` rounds.

    First every arm runs once on every input, unmeasured. A round gives all arms the same input, one after the
    other, so that what slows the machine down slows all of them. The inputs take turns from round to round,
    and so does the arm that goes first.
    """
    for arm in arms.values():
        for one in inputs:
            arm(one)
    names = list(arms)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            arms[name](inputs[turn % len(inputs)])
            seconds[name].append(time.perf_counter() - start)
    return seconds


def paired_ratio(seconds: Sequence[float], baseline: Sequence[float]) -> float:
    """Median over the rounds of how many times the baseline's time an arm took in the same round."""
    return statistics.median(one / other for one, other in zip(seconds, baseline, strict=True))
