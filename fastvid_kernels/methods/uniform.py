"""Evenly spaced tokens of every frame."""

from __future__ import annotations

import torch

from fastvid_kernels.config import PruneConfig
from fastvid_kernels.methods.method import Kept, Method, VideoTokens


def uniform(video: VideoTokens, config: PruneConfig) -> Kept:
    """Keep the positions floor(k * N / K) of every frame, k = 0 ... K - 1."""
    _, n, _ = video.tokens.shape
    count = config.kept_per_frame(n)
    mask = torch.zeros(video.tokens.shape[:2], dtype=torch.bool, device=video.tokens.device)
    mask[:, torch.arange(count, device=mask.device) * n // count] = True
    return video.kept(mask)


METHOD = Method("uniform", uniform, source="a baseline of every comparison")
