"""Tell vLLM's CPU runner that a model prunes videos. In 0.32, vLLM tells only its GPU runner."""

from __future__ import annotations

import functools
from typing import Any


def tell_runner() -> None:
    """Make the CPU runner ask a model that prunes by this method for the positions of kept tokens.

    Otherwise it would take the channels that hold these positions for features.
    """
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    from fastvid_kernels.vllm.startup import rate_of

    original = CPUModelRunner.load_model

    @functools.wraps(original)
    def load_model(self: Any, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        if rate_of(self.model_config) is not None:
            self.is_multimodal_pruning_enabled = True

    CPUModelRunner.load_model = load_model
