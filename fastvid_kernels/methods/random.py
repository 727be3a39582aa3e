"""Random tokens, the same ones for the same seed."""

from __future__ import annotations

import torch

from fastvid_kernels.config import PruneConfig
from fastvid_kernels.methods.method import Kept, Method, VideoTokens
from fastvid_kernels.methods.parts.ranking import highest


def random(video: VideoTokens, config: PruneConfig, *, seed: int = 0) -> Kept:
    """Draw K tokens of every frame without replacement; the state of global generators makes no difference."""
    frames, n, _ = video.tokens.shape
    # On the CPU, so that a seed gives the same tokens on every device.
    lots = torch.rand(frames, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return video.kept(highest(lots, config.kept_per_frame(n)).to(video.tokens.device))


def _check(seed: object = 0) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer, got {seed!r}")
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must fit 64 bits, got {seed!r}")


METHOD = Method("random", random, source="a baseline of every comparison", check=_check)
