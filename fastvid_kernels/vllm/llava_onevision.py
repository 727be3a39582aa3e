"""LLaVA-OneVision in vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import llava_onevision as upstream
from vllm.model_executor.models.interfaces import SupportsMRoPE, SupportsMultiModalPruning
from vllm.multimodal import MULTIMODAL_REGISTRY

from fastvid_kernels.adapters.pruner import Video
from fastvid_kernels.adapters.scoring import PatchScorer, scorer
from fastvid_kernels.vision import pool_to_grid
from fastvid_kernels.vllm.model import PrunedModel, image_item
from fastvid_kernels.vllm.placement import Item, with_positions
from fastvid_kernels.vllm.processing import PrunedProcessor
from fastvid_kernels.vllm.settings import METHOD, Serving
from fastvid_kernels.vllm.startup import llava_settings, serving_of, tokens_per_frame
from fastvid_kernels.vllm.towers import in_parts


class ProcessingInfo(upstream.LlavaOnevisionProcessingInfo):
    """Counts the kept tokens of a video, and its newline."""

    def get_num_video_tokens(self, **size: int) -> int:
        """Number of kept tokens of a video with `num_frames` frames, plus one for its newline."""
        serving = serving_of(self.ctx.model_config)
        if serving is None:
            return super().get_num_video_tokens(**size)  # type: ignore[no-any-return]
        n = tokens_per_frame(self.get_hf_config().vision_config)
        return size["num_frames"] * serving.kept_per_frame(n) + 1


class Processor(PrunedProcessor, upstream.LlavaOnevisionMultiModalProcessor):
    """vLLM's processor, with a check of positions."""

    def check_places(self, serving: Serving, prompt: Any) -> None:
        """See `PrunedProcessor`."""
        n = tokens_per_frame(self.info.get_hf_config().vision_config)
        kept = serving.kept_per_frame(n)
        dropped = sum((one.length - 1) // kept * (n - kept) for one in prompt["mm_placeholders"].get("video", ()))
        self.check_positions(prompt, dropped)


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=ProcessingInfo, dummy_inputs=upstream.LlavaOnevisionDummyInputsBuilder
)
class LlavaOnevisionForConditionalGeneration(
    PrunedModel, upstream.LlavaOnevisionForConditionalGeneration, SupportsMRoPE, SupportsMultiModalPruning
):
    """vLLM's model; its videos are pruned if the server was started with this method."""

    supported_video_pruning_methods = (METHOD,)

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = self.config
        ids = (config.image_token_index, config.video_token_index)
        if not self.prepare_pruning(vllm_config, config.text_config.hidden_size, ids):
            # Without pruning, M-RoPE is not configured, and the model is vLLM's unchanged one.
            self.supports_mrope = False
            return
        assert self.serving is not None
        vision = config.vision_config
        side = vision.image_size // vision.patch_size
        self.tokens_per_frame = tokens_per_frame(vision)
        pool = partial(pool_to_grid, grid=(side, side), mode="bilinear")
        # The scorer is not a submodule, because its weights are not in the checkpoint that vLLM loads.
        self.score = PatchScorer(scorer(llava_settings(self.serving), vision.hidden_size), pool)

    def items(self, features: Sequence[Any]) -> list[Item]:
        """See `PrunedModel`. The numbers of frames follow from the lengths."""
        return [self._item(one) for one in features]

    def _item(self, feature: Any) -> Item:
        offset, length = feature.mm_position.offset, feature.mm_position.length
        if feature.modality != "video":
            return image_item(feature, torch.arange(length).expand(3, -1))
        assert self.serving is not None
        frames = (length - 1) // self.serving.kept_per_frame(self.tokens_per_frame)
        return Item(offset, length, frames * self.tokens_per_frame + 1)

    def _process_video_pixels(self, inputs: Any) -> Any:
        if self.serving is None:
            return super()._process_video_pixels(inputs)
        return [self._pruned(video) for video in inputs["pixel_values_videos"]]

    def _scored(self, pixels: Tensor) -> Video:
        patches = self.vision_tower(pixels, feature_select_strategy=self.config.vision_feature_select_strategy)
        return self.score(patches, self.apply_pooling(self.multi_modal_projector(patches)))

    def _pruned(self, pixels: Tensor) -> Tensor:
        """Kept tokens and newline of a video `[F, 3, height, width]`, with their positions as channels."""
        kept, indices = self.pruner(in_parts(self._scored, pixels))
        rows = torch.cat([kept, self.image_newline[None].to(kept)])
        end = indices.new_tensor([len(pixels) * self.tokens_per_frame])
        return with_positions(rows, torch.cat([indices, end]).expand(3, -1))
