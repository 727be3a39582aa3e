"""Attention sinks, positions that attract attention in every frame, and how to lower it (SToP, arXiv 2604.20937).

Sinks say little about the video, but would be kept in place of tokens that do. Their attention is lowered before tokens
are ranked by it. SToP's published code for FastVID also lowers the density score of sinks, by 0.3 of the sink score;
neither this module nor the operator does.
"""

from __future__ import annotations

import torch
from torch import Tensor

_POWER = 1.1
_WEIGHT = 0.02


def sink_score(attn: Tensor) -> Tensor:
    """How much each position of a video is a sink: attention `[F, N]` -> float32 `[N]`, in 0 ... 1.

    (mean over frames)^1.1, scaled to 0 ... 1 over the positions; all 0 if all positions are equal. Positions whose
    mean is not finite get 0.
    """
    mean = attn.to(torch.float32).mean(0)
    usable = mean.isfinite()
    power = torch.where(usable, mean, 0.0).clamp(min=0) ** _POWER
    low, high = power.amin(), power.amax()
    return torch.where(usable & (high > low), (power - low) / (high - low), 0.0)


def without_sinks(attn: Tensor, weight: float = _WEIGHT) -> Tensor:
    """Attention minus `weight` times the sink score of its position: `[F, N]` -> float32 `[F, N]`, may be negative."""
    return attn.to(torch.float32) - weight * sink_score(attn)
