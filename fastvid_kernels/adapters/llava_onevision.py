"""LLaVA-OneVision of transformers.

Changes to the instance, all undone by `FastVidHandle.remove`:

- `model.model.get_video_features` marks the dropped tokens; placeholders and their number do not change;
- a hook on `multi_modal_projector`, or on what replaces it later, records its input;
- the hooks of `PrunedDecoder` are registered on the language model;
- `model.create_masks_for_generate` leaves masks of static caches to the decoder: its hooks know what the cache holds.
"""

from __future__ import annotations

import inspect
import math
from functools import partial
from typing import Any

import torch

from fastvid_kernels.adapters.decoder import PrunedDecoder, check_language_model, masks_for_pruned_decoder
from fastvid_kernels.adapters.handle import FastVidHandle, check_is_own, check_named
from fastvid_kernels.adapters.pruner import InputCapture, VideoPruner, joined
from fastvid_kernels.adapters.scoring import PatchScorer, scorer
from fastvid_kernels.adapters.settings import Settings
from fastvid_kernels.adapters.versions import check_transformers as check_version
from fastvid_kernels.config import PruneConfig
from fastvid_kernels.validation import check_keeps_some
from fastvid_kernels.vision import pool_to_grid, pooled_grid

__all__ = ["DEFAULTS", "MODELS", "PACKAGE", "check_version", "patch"]

PACKAGE = "transformers"
MODELS = ("LlavaOnevisionForConditionalGeneration",)
DEFAULTS = PruneConfig()


class MarkedVideoFeatures:
    """`get_video_features` that marks dropped tokens."""

    def __init__(
        self,
        original: Any,
        capture: InputCapture,
        score: PatchScorer,
        pruner: VideoPruner,
        decoder: PrunedDecoder,
        tokens_per_frame: int,
    ) -> None:
        self._original = original
        self._decoder = decoder
        self._capture = capture
        self._score = score
        self._pruner = pruner
        self._tokens_per_frame = tokens_per_frame
        # `generate` reads this signature to choose the arguments it passes.
        self.__signature__ = inspect.signature(original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model's own method returns, with dropped tokens marked."""
        self._decoder.check_is_in_place(self._original.__self__.language_model)
        outputs, patches = self._capture.of(self._original, *args, **kwargs)
        check_named(outputs)
        features = outputs.pooler_output
        videos, _, channels = features.shape
        frames, n = len(patches), self._tokens_per_frame
        # If the features already include a newline, it follows the last frame.
        tokens, newline = features.split([frames // videos * n, features.shape[1] - frames // videos * n], dim=1)
        video = self._score(patches, tokens.reshape(frames, n, channels))
        marked = joined(self._pruner(video.split(videos))).reshape(tokens.shape)
        outputs.pooler_output = torch.cat([marked, newline], dim=1) if newline.shape[1] else marked
        return outputs


def patch(model: Any, settings: Settings) -> FastVidHandle:
    """Make a `LlavaOnevisionForConditionalGeneration` prune its videos.

    Args:
        model: the model.
        settings: the arguments of `apply_fastvid`.

    Raises:
        ValueError: this adapter does not support the model's configuration, the SigLIP head does not fit the model, or
            no token would be kept.
        OSError: the SigLIP checkpoint could not be read.
    """
    check_is_own(model.model, "get_video_features")
    vision = model.config.vision_config
    if not isinstance(model.config.vision_feature_layer, int):
        raise ValueError(
            "vision_feature_layer of the model must be the number of one layer, got "
            f"{model.config.vision_feature_layer}"
        )
    if model.config.vision_feature_select_strategy != "full":
        raise ValueError(
            "vision_feature_select_strategy of the model must be 'full', got "
            f"{model.config.vision_feature_select_strategy!r}"
        )
    decoder = model.model.language_model
    check_language_model(decoder)
    side = vision.image_size // vision.patch_size
    tokens_per_frame = math.prod(pooled_grid((side, side), "bilinear"))
    check_keeps_some(tokens_per_frame, settings.config)
    pool = partial(pool_to_grid, grid=(side, side), mode="bilinear")
    capture = InputCapture(model.model, "multi_modal_projector")
    score = PatchScorer(scorer(settings, vision.hidden_size), pool)
    pruner = VideoPruner.of(settings)
    pruned = PrunedDecoder(decoder)
    original = model.model.get_video_features
    features = MarkedVideoFeatures(original, capture, score, pruner, pruned, tokens_per_frame)

    with FastVidHandle.undone_on_error(model, settings.config) as handle:
        handle.set_attribute(model.model, "get_video_features", features)
        handle.set_attribute(model, "create_masks_for_generate", masks_for_pruned_decoder)
        handle.add_hooks(capture.attach())
        handle.add_hooks(pruned.attach())
    return handle
