"""Averages of neighbouring tokens in a frame."""

from __future__ import annotations

import torch

from fastvid_kernels.config import PruneConfig
from fastvid_kernels.methods.method import Kept, Method, VideoTokens
from fastvid_kernels.methods.parts.groups import group_means


def pool(video: VideoTokens, config: PruneConfig) -> Kept:
    """Replace K runs of a frame's positions by their means, at their first positions.

    Run k starts at position floor(k * N / K).
    """
    frames, n, _ = video.tokens.shape
    count = config.kept_per_frame(n)
    starts = torch.arange(count, device=video.tokens.device) * n // count
    run = torch.searchsorted(starts, torch.arange(n, device=starts.device), right=True) - 1
    frame = torch.arange(frames, device=starts.device)[:, None]
    means, _ = group_means(video.exact.flatten(0, 1), (frame * count + run).flatten(), frames * count)
    return Kept(means.to(video.tokens.dtype), (frame * n + starts).flatten())


METHOD = Method("pool", pool, source="a baseline of many comparisons, here along the rows of a frame")
