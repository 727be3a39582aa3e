"""LLaVA-NeXT-Video of transformers, whose CLIP tower has a [CLS] token, so that no SigLIP head is needed.

Changes to the instance, all undone by `FastVidHandle.remove`:

- `model.model.get_video_features` marks the dropped tokens; placeholders and their number do not change;
- hooks on the query and key projections of one block of `vision_tower`, or on what replaces them later, compute what
  [CLS] attends to, in the block whose output the model's tokens are made of;
- the hooks of `PrunedDecoder` are registered on the language model;
- `model.create_masks_for_generate` leaves masks of static caches to the decoder: its hooks know what the cache holds.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

# Like `torch.compiler.disable`, but importing it does not import the compiler.
from torch._compile import _disable_dynamo

from fastvid_kernels.adapters.cls_token import ClsAttention
from fastvid_kernels.adapters.decoder import PrunedDecoder, check_language_model, masks_for_pruned_decoder
from fastvid_kernels.adapters.handle import FastVidHandle, check_is_own, check_named
from fastvid_kernels.adapters.pruner import Video, VideoPruner, joined
from fastvid_kernels.adapters.settings import Settings
from fastvid_kernels.adapters.stopwatch import part_of_pruning
from fastvid_kernels.adapters.versions import check_transformers as check_version
from fastvid_kernels.config import PruneConfig
from fastvid_kernels.validation import check_keeps_some
from fastvid_kernels.vision import ATTENTION_SUBSTITUTES, pool_to_grid, pooled_grid

__all__ = ["DEFAULTS", "MODELS", "PACKAGE", "check_version", "patch"]

PACKAGE = "transformers"
MODELS = ("LlavaNextVideoForConditionalGeneration",)
DEFAULTS = PruneConfig()
DEFAULT_ATTENTION = "cls"
# Arguments of `get_video_features` that would change what the tokens are made of.
_FIXED = ("vision_feature_layer", "vision_feature_select_strategy")


class TokenScorer:
    """Scores the patches of a call's frames by [CLS], or by a substitute chosen by name.

    Args:
        model: the module that has the `vision_tower`.
        name: the name of the score.
        layer: the model's `vision_feature_layer`: which hidden states its tokens are made of.
    """

    def __init__(self, model: Any, name: str, layer: int) -> None:
        self._layer = layer
        self._substitute = ATTENTION_SUBSTITUTES.get(name)
        self.of_tower = ClsAttention(model, layer) if self._substitute is None else None

    def __call__(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, Tensor, Tensor | None]:
        """Call `run`, the model's `get_video_features`.

        Returns:
            Its result; attention `[F, P]` of all frames; and their global features `[F, H]`, which are the states of
            [CLS], or None with a substitute: the mean tokens.
        """
        if self.of_tower is not None:
            outputs, attention = self.of_tower.of(run, *args, **kwargs)
            check_named(outputs)
            return outputs, attention, outputs.hidden_states[self._layer][:, 0].detach()
        assert self._substitute is not None
        outputs = run(*args, **kwargs)
        check_named(outputs)
        states = outputs.hidden_states[self._layer]
        with part_of_pruning(states.device), torch.no_grad():
            return outputs, self._substitute(states[:, 1:]), None


class MarkedVideoFeatures:
    """`get_video_features` that marks dropped tokens."""

    def __init__(
        self,
        original: Any,
        score: TokenScorer,
        pool: Callable[[Tensor], Tensor],
        patches: int,
        pruner: VideoPruner,
        decoder: PrunedDecoder,
        fixed: dict[str, Any],
    ) -> None:
        self._original = original
        self._score = score
        self._pool = pool
        self._patches = patches
        self._pruner = pruner
        self._decoder = decoder
        self._fixed = fixed
        # `generate` reads this signature to choose the arguments it passes.
        self.__signature__ = inspect.signature(original)

    # Not traced: state shared by hooks is lost between graphs.
    @_disable_dynamo
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model's own method returns, with dropped tokens marked."""
        self._check_fixed(self.__signature__.bind(*args, **kwargs).arguments)
        self._decoder.check_is_in_place(self._original.__self__.language_model)
        outputs, attention, features = self._score(self._original, *args, **kwargs)
        if attention.shape[1] != self._patches:
            raise ValueError(
                f"pixel_values_videos must have frames of {self._patches} patches, the size that the model was made "
                f"for, where video tokens are pruned, got {attention.shape[1]}"
            )
        with part_of_pruning(attention.device):
            attention = self._pool(attention)
        pooled = outputs.pooler_output
        # transformers 5.17 gives a tuple of videos, later versions a tensor.
        flat = pooled if isinstance(pooled, Tensor) else torch.cat(pooled)
        tokens = flat.reshape(-1, attention.shape[1], flat.shape[-1])
        attention = attention.to(tokens.device)
        video = Video(tokens, attention, None if features is None else features.to(tokens.device))
        marked = self._pruner(video.split(len(pooled)))
        outputs.pooler_output = joined(marked).reshape(flat.shape) if flat is pooled else tuple(marked)
        return outputs

    def _check_fixed(self, given: dict[str, Any]) -> None:
        for name, value in self._fixed.items():
            if given.get(name) not in (None, value):
                raise ValueError(
                    f"{name} must be {value!r}, as when apply_fastvid was called, where video tokens are pruned, got "
                    f"{given[name]!r}"
                )


def patches_a_row(config: Any) -> int:
    """How many patches the tower of a model with this configuration has in a row, and in a column."""
    return int(config.vision_config.image_size // config.vision_config.patch_size)


def tokens_per_frame(config: Any) -> int:
    """How many tokens a model with this configuration has for a frame, after pooling.

    Raises:
        ValueError: its pooling is not one that attention can be pooled by.
    """
    side = patches_a_row(config)
    mode, stride = config.spatial_pool_mode, config.spatial_pool_stride
    if mode not in ("average", "max"):
        raise ValueError(f"spatial_pool_mode of the model must be average or max, got {mode!r}")
    if not 1 <= stride <= side:
        raise ValueError(f"spatial_pool_stride of the model must be from 1 to {side}, its patches a row, got {stride}")
    return math.prod(pooled_grid((side, side), mode, stride))


def pooling(config: Any) -> Callable[[Tensor], Tensor]:
    """The function that pools attention `[F, P]` as a model with this configuration pools its patches."""
    side = patches_a_row(config)
    return partial(pool_to_grid, grid=(side, side), mode=config.spatial_pool_mode, stride=config.spatial_pool_stride)


def check_config(config: Any, settings: Settings) -> None:
    """Raise unless the vision tower of a model with this configuration can give the attention asked for.

    Raises:
        ValueError: the tower is not supported, or an argument does not fit it.
    """
    known = (DEFAULT_ATTENTION, *ATTENTION_SUBSTITUTES)
    if settings.siglip is not None or settings.attention == "siglip":
        raise ValueError(
            f"siglip cannot be used with {MODELS[0]}, whose own vision tower has a [CLS] token: leave it out, or set "
            f"attention to one of {', '.join(known)}"
        )
    if settings.attention not in (None, *known):
        raise ValueError(
            f"attention must be one of {', '.join(map(repr, known))} for this model, got {settings.attention!r}"
        )
    if config.vision_config.model_type != "clip_vision_model":
        raise ValueError(f"the vision tower must be a clip_vision_model, got a {config.vision_config.model_type}")
    layer, layers = config.vision_feature_layer, config.vision_config.num_hidden_layers
    if not isinstance(layer, int) or layer == 0 or not -layers <= layer <= layers:
        raise ValueError(
            f"vision_feature_layer of the model must be the number of one of its {layers} layers, counted from 1 or "
            f"from -1, got {layer}"
        )
    if config.vision_feature_select_strategy != "default":
        raise ValueError(
            "vision_feature_select_strategy of the model must be 'default', got "
            f"{config.vision_feature_select_strategy!r}"
        )


def patch(model: Any, settings: Settings) -> FastVidHandle:
    """Make a `LlavaNextVideoForConditionalGeneration` prune its videos.

    Args:
        model: the model.
        settings: the arguments of `apply_fastvid`.

    Raises:
        ValueError: this adapter does not support the model's configuration, an argument does not fit the model, or no
            token would be kept.
    """
    check_is_own(model.model, "get_video_features")
    config = model.config
    check_config(config, settings)
    check_keeps_some(tokens_per_frame(config), settings.config)
    check_language_model(model.model.language_model)
    name = settings.attention or (DEFAULT_ATTENTION if settings.use_attention else "uniform")
    score = TokenScorer(model.model, name, config.vision_feature_layer)
    pruned = PrunedDecoder(model.model.language_model)
    fixed = {name: getattr(config, name) for name in _FIXED}
    original = model.model.get_video_features
    features = MarkedVideoFeatures(
        original, score, pooling(config), patches_a_row(config) ** 2, VideoPruner.of(settings), pruned, fixed
    )

    with FastVidHandle.undone_on_error(model, settings.config) as handle:
        handle.set_attribute(model.model, "get_video_features", features)
        handle.set_attribute(model, "create_masks_for_generate", masks_for_pruned_decoder)
        if score.of_tower is not None:
            handle.add_hooks(score.of_tower.attach())
        handle.add_hooks(pruned.attach())
    return handle
