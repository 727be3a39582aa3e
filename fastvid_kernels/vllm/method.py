"""Changes to vLLM: add the method's name and model classes, refuse other models, and prepare the CPU runner.

vLLM has no extension point for the name: the methods are a closed `Literal` in a validated dataclass.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, get_args

from fastvid_kernels.vllm.settings import METHOD

MODELS = {
    "LlavaOnevisionForConditionalGeneration": "llava_onevision",
    "LlavaNextVideoForConditionalGeneration": "llava_next_video",
    "InternVLForConditionalGeneration": "internvl",
    "InternVLChatModel": "internvl",
    "Qwen2VLForConditionalGeneration": "qwen2_vl",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
    "Qwen3VLForConditionalGeneration": "qwen3_vl",
    "Qwen3VLMoeForConditionalGeneration": "qwen3_vl_moe",
    "Qwen3_5ForConditionalGeneration": "qwen3_5",
    "Qwen3_5MoeForConditionalGeneration": "qwen3_5",
    "Glm4vForConditionalGeneration": "glm4_1v",
    "Glm4vMoeForConditionalGeneration": "glm4_1v",
}
"""For each architecture, the module that has a class of the same name."""


def add_method() -> None:
    """Make all changes to vLLM, once per process.

    Raises:
        RuntimeError: vLLM differs from the supported versions.
    """
    from vllm.config.multimodal import MultiModalConfig
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.platforms import current_platform

    from fastvid_kernels.vllm.cpu import tell_runner
    from fastvid_kernels.vllm.startup import CONFIGS

    if not _add_name(MultiModalConfig):
        return
    for architecture, module in MODELS.items():
        config = CONFIGS[architecture]
        if MODELS_CONFIG_MAP.get(architecture) is not config.upstream:
            raise RuntimeError(f"vLLM configures {architecture} in another way: this version is not supported")
        MODELS_CONFIG_MAP[architecture] = config
        ModelRegistry.register_model(architecture, f"fastvid_kernels.vllm.{module}:{architecture}")
    _refuse_others()
    if current_platform.is_cpu():
        tell_runner()


def _add_name(config: Any) -> bool:
    """Add the method's name to vLLM's configuration; return False if it is already there."""
    from pydantic.dataclasses import rebuild_dataclass
    from vllm.config import multimodal
    from vllm.engine import arg_utils

    field = config.__dataclass_fields__["video_pruning_method"]
    names = get_args(field.type)
    if METHOD in names:
        return False
    if not names or names != get_args(multimodal.VideoPruningMethod):
        raise RuntimeError(
            f"vLLM's video_pruning_method must be a Literal, got {field.type!r}: this version is not supported"
        )
    methods = Literal[(*names, METHOD)]  # type: ignore[valid-type]
    multimodal.VideoPruningMethod = methods
    field.type = methods
    config.__annotations__["video_pruning_method"] = methods
    if METHOD not in get_args(config.__pydantic_fields__["video_pruning_method"].annotation):
        config.__pydantic_fields__["video_pruning_method"].annotation = methods
    rebuild_dataclass(config, force=True)
    # The command line caches the values it accepts, which it read from the old field.
    arg_utils._compute_kwargs.cache_clear()
    config(video_pruning_rate=0.5, video_pruning_method=METHOD)
    return True


def _refuse_others() -> None:
    """Refuse other models, and the method without a rate: with these, vLLM silently prunes nothing."""
    from vllm.config import VllmConfig

    original = VllmConfig.try_verify_and_update_config

    @functools.wraps(original)
    def checked(self: Any) -> None:
        model = self.model_config
        if model is not None and not getattr(model, "config_updated", False):
            multimodal = model.multimodal_config
            if multimodal is not None and multimodal.video_pruning_method == METHOD:
                _check_prunes(model, multimodal.video_pruning_rate)
        original(self)

    VllmConfig.try_verify_and_update_config = checked


def _check_prunes(model: Any, rate: float | None) -> None:
    if not rate:
        raise ValueError(
            f"--video-pruning-rate must be above 0 with --video-pruning-method {METHOD}, got {rate}: without it "
            "nothing is pruned"
        )
    if model.architecture not in MODELS:
        raise ValueError(
            f"--video-pruning-method {METHOD} is for {', '.join(MODELS)}, got {model.architecture}: choose one of "
            "these, or leave --video-pruning-rate out"
        )
