"""Qwen-VL and related models of transformers: no [CLS] token, frames of any size, three rows of positions (M-RoPE).

Changes to the instance, all undone by `FastVidHandle.remove`:

- `model.model.get_video_features` marks the dropped tokens; placeholders and their number do not change;
- hooks on the last block of `visual`, or on what replaces it later, score the tokens;
- the hooks of `PrunedDecoder` are registered on the language model;
- `model.create_masks_for_generate` leaves masks of static caches to the decoder: its hooks know what the cache holds.

A frame here is one temporal patch of the tower, which holds two sampled frames.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Like `torch.compiler.disable`, but importing it does not import the compiler.
from torch._compile import _disable_dynamo

from fastvid_kernels.adapters.decoder import PrunedDecoder, has_sliding_window, masks_for_pruned_decoder
from fastvid_kernels.adapters.handle import FastVidHandle, check_is_own, check_named
from fastvid_kernels.adapters.pruner import Video, VideoPruner
from fastvid_kernels.adapters.settings import Settings
from fastvid_kernels.adapters.stopwatch import part_of_pruning
from fastvid_kernels.adapters.tower import BlockScorer, Grid, TowerAttention
from fastvid_kernels.adapters.versions import OLDEST
from fastvid_kernels.adapters.versions import check_transformers as check_version
from fastvid_kernels.config import PruneConfig
from fastvid_kernels.vision import ATTENTION_SUBSTITUTES, TOWER_ATTENTION

__all__ = ["DEFAULTS", "MODELS", "PACKAGE", "Family", "check_version", "patch"]

PACKAGE = "transformers"
# As published for Qwen2.5-VL.
DEFAULTS = PruneConfig(retention_ratio=0.27, tau=0.84)
DEFAULT_ATTENTION = "mean_query"
# Before, the parts of Qwen-Omni lay elsewhere.
OLDEST_OMNI = "5.23"
_NO_SPEECH = {
    "output_hidden_states": (
        "speech cannot be made of the hidden states of some tokens: give the whole model's generate "
        'generation_mode="text"'
    )
}


def in_rows(tower: Any, grids: Tensor) -> Tensor | None:
    """For a tower that orders a frame's tokens row by row: None, as nothing has to be reordered."""
    return None


def in_windows(tower: Any, grids: Tensor) -> Tensor | None:
    """For a tower that orders a frame's tokens window by window: the row-by-row index of each of its tokens."""
    from transformers.vision_utils import get_vision_window_index

    order: Tensor = get_vision_window_index(
        grids.cpu(), tower.spatial_merge_size, window_size=tower.window_size, patch_size=tower.patch_size
    )[0]
    return order


@dataclass(frozen=True)
class Family:
    """What the adapter must know about a model class.

    Attributes:
        grids: the argument of `get_video_features` with the number of frames, patch rows and patch columns of videos.
        order: gives the token order of the tower's last block: the row-by-row index of each token, None if equal.
        oldest: the oldest version of transformers with which the class was tested.
        speaks: whether another model makes speech of the language model's hidden states, at their unpruned places.
    """

    grids: str = "video_grid_thw"
    order: Callable[[Any, Tensor], Tensor | None] = in_rows
    oldest: str = OLDEST
    speaks: bool = False


MODELS = {
    "Qwen2VLForConditionalGeneration": Family(),
    "Qwen2_5_VLForConditionalGeneration": Family(order=in_windows),
    "Qwen3VLForConditionalGeneration": Family(),
    "Qwen3VLMoeForConditionalGeneration": Family(),
    "Qwen3_5ForConditionalGeneration": Family(),
    "Qwen3_5MoeForConditionalGeneration": Family(),
    "Glm4vForConditionalGeneration": Family(),
    "Glm4vMoeForConditionalGeneration": Family(),
    "Glm46VForConditionalGeneration": Family(),
    "Qwen2_5OmniThinkerForConditionalGeneration": Family(order=in_windows, oldest=OLDEST_OMNI, speaks=True),
    "Qwen3OmniMoeThinkerForConditionalGeneration": Family(oldest=OLDEST_OMNI, speaks=True),
}


class TokenScorer:
    """Scores the tokens of a call's videos, from the tower's last block or from the tokens alone.

    Args:
        name: the name of the attention score.
        family: the model's family.
        tower: the model's vision tower.

    Raises:
        ValueError: there is no attention score of that name.
    """

    def __init__(self, name: str, family: Family, tower: Any) -> None:
        if name not in (*TOWER_ATTENTION, *ATTENTION_SUBSTITUTES):
            known = ", ".join(map(repr, (*TOWER_ATTENTION, *ATTENTION_SUBSTITUTES)))
            raise ValueError(f"attention must be one of {known} for this model, got {name!r}")
        self._family = family
        self._tower = tower
        self._of_tokens = ATTENTION_SUBSTITUTES.get(name)
        score = TOWER_ATTENTION.get(name)
        self.of_tower = (
            None
            if score is None
            else TowerAttention(tower, BlockScorer(score, patches_per_token=tower.spatial_merge_size**2))
        )

    def __call__(self, run: Callable[..., Any], grids: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, list[Video]]:
        """Call `run`; return its result, and the videos in it with their attention.

        Args:
            run: the model's `get_video_features`.
            grids: int64 `[videos, 3]`: frames, rows and columns of patches.
            *args: positional arguments of `run`.
            **kwargs: keyword arguments of `run`.
        """
        sizes: list[Grid] = [(frames, rows, columns) for frames, rows, columns in grids.tolist()]
        scores: list[Tensor] | None = None
        if self.of_tower is None:
            outputs = run(*args, **kwargs)
        else:
            outputs, scores = self.of_tower.of(run, sizes, *args, **kwargs)
        check_named(outputs)
        tokens = [one.unflatten(0, (size[0], -1)) for one, size in zip(outputs.pooler_output, sizes, strict=True)]
        with part_of_pruning(tokens[0].device):
            if scores is None:
                assert self._of_tokens is not None
                scores = [self._of_tokens(one) for one in tokens]
            else:
                scores = self._in_rows(scores, grids)
            scores = [score.to(one.device) for score, one in zip(scores, tokens, strict=True)]
        return outputs, [Video(*one) for one in zip(tokens, scores, strict=True)]

    def _in_rows(self, scores: Sequence[Tensor], grids: Tensor) -> list[Tensor]:
        order = self._family.order(self._tower, grids)
        if order is None:
            return list(scores)
        flat = torch.cat([score.flatten() for score in scores])
        flat = torch.empty_like(flat).index_copy(0, order.to(flat.device), flat)
        parts = flat.split([score.numel() for score in scores])
        return [part.view(score.shape) for part, score in zip(parts, scores, strict=True)]


class MarkedVideoFeatures:
    """`get_video_features` that marks dropped tokens."""

    def __init__(
        self, original: Any, family: Family, score: TokenScorer, pruner: VideoPruner, decoder: PrunedDecoder
    ) -> None:
        self._original = original
        self._decoder = decoder
        self._family = family
        self._score = score
        self._pruner = pruner
        # `generate` reads this signature to choose the arguments it passes.
        self.__signature__ = inspect.signature(original)

    # Not traced: the number and sizes of the videos are data, and state shared by hooks is lost between graphs.
    @_disable_dynamo
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model's own method returns, with dropped tokens marked."""
        grids = self.__signature__.bind(*args, **kwargs).arguments.get(self._family.grids)
        if grids is None:
            return self._original(*args, **kwargs)
        self._decoder.check_is_in_place(self._original.__self__.language_model)
        outputs, videos = self._score(self._original, grids, *args, **kwargs)
        outputs.pooler_output = tuple(one.flatten(0, 1) for one in self._pruner(videos))
        return outputs


def patch(model: Any, settings: Settings) -> FastVidHandle:
    """Make a model of `MODELS` prune its videos.

    Args:
        model: the model.
        settings: the arguments of `apply_fastvid`.

    Raises:
        ValueError: this adapter does not support the model's configuration, or an argument does not fit the model.
        RuntimeError: the installed version of transformers is too old for the model.

    Source: the published FastVID for Qwen2.5-VL, without its hyperparameter `ignore`; SPEC section 8.
    """
    family = next(MODELS[cls.__name__] for cls in type(model).__mro__ if cls.__name__ in MODELS)
    check_version(family.oldest)
    check_is_own(model.model, "get_video_features")
    tower, decoder = model.model.visual, model.model.language_model
    _check_supported(model, settings)
    score = TokenScorer(_attention(settings), family, tower)
    pruner = VideoPruner.of(settings)
    pruned = PrunedDecoder(decoder, _NO_SPEECH if family.speaks else None)
    features = MarkedVideoFeatures(model.model.get_video_features, family, score, pruner, pruned)

    with FastVidHandle.undone_on_error(model, settings.config) as handle:
        handle.set_attribute(model.model, "get_video_features", features)
        handle.set_attribute(model, "create_masks_for_generate", masks_for_pruned_decoder)
        if score.of_tower is not None:
            handle.add_hooks(score.of_tower.attach())
        handle.add_hooks(pruned.attach())
    return handle


def _attention(settings: Settings) -> str:
    if settings.attention is not None:
        return settings.attention
    return DEFAULT_ATTENTION if settings.use_attention else "uniform"


def _check_supported(model: Any, settings: Settings) -> None:
    name = type(model).__name__
    if settings.siglip is not None or settings.attention == "siglip":
        raise ValueError(
            f"siglip cannot be used with {name}, whose attention comes from its own vision tower: leave it out, or set "
            f"attention to one of {', '.join((*TOWER_ATTENTION, *ATTENTION_SUBSTITUTES))}"
        )
    if has_sliding_window(model.model.language_model.config):
        raise ValueError(f"the language model must have no sliding-window layers, got a {name} with some")
    tower = model.model.visual
    full = getattr(tower, "fullatt_block_indexes", None)
    if full is not None and len(tower.blocks) - 1 not in full:
        raise ValueError(
            "the last block of the vision tower must attend to whole frames, got fullatt_block_indexes "
            f"{list(full)} of {len(tower.blocks)} blocks"
        )
