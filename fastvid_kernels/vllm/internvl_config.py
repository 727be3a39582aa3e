"""What a configuration of InternVL says of a frame's patches and tokens, in both formats of its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from fastvid_kernels.vision import ATTENTION_SUBSTITUTES, pool_to_grid
from fastvid_kernels.vllm.settings import Serving

DEFAULT_ATTENTION = "cls"


def check_config(config: Any, serving: Serving) -> None:
    """Raise unless the vision tower of a model with this configuration can give the attention asked for.

    Args:
        config: the model's configuration, in transformers' format or in InternVL's own.
        serving: the settings.

    Raises:
        ValueError: the model is not supported, or a setting does not fit it.
    """
    known = (DEFAULT_ATTENTION, *ATTENTION_SUBSTITUTES)
    if serving.siglip is not None or serving.attention not in (None, *known):
        raise ValueError(
            f"attention must be one of {', '.join(known)} for InternVL, whose vision tower has a [CLS] token, got "
            f"{serving.attention or 'siglip'}"
        )
    # vLLM takes the last layer of transformers' format, and pools as the second version of InternVL's own does.
    wanted = {"vision_feature_layer": -1, "vision_feature_select_strategy": "default", "ps_version": "v2"}
    for name, value in wanted.items():
        if getattr(config, name, value) != value:
            raise ValueError(f"{name} of the model must be {value!r}, got {getattr(config, name)!r}")
    sides, ratio = _patches(config), config.downsample_ratio
    if sides[0] != sides[1] or ratio <= 0 or ratio * _stride(config) != 1 or sides[0] % _stride(config):
        raise ValueError(
            "frames must be squares that downsample_ratio, the inverse of an integer, divides into squares of patches, "
            f"got {sides[0]} by {sides[1]} patches and {ratio}"
        )


def tokens_per_frame(config: Any) -> int:
    """N, the tokens a frame."""
    return int((_patches(config)[0] // _stride(config)) ** 2)


def pooling(config: Any) -> Callable[[Tensor], Tensor]:
    """The function that pools attention `[F, P]` of patches to tokens `[F, N]`.

    A token is made of the states of a square of patches, side by side; its attention is their mean.
    """
    return partial(pool_to_grid, grid=_patches(config), mode="average", stride=_stride(config))


def _patches(config: Any) -> tuple[int, int]:
    """Rows and columns of patches in a frame."""
    sizes = (config.vision_config.image_size, config.vision_config.patch_size)
    frame, patch = (size if isinstance(size, (list, tuple)) else (size, size) for size in sizes)
    return frame[0] // patch[0], frame[1] // patch[1]


def _stride(config: Any) -> int:
    ratio: float = config.downsample_ratio
    return round(1 / ratio)
