"""LLaVA-OneVision and LLaVA-Video of the llava package (LLaVA-NeXT).

Changes to the instance, all undone by `FastVidHandle.remove`:

- while `prepare_inputs_labels_for_multimodal` runs, a hook on `mm_projector` records its input and output;
- `get_2dPool`, which llava calls only for videos, marks the dropped tokens;
- `add_token_per_grid` and `add_token_per_frame` also mark a newline if all tokens of its row, or frame, are dropped;
- the hooks of `PrunedDecoder` are registered on the language model;
- `create_masks_for_generate` leaves masks of static caches to the decoder: only its hooks know what the cache holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastvid_kernels.adapters.decoder import PrunedDecoder, are_dropped, masks_for_pruned_decoder
from fastvid_kernels.adapters.handle import FastVidHandle
from fastvid_kernels.adapters.hooks import ModuleRecord
from fastvid_kernels.adapters.pruner import VideoPruner
from fastvid_kernels.adapters.scoring import PatchScorer, scorer
from fastvid_kernels.adapters.settings import Settings
from fastvid_kernels.adapters.versions import check_transformers
from fastvid_kernels.config import PruneConfig
from fastvid_kernels.validation import check_keeps_some
from fastvid_kernels.vision import pool_to_grid, pooled_grid

PACKAGE = "llava"
MODELS = ("LlavaQwenForCausalLM",)
DEFAULTS = PruneConfig()

_NEWLINE_POSITIONS = ("one_token", "grid", "frame", "no_token")
_POOL_MODES = ("bilinear", "average", "max")
_STRIDE = 2


def check_version() -> None:
    """Raise if this adapter was not tested with the installed version of transformers.

    Raises:
        RuntimeError: it was not.
    """
    check_transformers(
        "4.46",
        "4.40.2, which llava pins, makes its rotary table only as long as the cache, so kept tokens cannot keep their "
        "original positions; llava runs unchanged with 4.51.3",
    )


class ProjectorRecord(ModuleRecord):
    """Records input patches and output features of `mm_projector` while a `RecordedCall` runs."""

    def __init__(self, parent: nn.Module) -> None:
        super().__init__(parent, "mm_projector")

    def patches_of(self, features: Tensor) -> Tensor:
        """The patches `[F, P, H]` that were projected to some frames' features `[F, P, D]`.

        llava projects the frames of all videos and images at once and then splits the result. The storage offset of a
        split therefore tells which frames it holds.
        """
        patches, whole = self.input, self.output
        if patches is None or whole is None or not _share_memory(features, whole):
            raise RuntimeError(
                "get_2dPool of the model must be called by prepare_inputs_labels_for_multimodal, on the output of "
                "mm_projector: a llava that prepares videos in another way is not supported"
            )
        first = (features.storage_offset() - whole.storage_offset()) // whole.stride(0)
        return patches[first : first + len(features)]


def _share_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


# Methods are replaced by objects, not closures, so that a deep copy of the model gets its own, bound to the copy.


class RecordedCall:
    """A method that is recorded while it runs."""

    def __init__(self, original: Callable[..., Any], record: ProjectorRecord) -> None:
        self._original = original
        self._record = record

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method while recording, and return its result."""
        self._record.start()
        try:
            return self._original(*args, **kwargs)
        finally:
            self._record.forget()


class MarkedPooling:
    """`get_2dPool` that marks dropped tokens."""

    def __init__(
        self,
        original: Any,
        record: ProjectorRecord,
        score: PatchScorer,
        pruner: VideoPruner,
        decoder: PrunedDecoder,
    ) -> None:
        self._original = original
        self._decoder = decoder
        self._record = record
        self._score = score
        self._pruner = pruner

    def __call__(self, features: Tensor, stride: int = _STRIDE) -> Tensor:
        """Pool projected features `[F, P, D]` to `[F, N, D]`, with -inf where a token is dropped."""
        if stride != _STRIDE:
            raise ValueError(f"get_2dPool must pool with stride {_STRIDE} where video tokens are pruned, got {stride}")
        self._decoder.check_is_in_place(self._original.__self__.get_model())
        video = self._score(self._record.patches_of(features), self._original(features, stride))
        return self._pruner([video])[0]


class MarkedNewlines:
    """`add_token_per_grid` or `add_token_per_frame` that also marks newlines whose tokens are all dropped.

    A newline ends a row of the grid, or a frame. It is kept, at its place, if at least one token there is kept.
    """

    def __init__(self, original: Callable[[Tensor], Tensor]) -> None:
        self._original = original

    def __call__(self, tokens: Tensor) -> Tensor:
        """Add newlines to tokens `[F, N, D]`; dropped tokens and dropped newlines are -inf."""
        stream = self._original(tokens)
        channels = stream.shape[-1]
        newlines = (stream.numel() - tokens.numel()) // channels
        rows, newline = stream.reshape(newlines, -1, channels).tensor_split([-1], dim=1)
        alone = are_dropped(rows).all(1)
        newline = newline.masked_fill(alone[:, None, None], -math.inf)
        return torch.cat([rows, newline], dim=1).view(stream.shape)


def patch(model: Any, settings: Settings) -> FastVidHandle:
    """Make a `LlavaQwenForCausalLM` prune its videos.

    Args:
        model: the model, with its vision tower loaded.
        settings: the arguments of `apply_fastvid`.

    Raises:
        ValueError: this adapter does not support the model's configuration, the SigLIP head does not fit the model, or
            no token would be kept.
        OSError: the SigLIP checkpoint could not be read.

    Source: SPEC section 8 for the newlines.
    """
    _check_supported(model)
    tower = model.get_vision_tower()
    side, mode = tower.num_patches_per_side, model.config.mm_spatial_pool_mode
    pool = partial(pool_to_grid, grid=(side, side), mode=mode, stride=_STRIDE)
    check_keeps_some(math.prod(pooled_grid((side, side), mode, _STRIDE)), settings.config)
    record = ProjectorRecord(model.get_model())
    score = PatchScorer(scorer(settings, tower.hidden_size), pool)
    pruner = VideoPruner.of(settings)
    pruned = PrunedDecoder(model.get_model())
    changed = {
        "prepare_inputs_labels_for_multimodal": RecordedCall(model.prepare_inputs_labels_for_multimodal, record),
        "get_2dPool": MarkedPooling(model.get_2dPool, record, score, pruner, pruned),
        "add_token_per_grid": MarkedNewlines(model.add_token_per_grid),
        "add_token_per_frame": MarkedNewlines(model.add_token_per_frame),
        "create_masks_for_generate": masks_for_pruned_decoder,
    }

    with FastVidHandle.undone_on_error(model, settings.config) as handle:
        for name, value in changed.items():
            handle.set_attribute(model, name, value)
        handle.add_hooks(record.attach())
        handle.add_hooks(pruned.attach())
    return handle


def _check_supported(model: Any) -> None:
    config = model.config
    if model.get_vision_tower() is None or getattr(model.get_model(), "mm_projector", None) is None:
        raise ValueError("the model must have a vision tower and mm_projector: load them before apply_fastvid")
    newline = getattr(config, "mm_newline_position", "one_token")
    if newline not in _NEWLINE_POSITIONS:
        raise ValueError(f"mm_newline_position of the model must be one of {_NEWLINE_POSITIONS}, got {newline!r}")
    mode = getattr(config, "mm_spatial_pool_mode", None)
    if mode not in _POOL_MODES:
        raise ValueError(f"mm_spatial_pool_mode of the model must be one of {_POOL_MODES}, got {mode!r}")
    if getattr(config, "add_faster_video", False):
        raise ValueError("add_faster_video of the model must be False: videos at two resolutions are not supported")
    if getattr(config, "use_sliding_window", False):
        raise ValueError("use_sliding_window of the model must be False: a window over pruned tokens is not supported")
