"""EVS, efficient video sampling: keep tokens that differ from the same place in the previous frame."""

from __future__ import annotations

import torch

from fastvid_kernels.config import MILLION, PruneConfig
from fastvid_kernels.methods.method import Kept, Method, VideoTokens
from fastvid_kernels.methods.parts.ranking import cosine, highest


def evs(video: VideoTokens, config: PruneConfig) -> Kept:
    """Keep the whole first frame, and the tokens of all others that are least similar to the previous frame's."""
    frames, n, _ = video.tokens.shape
    dissimilarity = -cosine(video.exact[1:], video.exact[:-1])
    changed = highest(dissimilarity.flatten(), _rows(frames, n, config) - n)
    first = torch.ones(1, n, dtype=torch.bool, device=changed.device)
    return video.kept(torch.cat([first, changed.view(frames - 1, n)]))


def _rows(frames: int, tokens_per_frame: int, config: PruneConfig) -> int:
    tokens = frames * tokens_per_frame
    return max(tokens_per_frame, tokens * config.retention_millionths // MILLION)


METHOD = Method("evs", evs, source="Efficient Video Sampling, arXiv 2510.14624", rows=_rows)
