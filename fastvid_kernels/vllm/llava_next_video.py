"""LLaVA-NeXT-Video in vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from vllm.distributed import tensor_model_parallel_all_gather
from vllm.model_executor.models import llava_next_video as upstream
from vllm.model_executor.models.interfaces import SupportsMRoPE, SupportsMultiModalPruning
from vllm.multimodal import MULTIMODAL_REGISTRY

from fastvid_kernels.adapters.llava_next_video import DEFAULT_ATTENTION, pooling, tokens_per_frame
from fastvid_kernels.vllm.model import PrunedModel
from fastvid_kernels.vllm.placement import Item, with_positions
from fastvid_kernels.vllm.processing import (
    FullStopBehindVideos,
    PrunedProcessor,
    check_text_behind,
    positions_for_dropped,
)
from fastvid_kernels.vllm.settings import METHOD, Serving
from fastvid_kernels.vllm.startup import serving_of
from fastvid_kernels.vllm.towers import ServedClsAttention, ServedScorer, in_parts


class ProcessingInfo(upstream.LlavaNextVideoProcessingInfo):
    """Counts the kept tokens of a video."""

    def get_num_video_tokens(self, *, num_frames: int, **size: int) -> int:
        """Number of kept tokens of a video."""
        serving = serving_of(self.ctx.model_config)
        if serving is None:
            return super().get_num_video_tokens(num_frames=num_frames, **size)  # type: ignore[no-any-return]
        return num_frames * serving.kept_per_frame(tokens_per_frame(self.get_hf_config()))

    def get_num_frames_with_most_features(self, seq_len: int, mm_counts: Mapping[str, int]) -> int:
        """Frames of the longest video, with which vLLM warms up: no more than there are positions for."""
        frames: int = super().get_num_frames_with_most_features(seq_len, mm_counts)
        serving = serving_of(self.ctx.model_config)
        if serving is None:
            return frames
        room = positions_for_dropped(self.ctx.model_config)
        return max(1, min(frames, room // max(1, dropped_per_frame(serving, self.get_hf_config()))))


def dropped_per_frame(serving: Serving, config: Any) -> int:
    """N - K, how many tokens of a frame are dropped."""
    n = tokens_per_frame(config)
    return n - serving.kept_per_frame(n)


class Processor(PrunedProcessor, upstream.LlavaNextVideoMultiModalProcessor):
    """vLLM's processor, with checks of positions."""

    def check_places(self, serving: Serving, prompt: Any) -> None:
        """See `PrunedProcessor`."""
        check_text_behind(prompt)
        config = self.info.get_hf_config()
        kept = serving.kept_per_frame(tokens_per_frame(config))
        frames = sum(one.length // kept for one in prompt["mm_placeholders"].get("video", ()))
        self.check_positions(prompt, frames * dropped_per_frame(serving, config))


class DummyInputs(FullStopBehindVideos, upstream.LlavaNextVideoDummyInputsBuilder):
    """vLLM's dummy inputs, with the change of `FullStopBehindVideos`."""


@MULTIMODAL_REGISTRY.register_processor(Processor, info=ProcessingInfo, dummy_inputs=DummyInputs)
class LlavaNextVideoForConditionalGeneration(
    PrunedModel, upstream.LlavaNextVideoForConditionalGeneration, SupportsMRoPE, SupportsMultiModalPruning
):
    """vLLM's model; its videos are pruned if the server was started with this method."""

    supported_video_pruning_methods = (METHOD,)

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = self.config
        if not self.prepare_pruning(vllm_config, config.text_config.hidden_size, (config.video_token_index,)):
            # Without pruning, M-RoPE is not configured, and the model is vLLM's unchanged one.
            self.supports_mrope = False
            return
        assert self.serving is not None
        self.tokens_per_frame = tokens_per_frame(config)
        # vLLM builds no blocks behind the one that the model's tokens are made of.
        layers = self.vision_tower.vision_model.encoder.layers
        of_cls = ServedClsAttention(
            self.vision_tower,
            f"vision_model.encoder.layers.{len(layers) - 1}.self_attn.attn",
            layers[-1].self_attn.num_heads_per_partition,
            tensor_model_parallel_all_gather,
        )
        self.score = ServedScorer(self._run, of_cls, self.serving.attention or DEFAULT_ATTENTION, pooling(config))

    def _run(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of frames `[F, N, D]`, and the tower's states `[F, 1 + P, H]`."""
        states: Tensor = self.vision_tower(pixels, feature_select_strategy="full")
        return self.multi_modal_projector(self.vision_resampler(states[:, 1:])), states

    def items(self, features: Sequence[Any]) -> list[Item]:
        """See `PrunedModel`. The number of frames follows from the length."""
        assert self.serving is not None
        kept = self.serving.kept_per_frame(self.tokens_per_frame)
        places = [one.mm_position for one in features]
        return [Item(one.offset, one.length, one.length // kept * self.tokens_per_frame) for one in places]

    def forward(self, input_ids: Any, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Call the language model with one row of positions.

        Where M-RoPE is configured, vLLM gives three rows, `[3, tokens]`, here all the same. But its Llama is compiled
        for positions whose first dimension is the number of tokens.
        """
        return super().forward(input_ids, positions if self.serving is None else positions[0], *args, **kwargs)

    def _process_video_pixels(self, inputs: Any) -> Any:
        if self.serving is None:
            return super()._process_video_pixels(inputs)
        return [self._pruned(video) for video in inputs["pixel_values_videos"]]

    def _pruned(self, pixels: Tensor) -> Tensor:
        """Kept tokens of a video `[F, 3, height, width]`, with their positions as channels."""
        kept = self.pruner(in_parts(self.score, pixels))
        return with_positions(kept.tokens, kept.indices.expand(3, -1))
