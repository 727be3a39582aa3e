"""LLaVA-OneVision of transformers.

Changes to the instance, all undone by `FastVidHandle.remove`:

- `model.model.get_video_features` marks the tokens that are dropped; placeholders and counts stay as they are;
- a hook on `multi_modal_projector` shows what enters it;
- the hooks of `PrunedDecoder` on the language model;
- `model.create_masks_for_generate` leaves the masks of static caches to the decoder, which knows what the cache holds.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from fastvid_kernels.adapters.decoder import PrunedDecoder, masks_for_pruned_decoder
from fastvid_kernels.adapters.handle import FastVidHandle
from fastvid_kernels.adapters.pruner import InputCapture, VideoPruner
from fastvid_kernels.adapters.scoring import Scorer
from fastvid_kernels.adapters.versions import check_transformers
from fastvid_kernels.api import Backend
from fastvid_kernels.config import PruneConfig
from fastvid_kernels.validation import check_keeps_some
from fastvid_kernels.vision import pool_to_grid, pooled_grid


def check_version() -> None:
    """Raise if transformers is none of the versions this was tested with.

    Raises:
        RuntimeError: it is not.
    """
    check_transformers("5.17", "5.24")


class MarkedVideoFeatures:
    """`get_video_features` with its dropped tokens marked."""

    def __init__(self, original: Any, capture: InputCapture, pruner: VideoPruner, tokens_per_frame: int) -> None:
        self._original = original
        self._capture = capture
        self._pruner = pruner
        self._tokens_per_frame = tokens_per_frame
        # `generate` asks which of its arguments this one takes.
        self.__signature__ = inspect.signature(original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model's own method returns, with dropped tokens marked."""
        outputs, patches = self._capture.of(self._original, *args, **kwargs)
        if isinstance(outputs, tuple):
            raise ValueError(
                "get_video_features must return a dict where video tokens are pruned: use return_dict=True"
            )
        features = outputs.pooler_output
        videos, _, channels = features.shape
        frames, n = len(patches), self._tokens_per_frame
        # The newline, where there is one already, follows the last frame.
        tokens, newline = features.split([frames // videos * n, features.shape[1] - frames // videos * n], dim=1)
        marked = self._pruner(patches, tokens.reshape(frames, n, channels), videos)
        outputs.pooler_output = torch.cat([marked.view(tokens.shape), newline], dim=1)
        return outputs


def patch(model: Any, scorer_for: Callable[[int], Scorer], config: PruneConfig, backend: Backend) -> FastVidHandle:
    """Make a `LlavaOnevisionForConditionalGeneration` prune its videos.

    Args:
        model: the model.
        scorer_for: gives the scorer of patches of so many channels.
        config: the hyperparameters.
        backend: as in `prune`.

    Raises:
        ValueError: the model's configuration is one that this adapter does not know.
    """
    vision = model.config.vision_config
    if not isinstance(model.config.vision_feature_layer, int):
        raise ValueError(
            "vision_feature_layer of the model must be one layer, whose patches are scored, got "
            f"{model.config.vision_feature_layer}"
        )
    if model.config.vision_feature_select_strategy != "full":
        raise ValueError(
            "vision_feature_select_strategy of the model must be 'full', got "
            f"{model.config.vision_feature_select_strategy!r}"
        )
    decoder = model.model.language_model
    if not hasattr(decoder, "rotary_emb") or _has_sliding_window(decoder.config):
        raise ValueError(
            "the language model must have one rotary embedding and no sliding-window layers, got "
            f"{type(decoder).__name__}"
        )
    side = vision.image_size // vision.patch_size
    tokens_per_frame = math.prod(pooled_grid((side, side), "bilinear"))
    check_keeps_some(tokens_per_frame, config)
    pool = partial(pool_to_grid, grid=(side, side), mode="bilinear")
    capture = InputCapture(model.model.multi_modal_projector)
    pruner = VideoPruner(scorer_for(vision.hidden_size), pool, config, backend)
    features = MarkedVideoFeatures(model.model.get_video_features, capture, pruner, tokens_per_frame)

    with FastVidHandle.undone_on_error(model, config, pruner) as handle:
        handle.set_attribute(model.model, "get_video_features", features)
        handle.set_attribute(model, "create_masks_for_generate", masks_for_pruned_decoder)
        handle.add_hooks(capture.attach())
        handle.add_hooks(PrunedDecoder(decoder).attach())
    return handle


def _has_sliding_window(config: Any) -> bool:
    """Whether some layer attends to a window of its past only; families say so in either of two ways."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return any(kind != "full_attention" for kind in kinds)
    return getattr(config, "sliding_window", None) is not None
