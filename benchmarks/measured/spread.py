"""Summary statistics of a sample of times."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


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
