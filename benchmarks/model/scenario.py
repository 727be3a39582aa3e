"""A call as the model sees it: its sizes, the segments of its video, and its launches, recorded and not run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch

import reference
from benchmarks.compiled.offline import record_call
from fastvid_kernels import PruneConfig

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Segment:
    """A segment: its length, its number of salient tokens, and the number of anchors in each frame that has any."""

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
        backward: whether to model the backward pass of the call.
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
        """Bytes of a token."""
        return self.channels * DTYPES[self.dtype].itemsize

    @property
    def frame_bytes(self) -> int:
        """Bytes of a frame's tokens."""
        return self.tokens_per_frame * self.row_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes of all tokens."""
        return self.frames * self.frame_bytes

    @property
    def kept(self) -> int:
        """K."""
        return self.config.kept_per_frame(self.tokens_per_frame)

    @property
    def output_bytes(self) -> int:
        """Bytes of the kept tokens."""
        return self.frames * self.kept * self.row_bytes

    @property
    def floor_bytes(self) -> int:
        """Bytes that any implementation moves: it reads every token once and writes the output.

        A backward pass that starts from the inputs reads every token and the gradient of the output, and writes the
        gradient of the tokens.
        """
        return (1 + self.backward) * self.token_bytes + self.output_bytes

    @cached_property
    def segments(self) -> list[Segment]:
        """The segments with their budgets."""
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
