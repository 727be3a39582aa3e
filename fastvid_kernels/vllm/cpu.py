"""vLLM's runner for CPUs (0.32) is not told that a model prunes, as its runner for GPUs is: here it is."""

from __future__ import annotations

import functools
from typing import Any


def tell_runner() -> None:
    """Let the runner ask the model where kept tokens stand, once it has loaded one that prunes by this method.

    Untold, it would take the channels in which the model writes that down for features.
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
