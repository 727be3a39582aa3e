"""The shape of a SigLIP head, read from a checkpoint's config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FULL_CHECKPOINT_ADVICE = "give a full SigLIP checkpoint, such as google/siglip-so400m-patch14-384"

# SigLIP2's tower differs from SigLIP's, but its head is the same.
_WHOLE_MODELS = ("siglip", "siglip2")
_VISION_MODELS = ("siglip_vision_model", "siglip2_vision_model")


@dataclass(frozen=True)
class SiglipHeadConfig:
    """Sizes of a SigLIP head; the defaults apply to keys that a config.json leaves out.

    Attributes:
        hidden_size: H, channels of a patch.
        intermediate_size: channels inside the MLP.
        num_attention_heads: attention heads; divides H.
        layer_norm_eps: epsilon of both layer norms.

    Raises:
        TypeError: a size is not an integer, or epsilon is not a number.
        ValueError: a value is not positive, or the heads do not divide H.

    Source: `SiglipVisionConfig` of transformers.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_attention_heads: int = 12
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _check_size("hidden_size", self.hidden_size)
        _check_size("intermediate_size", self.intermediate_size)
        _check_size("num_attention_heads", self.num_attention_heads)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads must divide hidden_size, {self.hidden_size}, got {self.num_attention_heads}"
            )
        _check_epsilon("layer_norm_eps", self.layer_norm_eps)

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> SiglipHeadConfig:
        """Read a checkpoint's parsed config.json, of a whole SigLIP or SigLIP2 model or of its vision model alone.

        Raises:
            TypeError: a size is not an integer, or epsilon is not a number.
            ValueError: the checkpoint is of another model, lacks its `vision_config`, or has a head that is computed
                differently (`hidden_act`).
        """
        vision = _vision_config(config)
        activation = vision.get("hidden_act", "gelu_pytorch_tanh")
        if activation != "gelu_pytorch_tanh":
            raise ValueError(f"hidden_act must be 'gelu_pytorch_tanh', as in every SigLIP head, got {activation!r}")
        return cls(**{name: vision[name] for name in cls.__dataclass_fields__ if name in vision})


def _vision_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    model = config.get("model_type")
    if model in _VISION_MODELS:
        return config
    if model not in _WHOLE_MODELS:
        raise ValueError(
            f"model_type must be one of {', '.join(_WHOLE_MODELS + _VISION_MODELS)}, got {model!r}: "
            f"{FULL_CHECKPOINT_ADVICE} (LLaVA checkpoints leave the head out)"
        )
    vision = config.get("vision_config")
    if not isinstance(vision, Mapping):
        raise ValueError(f"vision_config must be an object, as in every {model} checkpoint, got {vision!r}")
    return vision


def _check_size(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def _check_epsilon(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
