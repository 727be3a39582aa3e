"""VidCom2: keep tokens that stand out from their frame and their video."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvid_kernels.config import PruneConfig
from fastvid_kernels.methods.method import Kept, Method, VideoTokens
from fastvid_kernels.methods.parts.ranking import highest, normalized
from fastvid_kernels.methods.parts.shares import apportion

_BANDWIDTHS = tuple(2.0**power for power in range(-3, 2))
_TEMPERATURE = 0.01


def vidcom2(video: VideoTokens, config: PruneConfig) -> Kept:
    """Keep more tokens of frames unlike the video, and in each frame those least similar to the frame and the video."""
    frames, n, dim = video.tokens.shape
    tokens = video.exact
    variance = tokens.flatten(0, 1).var(0, correction=0)
    steady = highest(-variance, max(1, dim // 2))
    z = normalized(tokens[..., steady])
    to_video = _similarity(z, z.mean((0, 1)))
    to_frame = _similarity(z, z.mean(1, keepdim=True))
    unlike = torch.softmax(-to_video.mean(1).nan_to_num() / _TEMPERATURE, 0)
    shares = (1 + unlike - unlike.mean()) * config.kept_per_frame(n)
    counts = apportion(shares, frames * config.kept_per_frame(n), n)
    return video.kept(highest(-(to_video + to_frame), torch.tensor(counts, device=tokens.device)))


def _similarity(z: Tensor, center: Tensor) -> Tensor:
    """Sum of Gaussians of the distance to a center, float64 `[F, N]`."""
    squared = (z - center).square().sum(-1, dtype=torch.float64)
    return torch.stack([torch.exp(-squared / (2 * bandwidth)) for bandwidth in _BANDWIDTHS]).sum(0)


METHOD = Method(
    "vidcom2",
    vidcom2,
    source="VidCom2, arXiv 2505.14454",
    deviations="Remainders of the frames' shares go to the largest fractions, so that exactly F * K tokens are kept; "
    "the published code rounds each share, to at least one token.",
)
