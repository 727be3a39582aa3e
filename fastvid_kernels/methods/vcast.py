"""V-CAST: frames at which the frame features change direction keep more tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvid_kernels.config import MILLION, PruneConfig
from fastvid_kernels.methods.method import Kept, Method, VideoTokens
from fastvid_kernels.methods.parts.ranking import cosine, highest, within_unit
from fastvid_kernels.methods.parts.shares import apportion

_TEMPERATURE = 0.7
# As a fraction of the norm of a feature.
_SMALLEST_STEP = 1e-6


def vcast(video: VideoTokens, config: PruneConfig) -> Kept:
    """Set each frame's budget by the curvature of the frame features over time, and keep its highest-scoring tokens.

    The score is high for tokens that have a large norm and are unlike the frame's mean.
    """
    frames, n, _ = video.tokens.shape
    tokens = video.exact
    curvature = torch.ones(frames, dtype=torch.float64, device=tokens.device)
    if frames > 2:
        steps = _steps(video.features)
        curvature[1:-1] = 1 - cosine(steps[:-1], steps[1:])
    weights = torch.softmax(curvature.nan_to_num() / _TEMPERATURE, 0)
    counts = apportion(weights, _rows(frames, n, config), n)
    unlike = 1 - cosine(tokens, tokens.mean(1, keepdim=True))
    norm = tokens.square().sum(-1, dtype=torch.float64).sqrt()
    score = within_unit(unlike) + within_unit(norm)
    return video.kept(highest(score, torch.tensor(counts, device=tokens.device)))


def _steps(features: Tensor) -> Tensor:
    """Differences of successive features `[F, G]`; 0 where they are so small that they may be rounding errors."""
    steps = features.diff(dim=0)
    moves = steps.norm(dim=1) > _SMALLEST_STEP * features[1:].norm(dim=1)
    return torch.where(moves[:, None], steps, 0.0)


def _rows(frames: int, tokens_per_frame: int, config: PruneConfig) -> int:
    return round(frames * tokens_per_frame * config.retention_millionths / MILLION)


METHOD = Method(
    "vcast",
    vcast,
    source="V-CAST",
    deviations="Frame features are used as they are, and both parts of a score are scaled to 0 ... 1; the published "
    "code normalises the features and does not scale the cosine. Remainders go to the largest fractions, so a frame "
    "may keep no token; the published code keeps at least one of each frame, and all of a video's only frame.",
    rows=_rows,
)
