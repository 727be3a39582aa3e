"""GLM-4.1V, GLM-4.5V and GLM-4.6V in vLLM: timestamps between the frames, and one placeholder for images and frames."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import glm4_1v as upstream
from vllm.model_executor.models.interfaces import SupportsMultiModalPruning
from vllm.multimodal import MULTIMODAL_REGISTRY

from fastvid_kernels.vllm.model import TextBetweenFrames
from fastvid_kernels.vllm.placement import in_grid
from fastvid_kernels.vllm.processing import TEXTS, TextAroundFrames, kept_of_grid, texts_around
from fastvid_kernels.vllm.settings import METHOD, Serving


class Processor(TextAroundFrames, upstream.Glm4vMultiModalProcessor):
    """vLLM's processor, with the changes of `TextAroundFrames`."""

    @property
    def video_placeholder(self) -> int:
        """See `TextAroundFrames`."""
        return int(self.info.get_hf_config().image_token_id)

    def kept(self, serving: Serving, given: Any) -> int:
        """See `TextAroundFrames`."""
        merge = self.info.get_hf_config().vision_config.spatial_merge_size
        return kept_of_grid(serving, given["video_grid_thw"].data, merge)

    def texts(self, mm_items: Any, processed: Any) -> list[list[list[int]]]:
        """See `TextAroundFrames`."""
        return [self._texts(*one) for one in zip(mm_items["video"], processed["video_grid_thw"], strict=True)]

    def _texts(self, video: Any, grid: Tensor) -> list[list[int]]:
        config = self.info.get_hf_config()
        frames, merge = int(grid[0]), config.vision_config.spatial_merge_size
        # The video's prompt as vLLM makes it, for frames of one token.
        ids = self.info._construct_video_placeholder(*video, torch.tensor([frames, merge, merge]))
        texts = texts_around(ids, self.video_placeholder)
        if len(texts) != frames + 1:
            raise ValueError(
                f"a video must have one timestamp for each of its {frames} temporal patches, got {len(texts) - 1}: its "
                "metadata, or mm_processor_kwargs such as fps, do not fit its frames"
            )
        return texts


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=upstream.Glm4vProcessingInfo, dummy_inputs=upstream.Glm4vDummyInputsBuilder
)
class Glm4vForConditionalGeneration(
    TextBetweenFrames, upstream.Glm4vForConditionalGeneration, SupportsMultiModalPruning
):
    """vLLM's model; its videos are pruned if the server was started with this method."""

    supported_video_pruning_methods = (METHOD,)

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = self.config
        if self.prepare_pruning(vllm_config, config.vision_config.out_hidden_size, [config.image_token_id]):
            self.prepare_tower()

    def _parse_and_validate_video_input(self, **kwargs: Any) -> Any:
        texts = kwargs.pop(TEXTS, None)
        video_input = super()._parse_and_validate_video_input(**kwargs)
        if video_input is not None:
            setattr(video_input, TEXTS, texts)
        return video_input

    def _process_video_input(self, video_input: Any) -> Any:
        run = super()._process_video_input
        if self.serving is None:
            return run(video_input)
        pruned = self.pruned_videos(run, video_input, self.embedding_width)
        grids, texts = video_input["video_grid_thw"].tolist(), getattr(video_input, TEXTS)
        merge = self.visual.spatial_merge_size
        return tuple(
            self.with_texts(kept, around, in_grid(1, rows // merge, columns // merge))
            for (_, kept), (_, rows, columns), around in zip(pruned, grids, texts, strict=True)
        )


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=upstream.Glm4vProcessingInfo, dummy_inputs=upstream.Glm4vDummyInputsBuilder
)
class Glm4vMoeForConditionalGeneration(Glm4vForConditionalGeneration, upstream.Glm4vMoeForConditionalGeneration):
    """vLLM's mixture of experts, with the changes of `Glm4vForConditionalGeneration`."""
