"""Prune the tokens of a video before vLLM caches them."""

from __future__ import annotations

import torch

from fastvid_kernels.adapters.pruner import LazyWarmup, Video
from fastvid_kernels.api import Pruned, prune
from fastvid_kernels.vllm.settings import Serving


class ServedPruner:
    """Prunes each video alone, so that the result cannot depend on other requests.

    Args:
        serving: the settings.
    """

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        # Warms up at the first video, which may be a dummy one that vLLM makes when it starts.
        self._warm_up = LazyWarmup(serving.config, serving.backend)

    def __call__(self, video: Video) -> Pruned:
        """Prune a video; return the kept tokens `[F * K, D]` and their flat indices, int64 `[F * K]`."""
        self._warm_up(video.tokens, video.attention, video.features)
        with torch.no_grad():
            return prune(
                video.tokens,
                video.attention,
                video.features,
                config=self._serving.config,
                backend=self._serving.backend,
            )
