"""Qwen3.5 and its mixture of experts in vLLM: Qwen3-VL's prompts and tower, without DeepStack."""

from __future__ import annotations

from vllm.model_executor.models import qwen3_5 as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from fastvid_kernels.vllm import qwen3_vl


@MULTIMODAL_REGISTRY.register_processor(
    qwen3_vl.Processor, info=upstream.Qwen3_5ProcessingInfo, dummy_inputs=upstream.Qwen3VLDummyInputsBuilder
)
class Qwen3_5ForConditionalGeneration(
    qwen3_vl.Qwen3VLForConditionalGeneration, upstream.Qwen3_5ForConditionalGeneration
):
    """vLLM's model, with the changes of our Qwen3-VL class."""


@MULTIMODAL_REGISTRY.register_processor(
    qwen3_vl.Processor, info=upstream.Qwen3_5MoeProcessingInfo, dummy_inputs=upstream.Qwen3VLDummyInputsBuilder
)
class Qwen3_5MoeForConditionalGeneration(
    qwen3_vl.Qwen3VLForConditionalGeneration, upstream.Qwen3_5MoeForConditionalGeneration
):
    """vLLM's model, with the changes of our Qwen3-VL class."""
