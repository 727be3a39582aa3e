"""Checks and preparations when a server starts: in its first process, before any weight is read."""

from __future__ import annotations

import math
from typing import Any

from vllm.model_executor.models.config import Qwen3_5ForConditionalGenerationConfig, VerifyAndUpdateConfig

from fastvid_kernels.adapters import llava_next_video, llava_onevision, qwen_vl
from fastvid_kernels.adapters.decoder import has_sliding_window
from fastvid_kernels.adapters.scoring import scorer
from fastvid_kernels.adapters.settings import Settings
from fastvid_kernels.config import PruneConfig
from fastvid_kernels.vision import ATTENTION_SUBSTITUTES, TOWER_ATTENTION, pooled_grid
from fastvid_kernels.vllm import internvl_config
from fastvid_kernels.vllm.settings import METHOD, Serving

_KEY = "fastvid"


def rate_of(model_config: Any) -> float | None:
    """The fraction of video tokens that is dropped; None if this method is not in use."""
    multimodal = model_config.multimodal_config
    spec = None if multimodal is None else multimodal.get_video_pruning_spec()
    return spec[1] if spec is not None and spec[0] == METHOD else None


def serving_of(model_config: Any) -> Serving | None:
    """How videos are pruned; None if by another method, or not at all."""
    if rate_of(model_config) is None:
        return None
    return Serving.from_plain(getattr(model_config.hf_config, _KEY))


def llava_settings(serving: Serving) -> Settings:
    """The settings as the adapters take them."""
    return Settings(serving.siglip, serving.attention, serving.config, serving.backend)


def tokens_per_frame(vision: Any) -> int:
    """N, the tokens a frame, of LLaVA-OneVision."""
    side = vision.image_size // vision.patch_size
    return math.prod(pooled_grid((side, side), "bilinear"))


def rotary_positions(model_config: Any) -> int:
    """How many positions vLLM's table for M-RoPE holds: four times the model's `max_position_embeddings`."""
    return 4 * int(model_config.hf_config.get_text_config().max_position_embeddings)


class _Config(VerifyAndUpdateConfig):
    """The hook that vLLM calls for an architecture after it has built its own configuration.

    Attributes:
        defaults: the published hyperparameters.
        rope_types: the language model's RoPE may be of these.
        upstream: vLLM's own hook, which is called first.
    """

    defaults: PruneConfig
    rope_types: tuple[str, ...] = ("default",)
    upstream: type[VerifyAndUpdateConfig] | None = None

    @classmethod
    def verify_and_update_config(cls, vllm_config: Any) -> None:
        """Check the settings, and store them in the model's configuration, which every process gets."""
        if cls.upstream is not None:
            cls.upstream.verify_and_update_config(vllm_config)
        model_config = vllm_config.model_config
        rate = rate_of(model_config)
        if rate is None:
            return
        additional = vllm_config.additional_config
        serving = Serving.asked(rate, additional if isinstance(additional, dict) else {}, cls.defaults)
        _check_engine(vllm_config)
        _check_language_model(model_config.hf_config.get_text_config(), cls.rope_types)
        cls.prepare(vllm_config, serving)
        setattr(model_config.hf_config, _KEY, serving.plain())

    @classmethod
    def prepare(cls, vllm_config: Any, serving: Serving) -> None:
        """Do the checks and preparations of one model."""
        raise NotImplementedError


class LlavaOnevisionConfig(_Config):
    """Turns on M-RoPE with three equal rows, which is RoPE at positions that the model chooses."""

    defaults = llava_onevision.DEFAULTS

    @classmethod
    def prepare(cls, vllm_config: Any, serving: Serving) -> None:
        """Check the tower and its head, and configure M-RoPE in the language model."""
        config = vllm_config.model_config.hf_config
        if not isinstance(config.vision_feature_layer, int) or config.vision_feature_select_strategy != "full":
            raise ValueError(
                "the model must take all patches of one vision layer, got vision_feature_layer "
                f"{config.vision_feature_layer} and vision_feature_select_strategy "
                f"{config.vision_feature_select_strategy!r}"
            )
        serving.kept_per_frame(tokens_per_frame(config.vision_config))
        # Loads the head (61 MB at most) only as a check: the worker, which needs it, reports errors only in its log.
        scorer(llava_settings(serving), config.vision_config.hidden_size)
        _use_mrope(config.get_text_config())


class LlavaNextVideoConfig(_Config):
    """Turns on M-RoPE, as `LlavaOnevisionConfig` does."""

    defaults = llava_next_video.DEFAULTS

    @classmethod
    def prepare(cls, vllm_config: Any, serving: Serving) -> None:
        """Check the tower, and configure M-RoPE in the language model."""
        config = vllm_config.model_config.hf_config
        llava_next_video.check_config(config, llava_settings(serving))
        _check_hooks(vllm_config)
        serving.kept_per_frame(llava_next_video.tokens_per_frame(config))
        _use_mrope(config.get_text_config())


class InternVLConfig(_Config):
    """Turns on M-RoPE, as `LlavaOnevisionConfig` does."""

    defaults = PruneConfig()
    rope_types = ("default", "dynamic")

    @classmethod
    def prepare(cls, vllm_config: Any, serving: Serving) -> None:
        """Check the tower, and configure M-RoPE in the language model."""
        config = vllm_config.model_config.hf_config
        internvl_config.check_config(config, serving)
        if vllm_config.model_config.architecture == "InternVLChatModel":
            _check_takes_videos(config.get_text_config())
        _check_tower(vllm_config)
        serving.kept_per_frame(internvl_config.tokens_per_frame(config))
        _use_mrope(config.get_text_config())


class TowerConfig(_Config):
    """Qwen and GLM models have M-RoPE already."""

    defaults = qwen_vl.DEFAULTS

    @classmethod
    def prepare(cls, vllm_config: Any, serving: Serving) -> None:
        """Check that the tower's last block can be scored by hooks."""
        known = (*TOWER_ATTENTION, *ATTENTION_SUBSTITUTES)
        if serving.siglip is not None or serving.attention not in (None, *known):
            raise ValueError(
                f"attention must be one of {', '.join(known)} for this model, whose attention comes from its own "
                f"vision tower, got {serving.attention or 'siglip'}"
            )
        _check_tower(vllm_config)
        vision = vllm_config.model_config.hf_config.vision_config
        full = getattr(vision, "fullatt_block_indexes", None)
        if full is not None and vision.depth - 1 not in full:
            raise ValueError(
                "the last block of the vision tower must attend to whole frames, got fullatt_block_indexes "
                f"{list(full)} of {vision.depth} blocks"
            )


class HybridConfig(TowerConfig):
    """vLLM has a hook of its own for Qwen3.5, whose layers with linear attention keep a state."""

    upstream = Qwen3_5ForConditionalGenerationConfig


CONFIGS = {
    "LlavaOnevisionForConditionalGeneration": LlavaOnevisionConfig,
    "LlavaNextVideoForConditionalGeneration": LlavaNextVideoConfig,
    "InternVLForConditionalGeneration": InternVLConfig,
    "InternVLChatModel": InternVLConfig,
    "Qwen2VLForConditionalGeneration": TowerConfig,
    "Qwen2_5_VLForConditionalGeneration": TowerConfig,
    "Qwen3VLForConditionalGeneration": TowerConfig,
    "Qwen3VLMoeForConditionalGeneration": TowerConfig,
    "Qwen3_5ForConditionalGeneration": HybridConfig,
    "Qwen3_5MoeForConditionalGeneration": HybridConfig,
    "Glm4vForConditionalGeneration": TowerConfig,
    "Glm4vMoeForConditionalGeneration": TowerConfig,
}


def _check_engine(vllm_config: Any) -> None:
    if vllm_config.speculative_config is not None:
        raise ValueError(f"speculative decoding must be off with {METHOD}: a draft model would use other positions")
    stages = vllm_config.parallel_config.pipeline_parallel_size
    if stages != 1:
        raise ValueError(
            f"--pipeline-parallel-size must be 1 with {METHOD}, got {stages}: later stages do not get the positions of "
            "the kept tokens"
        )
    if vllm_config.lora_config is not None and vllm_config.lora_config.enable_tower_connector_lora:
        raise ValueError(
            f"--enable-tower-connector-lora must be off with {METHOD}: vLLM counts a tower's tokens by a prompt's "
            "placeholders, which are fewer where videos are pruned"
        )
    if vllm_config.model_config.enable_prompt_embeds:
        raise ValueError(f"--enable-prompt-embeds must be off with {METHOD}: videos are found by their token ids")
    if vllm_config.model_config.multimodal_config.mm_encoder_only:
        raise ValueError(
            f"--mm-encoder-only, which an ec_producer of --ec-transfer-config turns on, must be off with {METHOD}: "
            "it was not tested without a language model"
        )
    if vllm_config.model_config.multimodal_config.enable_mm_embeds:
        raise ValueError(f"--enable-mm-embeds must be off with {METHOD}: embeddings alone cannot be scored")


def _check_takes_videos(text: Any) -> None:
    if text.model_type not in ("qwen2", "qwen3", "qwen3_moe"):
        raise ValueError(
            f"the language model must be a qwen2, qwen3 or qwen3_moe with {METHOD}, got {text.model_type}: vLLM takes "
            "no videos with others in this format of InternVL's checkpoints"
        )


def _check_tower(vllm_config: Any) -> None:
    if vllm_config.model_config.multimodal_config.mm_encoder_tp_mode == "data":
        raise ValueError(f"--mm-encoder-tp-mode must be 'weights' with {METHOD}, got 'data'")
    _check_hooks(vllm_config)


def _check_hooks(vllm_config: Any) -> None:
    if getattr(vllm_config.compilation_config, "compile_mm_encoder", False):
        raise ValueError(f"compile_mm_encoder must be off with {METHOD}, which puts hooks on the vision tower")


def _use_mrope(text: Any) -> None:
    """Make vLLM ask the model for positions."""
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    # vLLM's "dynamic" scaling, with a factor alone, is RoPE unscaled.
    text.rope_parameters |= {"rope_type": "default", "mrope_section": [head_dim // 2, 0, 0]}


def _check_language_model(text: Any, rope_types: tuple[str, ...]) -> None:
    if has_sliding_window(text):
        raise ValueError(
            f"the language model must have no sliding window with {METHOD}, since its length would count kept tokens "
            f"alone, got sliding_window {getattr(text, 'sliding_window', None)}"
        )
    # Configurations that come with a checkpoint may have none.
    rope = getattr(text, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    others = sorted({"alpha", "max_trained_positions"} & rope.keys())
    if kind not in rope_types or others:
        raise ValueError(
            f"the model's rope_type must be {' or '.join(map(repr, rope_types))} with {METHOD}, got {kind!r}"
            f"{' with ' if others else ''}{' and '.join(others)}: do not use RoPE scaling"
        )
