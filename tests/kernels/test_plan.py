"""Segments of videos around the sizes at which `plan` cuts in another way, against the oracle, frame by frame."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import reference
from tests.kernels.explained import run_kernels

pytestmark = pytest.mark.runs_kernels

LENGTHS = [1, 2, 63, 64, 65, 127, 128, 129, 200]


def features(frames: int, seed: int) -> Tensor:
    """Shots of a few frames; some transitions are equal, one is not finite, and one frame is zero."""
    generator = torch.Generator().manual_seed(seed)
    shots = torch.randn(frames + 1, 8, generator=generator)
    shot = (torch.rand(frames, generator=generator) < 0.2).long().cumsum(0)
    found = shots[shot] + 0.1 * torch.randn(frames, 8, generator=generator) * (torch.arange(frames) % 3 > 0)[:, None]
    if frames > 40:
        found[frames // 2, 3] = float("nan")
        found[frames - 2] = 0
    return found


def expected(one: Tensor, first: int, min_segments: int, tau: float) -> list[tuple[int, int]]:
    """Start and end of the segment of each frame of a video that starts at frame `first`."""
    cuts = reference.select_cuts(reference.quantised_transitions(one), min_segments, tau)
    segments = reference.segments_between(cuts, len(one))
    return [(first + start, first + end) for start, end in segments for _ in range(start, end)]


def found(frame_features: Tensor, cu_frames: Tensor | None, min_segments: int, tau: float) -> list[tuple[int, int]]:
    tokens = torch.ones(len(frame_features), 1, 2)
    call = run_kernels(
        tokens, tokens[..., 0], frame_features, cu_frames, retention_ratio=1.0, min_segments=min_segments, tau=tau
    )
    both = torch.stack([call.workspace["segment_start"], call.workspace["segment_end"]], dim=1)
    return [(start, end) for start, end in both.tolist()]


@pytest.mark.parametrize("tau", [-1.5, 0.5, 0.99])
@pytest.mark.parametrize("min_segments", [1, 2, 8, 64, 65, 999])
@pytest.mark.parametrize("frames", LENGTHS)
def test_a_video(frames: int, min_segments: int, tau: float) -> None:
    one = features(frames, seed=frames)
    assert found(one, None, min_segments, tau) == expected(one, 0, min_segments, tau)


def test_videos_of_all_lengths_in_one_call() -> None:
    """One of them is empty; each is cut as it would be alone."""
    lengths = [*LENGTHS, 0, *reversed(LENGTHS)]
    videos = [features(frames, seed) for seed, frames in enumerate(lengths)]
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    together = found(torch.cat(videos), bounds.int(), 8, 0.5)
    starts = bounds.tolist()[:-1]
    alone = [expected(one, first, 8, 0.5) if len(one) else [] for one, first in zip(videos, starts, strict=True)]
    assert together == [frame for one in alone for frame in one]
