"""From a video's tokens and their attention to what vLLM caches of it."""

from __future__ import annotations

import torch

from fastvid_kernels.adapters.pruner import Video
from fastvid_kernels.api import Pruned, prune
from fastvid_kernels.compilation import warmup
from fastvid_kernels.ops import backend_for
from fastvid_kernels.vllm.settings import Serving


class ServedPruner:
    """Prunes each video alone: what is kept of one cannot depend on who asks beside.

    Args:
        serving: how.
    """

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._warm = False

    def __call__(self, video: Video) -> Pruned:
        """What is left of a video, and which tokens that is: `[F * K, D]` and int64 `[F * K]`."""
        if not self._warm:
            self._warm = True
            self._compile(video)
        with torch.no_grad():
            return prune(
                video.tokens,
                video.attention,
                video.features,
                config=self._serving.config,
                backend=self._serving.backend,
            )

    def _compile(self, video: Video) -> None:
        """At the first video, which is a made-up one of the start, compile what later ones need."""
        tokens, features = video.tokens, video.features
        if self._serving.backend == "eager" or backend_for(tokens.device, *tokens.shape[:2]) != "triton":
            return
        warmup(
            tokens.device,
            tokens.shape[2],
            tokens.dtype,
            attn_dtype=video.attention.dtype,
            feature_channels=None if features is None else features.shape[1],
            feature_dtype=None if features is None else features.dtype,
            config=self._serving.config,
        )
