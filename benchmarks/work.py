"""What each launch of a call has to do, in bytes and operations: written once, from the kernels, tile by tile.

Tiles, splits and grids are those of the launches themselves, recorded and not run. Padding of a tile counts as
operations and not as bytes: it repeats a row that is read anyhow. Tables of a few bytes a token are left out where a
stage reads megabytes besides. So is what depends on the tokens' values: the second look at float32 similarities that
tie, and sums that are not finite.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch

import reference
from benchmarks.offline import record_call
from fastvid_kernels import PruneConfig

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


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


@dataclass(frozen=True)
class Segment:
    """A segment's length, its salient tokens, and the anchors of each of its anchor frames that has any."""

    length: int
    salient: int
    anchors: tuple[int, ...]


@dataclass(frozen=True)
class Scenario:
    """A call, and how its video is cut.

    Attributes:
        tokens_per_frame: N.
        channels: D.
        segment_lengths: frames of each segment; they make up the video.
        dtype: a key of `DTYPES`.
        feature_channels: G, or None for the mean token as feature.
        config: the hyperparameters.
        backward: whether it is the call's backward pass.
    """

    tokens_per_frame: int
    channels: int
    segment_lengths: tuple[int, ...]
    dtype: str = "bfloat16"
    feature_channels: int | None = 1152
    config: PruneConfig = field(default_factory=PruneConfig)
    backward: bool = False

    @property
    def frames(self) -> int:
        """F."""
        return sum(self.segment_lengths)

    @property
    def row_bytes(self) -> int:
        """Of a token."""
        return self.channels * DTYPES[self.dtype].itemsize

    @property
    def frame_bytes(self) -> int:
        """Of a frame's tokens."""
        return self.tokens_per_frame * self.row_bytes

    @property
    def token_bytes(self) -> int:
        """Of all tokens."""
        return self.frames * self.frame_bytes

    @property
    def kept(self) -> int:
        """K."""
        return self.config.kept_per_frame(self.tokens_per_frame)

    @property
    def output_bytes(self) -> int:
        """Of the tokens that are kept."""
        return self.frames * self.kept * self.row_bytes

    @property
    def floor_bytes(self) -> int:
        """What any implementation moves: every token read once, the output written.

        Of a backward pass that starts from the inputs: every token and row of the output's gradient read, the tokens'
        gradient written.
        """
        return (1 + self.backward) * self.token_bytes + self.output_bytes

    @cached_property
    def segments(self) -> list[Segment]:
        """With their budgets."""
        n, config = self.tokens_per_frame, self.config
        budgets = [
            reference.segment_budget(length, n, self.kept, config.dtm_ratio, config.anchor_interval)
            for length in self.segment_lengths
        ]
        return [
            Segment(length, budget.salient, tuple(count for count in budget.context_per_frame if count))
            for length, budget in zip(self.segment_lengths, budgets, strict=True)
        ]

    @cached_property
    def launches(self) -> dict[str, list[dict[str, Any]]]:
        """Arguments of the launches, by stage."""
        shape = (self.frames, self.tokens_per_frame, self.channels)
        tokens = torch.empty(shape, dtype=DTYPES[self.dtype], device="meta")
        recorded = record_call(
            "sm_90", tokens, feature_channels=self.feature_channels, backward=self.backward, **asdict(self.config)
        )
        by_stage: dict[str, list[dict[str, Any]]] = {}
        for launch in recorded:
            by_stage.setdefault(launch.name.removesuffix("_kernel"), []).append(launch.arguments)
        return by_stage

    def works(self) -> Iterator[Work]:
        """Of every stage that is launched, in order."""
        from benchmarks.stage_work import STAGES

        return (STAGES[stage](self, arguments[0], len(arguments)) for stage, arguments in self.launches.items())
