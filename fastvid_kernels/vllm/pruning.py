"""From a video's tokens and their attention to what vLLM caches of it."""

from __future__ import annotations

import torch

from fastvid_kernels.adapters.pruner import LazyWarmup, Video
from fastvid_kernels.api import Pruned, prune
from fastvid_kernels.vllm.settings import Serving


class ServedPruner:
    """Prunes each video alone: what is kept of one cannot depend on who asks beside.

    Args:
        serving: how.
    """

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        # At the first video, which may be a made-up one of the start.
        self._warm_up = LazyWarmup(serving.config, serving.backend)

    def __call__(self, video: Video) -> Pruned:
        """What is left of a video, and which tokens that is: `[F * K, D]` and int64 `[F * K]`."""
        self._warm_up(video.tokens, video.attention, video.features)
        with torch.no_grad():
            return prune(
                video.tokens,
                video.attention,
                video.features,
                config=self._serving.config,
                backend=self._serving.backend,
            )
