"""Qwen3-VL's mixture of experts in vLLM."""

from __future__ import annotations

from vllm.model_executor.models import qwen3_vl_moe as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from fastvid_kernels.vllm import qwen3_vl


@MULTIMODAL_REGISTRY.register_processor(
    qwen3_vl.Processor,
    info=upstream.Qwen3VLMoeProcessingInfo,
    dummy_inputs=upstream.Qwen3VLDummyInputsBuilder,
)
class Qwen3VLMoeForConditionalGeneration(
    qwen3_vl.Qwen3VLForConditionalGeneration, upstream.Qwen3VLMoeForConditionalGeneration
):
    """vLLM's model, with the changes of our Qwen3-VL class."""
