"""The tokens with the highest attention."""

from __future__ import annotations

import torch

from fastvid_kernels.config import PruneConfig
from fastvid_kernels.eager.salient import salient_mask
from fastvid_kernels.methods.method import Kept, Method, VideoTokens


def attention(video: VideoTokens, config: PruneConfig) -> Kept:
    """Keep the K tokens of every frame with the highest attention (as float32), as FastVID with `dtm_ratio=0` does."""
    assert video.attn is not None
    frames, n, _ = video.tokens.shape
    count = torch.full((frames,), config.kept_per_frame(n), device=video.attn.device)
    return video.kept(salient_mask(video.attn, count))


METHOD = Method(
    "attention",
    attention,
    source="the selection by attention of FastVID, arXiv 2503.11187",
    needs_attention=True,
)
