"""The cases that are measured: sizes of OneVision and LLaVA-Video, kinds of video, ragged batches, long videos."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.inputs.videos import EQUAL_SHOTS, PRESETS, preset_video
from fastvid_kernels import PruneConfig


class Inputs(NamedTuple):
    """Arguments of one call: `tokens [F, N, D]`, `attn [F, N]`, `frame_features [F, G]`, `cu_frames [B + 1]`."""

    tokens: Tensor
    attn: Tensor
    frame_features: Tensor
    cu_frames: Tensor | None

    def to(self, device: torch.device) -> Inputs:
        """The same inputs on a device."""
        return Inputs(*(None if one is None else one.to(device) for one in self))


@dataclass(frozen=True)
class Case:
    """A call of the operator.

    Attributes:
        frames: F of each video.
        tokens_per_frame: N.
        retention_ratio: R.
        video: the kind of video, one of `PRESETS` or `EQUAL_SHOTS`.
        videos: the number of videos in one call.
        dtype: dtype of all inputs.
        channels: D.
    """

    frames: int
    tokens_per_frame: int
    retention_ratio: float = 0.10
    video: str = "few cuts"
    videos: int = 1
    dtype: str = "bfloat16"
    channels: int = 3584

    def __str__(self) -> str:
        batch = "" if self.videos == 1 else f"{self.videos} videos of "
        size = f"{self.frames}x{self.tokens_per_frame}x{self.channels}"
        return f"{batch}{size}, {self.dtype}, R = {self.retention_ratio}, {self.video}"

    @cached_property
    def config(self) -> PruneConfig:
        """The hyperparameters."""
        return PruneConfig(retention_ratio=self.retention_ratio)

    @property
    def token_bytes(self) -> int:
        """Bytes of all tokens."""
        itemsize = getattr(torch, self.dtype).itemsize
        return self.videos * self.frames * self.tokens_per_frame * self.channels * int(itemsize)

    @property
    def least_bytes(self) -> int:
        """Bytes that any implementation must move: it reads every token once and writes every kept token once."""
        return self.token_bytes + self.token_bytes * self.config.kept_per_frame(self.tokens_per_frame) // (
            self.tokens_per_frame
        )

    @property
    def is_long(self) -> bool:
        """Whether the case is too long for the published forms and for slow checks."""
        return self.videos * self.frames > 64


@lru_cache(maxsize=2)
def inputs_of(case: Case, count: int) -> list[Inputs]:
    """Several sets of inputs on the CPU, to be used in turn, so that a call does not find its inputs in the cache."""
    return [_inputs(case, seed) for seed in range(count)]


def _inputs(case: Case, seed: int) -> Inputs:
    dtype = getattr(torch, case.dtype)
    sizes = (case.frames, case.tokens_per_frame, case.channels)
    films = [
        preset_video(case.video, *sizes, seed=seed * case.videos + number, dtype=dtype) for number in range(case.videos)
    ]
    if case.videos == 1:
        return Inputs(*films[0], None)
    parts = (torch.cat(part) for part in zip(*films, strict=True))
    return Inputs(*parts, torch.arange(case.videos + 1, dtype=torch.int32) * case.frames)


ONEVISION, LLAVA_VIDEO = (32, 196), (64, 169)
MAIN = [Case(*ONEVISION), Case(*LLAVA_VIDEO)]
TYPICAL = [
    Case(*size, retention_ratio=ratio, video=video)
    for size in (ONEVISION, LLAVA_VIDEO)
    for ratio in (0.10, 0.25)
    for video in PRESETS
]
SINGLE = [Case(*size, dtype="float32") for size in (ONEVISION, LLAVA_VIDEO)]
RAGGED = [Case(*ONEVISION, videos=videos) for videos in (4, 16)]
LONG = [Case(frames, 196) for frames in (128, 512, 1024)]
FILM = Case(1024, 196, video=EQUAL_SHOTS)
TINY = [Case(12, 36, channels=32), Case(12, 36, channels=32, videos=3), Case(70, 36, channels=32)]
"""For a rehearsal: one of each sort."""
