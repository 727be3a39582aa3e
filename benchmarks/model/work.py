"""The work of a launch in bytes and operations, and how many of the bytes come from memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Access:
    """Bytes of one array that a launch reads or writes.

    Attributes:
        distinct: each byte counted once.
        requested: each byte counted as often as it is requested.
        seen: the distinct bytes that an earlier launch touched, or that need never reach memory.
        age: bytes that are touched between that launch and this one.
        span: bytes that are touched between two requests of the same byte.
    """

    distinct: float
    requested: float
    seen: float = 0
    age: float = 0
    span: float = 0

    def from_memory(self, cache_bytes: float) -> float:
        """Bytes that miss the cache, which is assumed to hold a random part of the bytes touched in between."""
        first = self.distinct - self.seen + self.seen * _miss(self.age, cache_bytes)
        return first + (self.requested - self.distinct) * _miss(self.span, cache_bytes)


def _miss(touched: float, cache_bytes: float) -> float:
    return max(0.0, 1 - cache_bytes / touched) if touched else 0.0


@dataclass(frozen=True)
class Work:
    """What one stage does in a call.

    Attributes:
        stage: the kernel's name, without "_kernel".
        launches: number of launches of the kernel in the call.
        blocks: number of blocks with work to do.
        accesses: accesses to memory, by array.
        trips: dependent loads in the block that takes longest; a loop that keeps n tiles in flight counts an n-th.
        matrix_flops: operations of matrix units, padding included.
        vector_flops: other float32 or integer operations.
        double_flops: float64 operations.
    """

    stage: str
    launches: int
    blocks: int
    accesses: tuple[Access, ...]
    trips: float
    matrix_flops: float = 0
    vector_flops: float = 0
    double_flops: float = 0

    @property
    def requested_bytes(self) -> float:
        """Bytes requested from the cache."""
        return sum(access.requested for access in self.accesses)

    def memory_bytes(self, cache_bytes: float) -> float:
        """Bytes requested from the memory behind a cache of this size."""
        return sum(access.from_memory(cache_bytes) for access in self.accesses)
