"""Qwen3-VL in vLLM: timestamps between the frames, and DeepStack."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import qwen3_vl as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from fastvid_kernels.vllm.model import TextBetweenFrames, places_of
from fastvid_kernels.vllm.placement import between_texts, in_grid, position_channels
from fastvid_kernels.vllm.processing import PrunedQwenProcessor
from fastvid_kernels.vllm.settings import METHOD


class Processor(PrunedQwenProcessor, upstream.Qwen3VLMultiModalProcessor):
    """Counts the kept tokens of a video; all its placeholders stand in its first frame."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=upstream.Qwen3VLProcessingInfo, dummy_inputs=upstream.Qwen3VLDummyInputsBuilder
)
class Qwen3VLForConditionalGeneration(TextBetweenFrames, upstream.Qwen3VLForConditionalGeneration):
    """vLLM's model; its videos are pruned if the server was started with this method."""

    supported_video_pruning_methods = ("evs", "vidcom2", METHOD)

    def __init__(self, *, vllm_config: Any, prefix: str = "model") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = self.config
        ids = (config.image_token_id, config.video_token_id)
        # The DeepStack features of the first layers are further channels beside the tokens.
        if self.prepare_pruning(vllm_config, self.visual_dim + self.multiscale_dim, ids):
            self.prepare_tower()
            # vLLM refuses them for GLM anyhow.
            self.refuse_adapters_of_the_embedding()

    def _postprocess_image_embeds_evs(self, image_embeds_split: Any, image_input: Any) -> Any:
        if self.serving is None:
            return super()._postprocess_image_embeds_evs(image_embeds_split, image_input)
        return image_embeds_split

    def _process_video_input(self, video_input: Any) -> Any:
        run = super()._process_video_input
        if self.serving is None:
            return run(video_input)
        # vLLM passes this to `_postprocess_video_embeds_evs`, which also gets the timestamps.
        return self.pruned_videos(run, video_input, self.visual_dim)

    def _postprocess_video_embeds_evs(self, video_embeds_split: Any, video_input: Any) -> Any:
        if self.serving is None:
            return super()._postprocess_video_embeds_evs(video_embeds_split, video_input)
        return tuple(
            self._with_texts(embeddings, kept, grid, timestamps)
            for (embeddings, kept), grid, timestamps in zip(
                video_embeds_split, video_input["video_grid_thw"].tolist(), video_input.timestamps, strict=True
            )
        )

    def _with_texts(self, embeddings: Tensor, kept: Any, grid: list[int], timestamps: Any) -> Tensor:
        """A video as in the prompt: the text between its frames, its kept tokens, and their positions."""
        # Tokens are replaced by merged ones; of the DeepStack channels, those of kept tokens are selected.
        rows = torch.cat([kept.tokens, embeddings[kept.indices, self.visual_dim :]], dim=1)
        places, per_frame = places_of(kept, grid[0], len(embeddings) // grid[0])
        embedded: Tensor = self._create_final_video_embeddings(
            video_embeddings=rows,
            num_tokens_per_frame=per_frame,
            timestamps=timestamps,
            video_grid_thw=grid,
            retention_mask=places,
        )
        return embedded

    def _get_expanded_positions(self, **given: Any) -> Any:
        """Positions of a video's text and tokens, which vLLM appends as channels."""
        if self.serving is None:
            return super()._get_expanded_positions(**given)
        _, rows, columns = given["video_grid_thw"]
        merge = self.visual.spatial_merge_size
        # The tokens of a frame stand behind its start mark.
        firsts = [start + 1 for start in given["is_vision_start"].nonzero()[:, 0].tolist()]
        ends = [first + count for first, count in zip(firsts, given["num_tokens_per_frame"], strict=True)]
        lengths = [first - end for first, end in zip([*firsts, given["seq_len"]], [0, *ends], strict=True)]
        grid = in_grid(1, rows // merge, columns // merge)
        positions = between_texts(lengths, grid, given["retention_mask"])
        return position_channels(positions, lead=lengths[0]).to(given["device"], self.visual.dtype)
