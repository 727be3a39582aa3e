"""Qwen2.5-VL in vLLM: Qwen2-VL's prompts, frames at their seconds, and a tower that works in windows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import qwen2_5_vl as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from fastvid_kernels.adapters.tower import Grid
from fastvid_kernels.vllm.processing import FullStopBehindVideos
from fastvid_kernels.vllm.qwen2_vl import PlacedInTime, TextBehindVideos
from fastvid_kernels.vllm.settings import METHOD


class Processor(TextBehindVideos, upstream.Qwen2_5_VLMultiModalProcessor):
    """vLLM's processor, with the changes of `TextBehindVideos`."""


class DummyInputs(FullStopBehindVideos, upstream.Qwen2_5_VLDummyInputsBuilder):
    """vLLM's dummy inputs, with the change of `FullStopBehindVideos`."""


@MULTIMODAL_REGISTRY.register_processor(Processor, info=upstream.Qwen2_5_VLProcessingInfo, dummy_inputs=DummyInputs)
class Qwen2_5_VLForConditionalGeneration(PlacedInTime, upstream.Qwen2_5_VLForConditionalGeneration):
    """vLLM's model; its videos are pruned if the server was started with this method."""

    supported_video_pruning_methods = ("evs", METHOD)

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = self.config
        ids = (config.image_token_id, config.video_token_id)
        if self.prepare_pruning(vllm_config, config.vision_config.out_hidden_size, ids):
            self.prepare_tower()

    def in_rows(self, scores: Tensor, grid: Grid) -> Tensor:
        """See `PrunedByGrid`. The tower orders a frame's tokens window by window."""
        order = self.visual.get_window_index_thw(*grid)[0].to(scores.device)
        return torch.empty_like(scores.flatten()).index_copy(0, order, scores.flatten()).view(scores.shape)

    def _postprocess_video_embeds_evs(self, video_embeds_split: Any, video_input: Any) -> Any:
        if self.serving is None:
            return super()._postprocess_video_embeds_evs(video_embeds_split, video_input)
        return video_embeds_split

    def _postprocess_image_embeds_evs(self, image_embeds_split: Any, image_input: Any) -> Any:
        if self.serving is None:
            return super()._postprocess_image_embeds_evs(image_embeds_split, image_input)
        return image_embeds_split
