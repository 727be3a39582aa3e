"""What a launch has to do, in bytes and operations, and what of its bytes memory must serve."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Access:
    """Bytes of one array that a launch reads or writes.

    Attributes:
        distinct: each byte once.
        requested: as often as it is asked for.
        seen: of the distinct ones, those that an earlier launch touched, or that need never reach memory.
        age: bytes that are touched between that launch and this.
        span: bytes that are touched from one request of a byte to the next.
    """

    distinct: float
    requested: float
    seen: float = 0
    age: float = 0
    span: float = 0

    def from_memory(self, cache_bytes: float) -> float:
        """What the cache does not serve: it holds its share of what is touched in between, whichever that is."""
        first = self.distinct - self.seen + self.seen * _miss(self.age, cache_bytes)
        return first + (self.requested - self.distinct) * _miss(self.span, cache_bytes)


def _miss(touched: float, cache_bytes: float) -> float:
    return max(0.0, 1 - cache_bytes / touched) if touched else 0.0


@dataclass(frozen=True)
class Work:
    """What one stage does in a call.

    Attributes:
        stage: the kernel's name, without "_kernel".
        launches: of it in the call.
        blocks: those with something to do.
        accesses: to memory.
        trips: loads that wait for one another in the block that takes longest; a loop over tiles that keeps n of them
            in flight counts an n-th.
        matrix_flops: of products by matrix units, padding included.
        vector_flops: other float32 or integer operations.
        double_flops: in float64.
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
        """Asked of the cache."""
        return sum(access.requested for access in self.accesses)

    def memory_bytes(self, cache_bytes: float) -> float:
        """Asked of the memory behind a cache of this size."""
        return sum(access.from_memory(cache_bytes) for access in self.accesses)
