"""InternVL in vLLM, in transformers' format of its checkpoints and in InternVL's own.

A frame is preceded by its number, as text, and its tokens stand between two marks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import tensor_model_parallel_all_gather
from vllm.model_executor.models import interns1, internvl
from vllm.model_executor.models.interfaces import SupportsMRoPE, SupportsMultiModalPruning
from vllm.multimodal import MULTIMODAL_REGISTRY

from fastvid_kernels.adapters.hooks import Recorder
from fastvid_kernels.vllm.internvl_config import DEFAULT_ATTENTION, pooling, tokens_per_frame
from fastvid_kernels.vllm.model import TextEmbedded, image_item
from fastvid_kernels.vllm.placement import Item
from fastvid_kernels.vllm.processing import TEXTS, TextAroundFrames, positions_for_dropped, texts_around
from fastvid_kernels.vllm.settings import METHOD, Serving
from fastvid_kernels.vllm.startup import serving_of
from fastvid_kernels.vllm.towers import ServedClsAttention, ServedScorer, in_parts

# The most text tokens a frame that the warm-up counts with: a line break, "Frame", up to five digits, and marks.
_WORDS = 12


class _Info:
    """Mixin before a vLLM class of processing information: the longest video."""

    ctx: Any

    def get_num_frames_with_most_features(self, seq_len: int, mm_counts: Mapping[str, int]) -> int:
        """Frames of the longest video, with which vLLM warms up: no more than there are positions for."""
        frames: int = super().get_num_frames_with_most_features(seq_len, mm_counts)  # type: ignore[misc]
        serving = serving_of(self.ctx.model_config)
        if serving is None:
            return frames
        n = tokens_per_frame(self.ctx.model_config.hf_config)
        kept = serving.kept_per_frame(n)
        room = positions_for_dropped(self.ctx.model_config) // max(1, n - kept)
        return max(1, min(frames * n // (kept + _WORDS), room))


class InternS1Info(_Info, interns1.InternS1ProcessingInfo):
    """vLLM's information, with the change of `_Info`."""


class InternVLInfo(_Info, internvl.InternVLProcessingInfo):
    """vLLM's information, with the change of `_Info`."""


class _Processor(TextAroundFrames):
    """What both processors have in common."""

    def texts_of(self, frames: int) -> list[list[int]]:
        """The text around the frames of a video, as vLLM's own processor writes it."""
        raise NotImplementedError

    def kept(self, serving: Serving, given: Any) -> int:
        """See `TextAroundFrames`."""
        frames = int(given["video_num_patches"].data)
        return frames * serving.kept_per_frame(tokens_per_frame(self.info.get_hf_config()))

    def texts(self, mm_items: Any, processed: Any) -> list[list[list[int]]]:
        """See `TextAroundFrames`."""
        return [self.texts_of(frames) for frames in processed["video_num_patches"].tolist()]

    def check_places(self, serving: Serving, prompt: Any) -> None:
        """See `PrunedProcessor`."""
        n = tokens_per_frame(self.info.get_hf_config())
        kept = serving.kept_per_frame(n)
        ids, frames = prompt["prompt_token_ids"], 0
        for one in prompt["mm_placeholders"].get("video", ()):
            frames += ids[one.offset : one.offset + one.length].count(self.video_placeholder) // kept
        self.check_positions(prompt, frames * (n - kept))


class InternS1Processor(_Processor, interns1.InternS1MultiModalProcessor):
    """The processor for transformers' format."""

    @property
    def placeholders(self) -> set[int]:
        """See `PrunedProcessor`."""
        return {self.info.get_hf_processor().image_token_id, self.video_placeholder}

    @property
    def video_placeholder(self) -> int:
        """See `TextAroundFrames`."""
        processor = self.info.get_hf_processor()
        return int(processor.tokenizer.convert_tokens_to_ids(processor.video_token))

    def texts_of(self, frames: int) -> list[list[int]]:
        """See `_Processor`."""
        processor = with_one_token(self.info.get_hf_processor())
        text = processor.replace_video_token({"pixel_values_videos": [torch.empty(frames)]}, 0)
        # There, a video's tokens have the placeholder of an image's.
        return texts_around(processor.tokenizer(text, add_special_tokens=False)["input_ids"], processor.image_token_id)


class InternVLProcessor(_Processor, internvl.InternVLMultiModalProcessor):
    """The processor for InternVL's own format."""

    @property
    def placeholders(self) -> set[int]:
        """See `PrunedProcessor`. Where the tokenizer has none for videos, vLLM takes none."""
        processor = self.info.get_hf_processor()
        return {processor.ctx_image_token_id, processor.ctx_video_token_id} - {None}

    @property
    def video_placeholder(self) -> int:
        """See `TextAroundFrames`."""
        return int(self.info.get_hf_processor().ctx_video_token_id)

    def texts_of(self, frames: int) -> list[list[int]]:
        """See `_Processor`."""
        processor = with_one_token(self.info.get_hf_processor())
        return texts_around(processor.get_video_repl(frames).full, self.video_placeholder)


def with_one_token(processor: Any) -> Any:
    """A copy of a processor that writes one token a frame: to find the text around frames, it needs no more."""
    processor = copy(processor)
    processor.image_seq_length = 1
    return processor


class _Model(TextEmbedded):
    """What both models have in common.

    Attributes:
        pixels: name of the frames `[frames, 3, height, width]` in vLLM's input of videos.
    """

    pixels: str
    supported_video_pruning_methods = (METHOD,)
    config: Any
    extract_feature: Callable[[Tensor], Tensor]

    def prepare(self, vllm_config: Any, tower: str, attention: str, heads: int) -> None:
        """Read the pruning settings, and register what scores patches.

        Args:
            vllm_config: the server's configuration.
            tower: the name of the vision tower.
            attention: path from the tower to the module of its last block that gets queries, keys and values.
            heads: how many heads of them this rank has.
        """
        config = self.config
        if not self.prepare_pruning(vllm_config, config.text_config.hidden_size, ()):
            # Without pruning, M-RoPE is not configured, and the model is vLLM's unchanged one.
            self.supports_mrope = False
            return
        assert self.serving is not None
        # Those of videos stand in no configuration.
        self.placeholder_ids = frozenset(MULTIMODAL_REGISTRY.create_processor(vllm_config.model_config).placeholders)
        self.refuse_adapters_of_the_embedding()
        self.tokens_per_frame = tokens_per_frame(config)
        module = getattr(self, tower)
        of_cls = ServedClsAttention(module, attention, heads, tensor_model_parallel_all_gather)
        self.states = Recorder()
        module.register_forward_hook(self.states)
        self.score = ServedScorer(self._run, of_cls, self.serving.attention or DEFAULT_ATTENTION, pooling(config))

    def _run(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of frames `[F, N, D]`, and the tower's states `[F, 1 + P, H]`."""
        self.states.start()
        try:
            tokens = self.extract_feature(pixels)
            assert self.states.output is not None
            return tokens, self.states.output
        finally:
            self.states.forget()

    def items(self, features: Sequence[Any]) -> list[Item]:
        """See `PrunedModel`."""
        return [self._item(one) for one in features]

    def _item(self, feature: Any) -> Item:
        offset, length = feature.mm_position.offset, feature.mm_position.length
        if feature.modality != "video":
            return image_item(feature, torch.arange(length).expand(3, -1))
        assert self.serving is not None
        frames = int(feature.data["video_num_patches"].data)
        dropped = self.tokens_per_frame - self.serving.kept_per_frame(self.tokens_per_frame)
        return Item(offset, length, length + frames * dropped)

    def forward(self, input_ids: Any, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Call the language model with one row of positions, of three equal ones: not all take three where compiled."""
        return super().forward(  # type: ignore[misc]
            input_ids, positions if self.serving is None else positions[0], *args, **kwargs
        )

    def _parse_and_validate_video_input(self, **kwargs: Any) -> Any:
        texts = kwargs.pop(TEXTS, None)
        video_input = super()._parse_and_validate_video_input(**kwargs)  # type: ignore[misc]
        if video_input is not None:
            setattr(video_input, TEXTS, texts)
        return video_input

    def _process_vision_input(self, image_input: Any) -> Any:
        if self.serving is None or image_input["type"] != "pixel_values_videos":
            return super()._process_vision_input(image_input)  # type: ignore[misc]
        # One by one, so that no video's tokens depend on those beside it, to the last bit.
        videos = image_input[self.pixels].split(image_input["num_patches"].tolist())
        return tuple(self._pruned(*one) for one in zip(videos, getattr(image_input, TEXTS), strict=True))

    def _pruned(self, pixels: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        """A video as in the prompt, given its frames `[F, 3, height, width]` and the text around them."""
        kept = self.pruner(in_parts(self.score, pixels))
        return self.with_texts(kept, texts, torch.arange(self.tokens_per_frame).expand(3, -1))


@MULTIMODAL_REGISTRY.register_processor(
    InternS1Processor, info=InternS1Info, dummy_inputs=interns1.InternS1DummyInputsBuilder
)
class InternVLForConditionalGeneration(
    _Model, interns1.InternS1ForConditionalGeneration, SupportsMRoPE, SupportsMultiModalPruning
):
    """vLLM's model for transformers' format; its videos are pruned if the server was started with this method."""

    pixels = "pixel_values"

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        layers = self.vision_tower.encoder.layer
        # Every rank has all heads.
        self.prepare(
            vllm_config,
            "vision_tower",
            f"encoder.layer.{len(layers) - 1}.attention.attn",
            layers[-1].attention.num_heads,
        )


@MULTIMODAL_REGISTRY.register_processor(
    InternVLProcessor, info=InternVLInfo, dummy_inputs=internvl.InternVLDummyInputsBuilder
)
class InternVLChatModel(_Model, internvl.InternVLChatModel, SupportsMRoPE, SupportsMultiModalPruning):
    """vLLM's model for InternVL's own format; its videos are pruned if the server was started with this method."""

    pixels = "pixel_values_flat"

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        # vLLM builds no blocks behind the one that the model's tokens are made of.
        layers = self.vision_model.encoder.layers
        self.prepare(
            vllm_config,
            "vision_model",
            f"encoder.layers.{len(layers) - 1}.attn.attn",
            layers[-1].attn.num_heads_per_partition,
        )

    def get_encoder_cudagraph_config(self) -> Any:
        """vLLM's, without videos where they are pruned: a CUDA graph of the tower would leave pruning out."""
        config = super().get_encoder_cudagraph_config()
        if self.serving is None:
            return config
        return replace(config, modalities=[one for one in config.modalities if one != "video"])
