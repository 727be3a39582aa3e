"""Qwen2.5-VL in vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import qwen2_5_vl as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from fastvid_kernels.adapters.tower import Grid
from fastvid_kernels.vllm.model import PrunedQwen, image_item
from fastvid_kernels.vllm.placement import Item, in_grid, with_positions
from fastvid_kernels.vllm.processing import PrunedQwenProcessor
from fastvid_kernels.vllm.settings import METHOD, Serving
from fastvid_kernels.vllm.startup import serving_of


class Processor(PrunedQwenProcessor, upstream.Qwen2_5_VLMultiModalProcessor):
    """Counts the kept tokens of a video."""

    def check_places(self, serving: Serving, prompt: Any) -> None:
        """See `PrunedProcessor`. An item that follows a video is placed by its last token, which may be dropped."""
        ranges = [one for several in prompt["mm_placeholders"].values() for one in several]
        starts = {one.offset for one in ranges} | {len(prompt["prompt_token_ids"])}
        if any(one.offset + one.length in starts for one in prompt["mm_placeholders"].get("video", ())):
            raise ValueError("a video in a prompt must be followed by text, such as <|vision_end|>")


class DummyInputs(upstream.Qwen2_5_VLDummyInputsBuilder):
    """Inputs with which vLLM warms up: there too, text must follow each video."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """Images and videos one after another, with a full stop after each video."""
        text: str = super().get_dummy_text(mm_counts)
        if serving_of(self.info.ctx.model_config) is None:
            return text
        video = self.info.get_hf_processor().video_token
        return text.replace(video, f"{video}.")


@MULTIMODAL_REGISTRY.register_processor(Processor, info=upstream.Qwen2_5_VLProcessingInfo, dummy_inputs=DummyInputs)
class Qwen2_5_VLForConditionalGeneration(PrunedQwen, upstream.Qwen2_5_VLForConditionalGeneration):
    """vLLM's model; its videos are pruned if the server was started with this method."""

    supported_video_pruning_methods = ("evs", METHOD)

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = self.config
        ids = (config.image_token_id, config.video_token_id)
        if self.prepare_pruning(vllm_config, config.vision_config.out_hidden_size, ids):
            self.prepare_tower()

    def items(self, features: Sequence[Any]) -> list[Item]:
        """See `PrunedModel`."""
        found = []
        for feature, (_, frames, rows, columns, per_frame) in zip(
            features, self.iter_mm_grid_thw(features), strict=True
        ):
            if feature.modality != "video":
                found.append(image_item(feature, in_grid(frames, rows, columns)))
                continue
            span = max(int((frames - 1) * per_frame), rows - 1, columns - 1) + 1
            found.append(Item(feature.mm_position.offset, feature.mm_position.length, span))
        return found

    def in_rows(self, scores: Tensor, grid: Grid) -> Tensor:
        """See `PrunedQwen`. The tower orders a frame's tokens window by window."""
        order = self.visual.get_window_index_thw(*grid)[0].to(scores.device)
        return torch.empty_like(scores.flatten()).index_copy(0, order, scores.flatten()).view(scores.shape)

    def _process_video_input(self, video_input: Any) -> Any:
        run = super()._process_video_input
        if self.serving is None:
            return run(video_input)
        merge = self.visual.spatial_merge_size
        seconds = video_input.get("second_per_grid_ts")
        rate = getattr(self.config.vision_config, "tokens_per_second", 1.0)
        pruned = []
        for number, (_, kept) in enumerate(self.pruned_videos(run, video_input, self.embedding_width)):
            frames, rows, columns = video_input["video_grid_thw"][number].tolist()
            per_frame = rate * (1.0 if seconds is None else seconds[number].item())
            grid = in_grid(frames, rows // merge, columns // merge, per_frame).to(kept.indices.device)
            pruned.append(with_positions(kept.tokens, grid[:, kept.indices]))
        return tuple(pruned)

    def _postprocess_video_embeds_evs(self, video_embeds_split: Any, video_input: Any) -> Any:
        if self.serving is None:
            return super()._postprocess_video_embeds_evs(video_embeds_split, video_input)
        return video_embeds_split

    def _postprocess_image_embeds_evs(self, image_embeds_split: Any, image_input: Any) -> Any:
        if self.serving is None:
            return super()._postprocess_image_embeds_evs(image_embeds_split, image_input)
        return image_embeds_split
