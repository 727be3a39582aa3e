"""Qwen2-VL in vLLM, and what Qwen2.5-VL shares with it: a video is one run of placeholders, placed in time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather
from vllm.model_executor.models import qwen2_vl as upstream
from vllm.model_executor.models.interfaces import SupportsMultiModalPruning
from vllm.multimodal import MULTIMODAL_REGISTRY

from fastvid_kernels.vision import TowerScore
from fastvid_kernels.vllm.model import PrunedByGrid, image_item
from fastvid_kernels.vllm.placement import Item, in_grid, with_positions
from fastvid_kernels.vllm.processing import FullStopBehindVideos, PrunedQwenProcessor, check_text_behind
from fastvid_kernels.vllm.settings import METHOD, Serving
from fastvid_kernels.vllm.towers import ServedBlockScorer, SlicedBlockScorer


class TextBehindVideos(PrunedQwenProcessor):
    """Counts the kept tokens of a video, and requires text behind it: what follows is placed by its last token."""

    def check_places(self, serving: Serving, prompt: Any) -> None:
        """See `PrunedProcessor`."""
        check_text_behind(prompt)


class PlacedInTime(PrunedByGrid):
    """Base class of models whose videos are one run of placeholders each, without text between frames."""

    config: Any
    # vLLM's: for each item its offset, frames, rows and columns of tokens, and positions from one frame to the next.
    iter_mm_grid_thw: Callable[[Sequence[Any]], Iterable[Any]]

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

    def _process_video_input(self, video_input: Any) -> Any:
        run = super()._process_video_input  # type: ignore[misc]
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


class Processor(TextBehindVideos, upstream.Qwen2VLMultiModalProcessor):
    """vLLM's processor, with the changes of `TextBehindVideos`."""


class DummyInputs(FullStopBehindVideos, upstream.Qwen2VLDummyInputsBuilder):
    """vLLM's dummy inputs, with the change of `FullStopBehindVideos`."""


@MULTIMODAL_REGISTRY.register_processor(Processor, info=upstream.Qwen2VLProcessingInfo, dummy_inputs=DummyInputs)
class Qwen2VLForConditionalGeneration(
    PlacedInTime, upstream.Qwen2VLForConditionalGeneration, SupportsMultiModalPruning
):
    """vLLM's model; its videos are pruned if the server was started with this method."""

    supported_video_pruning_methods = (METHOD,)

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = self.config
        ids = (config.image_token_id, config.video_token_id)
        if self.prepare_pruning(vllm_config, config.vision_config.hidden_size, ids):
            self.prepare_tower()

    def block_scorer(self, score: TowerScore) -> ServedBlockScorer:
        """See `PrunedByGrid`. Here each rank has a slice of the queries, keys and values in a row."""
        heads = self.visual.blocks[-1].attn.num_attention_heads_per_partition * get_tensor_model_parallel_world_size()
        return SlicedBlockScorer(heads, score, self.visual.spatial_merge_size**2, tensor_model_parallel_all_gather)

    def get_encoder_cudagraph_config(self) -> Any:
        """vLLM's, without videos where they are pruned: a CUDA graph of the tower would leave pruning out."""
        config = super().get_encoder_cudagraph_config()
        if self.serving is None:
            return config
        images = [one for one in config.modalities if one != "video"]
        return replace(config, modalities=images, max_frames_per_video=1)
