"""Attention of video tokens from the [CLS] token of a CLIP tower."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastvid_kernels.adapters.hooks import ChildHook
from fastvid_kernels.adapters.stopwatch import part_of_pruning
from fastvid_kernels.vision import cls_attention


class ClsRecorder:
    """What the hooks on a block's projections do: they compute what [CLS] attends to, and store no keys.

    Like `Recorder`, it refers to no module.

    Args:
        num_heads: heads of the block's attention.

    Attributes:
        attention: float32 `[F, P]`, once both projections have run.
    """

    def __init__(self, num_heads: int) -> None:
        self._num_heads = num_heads
        self._recording = False
        self._query: Tensor | None = None
        self.attention: Tensor | None = None

    def start(self) -> None:
        """Start recording."""
        self._recording, self._query, self.attention = True, None, None

    def forget(self) -> None:
        """Stop recording, and drop what was recorded."""
        self._recording, self._query, self.attention = False, None, None

    def after_query(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Hook after the query projection `[F, 1 + P, H]`: keep the query of [CLS]."""
        if self._recording:
            # A copy, so that the queries of the patches can be freed.
            self._query = output[:, 0].detach().clone()

    def after_key(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Hook after the key projection `[F, 1 + P, H]`: compute the attention."""
        if not self._recording:
            return
        assert self._query is not None, "CLIP projects queries before keys"
        with part_of_pruning(output.device), torch.no_grad():
            self.attention = cls_attention(self._query, output, self._num_heads)


class ClsAttention:
    """What [CLS] attends to in a block of a CLIP tower.

    Args:
        model: the module that has the `vision_tower`.
        layer: the tower's hidden states that the model's tokens are made of, as `vision_feature_layer` counts them.
    """

    def __init__(self, model: Any, layer: int) -> None:
        self._model = model
        self._shape = self._tower_shape()
        layers, heads = self._shape
        # Hidden states 0 enter the first block; from the end, they are counted as blocks are.
        block = f"vision_tower.encoder.layers.{layer - 1 if layer > 0 else layers + layer}.self_attn"
        self._recorder = ClsRecorder(heads)
        self._hooks = (
            ChildHook(model, f"{block}.q_proj", self._recorder.after_query),
            ChildHook(model, f"{block}.k_proj", self._recorder.after_key),
        )

    def attach(self) -> tuple[ChildHook, ...]:
        """Register the hooks, or move them to modules that have replaced others.

        Raises:
            RuntimeError: the tower was replaced by one of another shape.
        """
        if self._tower_shape() != self._shape:
            raise RuntimeError(
                "the vision tower was replaced by one of another shape after apply_fastvid: call "
                "model.fastvid_handle.remove() and apply_fastvid again"
            )
        for hook in self._hooks:
            hook.follow()
        return self._hooks

    def of(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        """Call `run`; return its result, and the attention `[F, P]` of the frames that went through the tower."""
        self.attach()
        self._recorder.start()
        try:
            result = run(*args, **kwargs)
            if self._recorder.attention is None:
                raise RuntimeError(
                    "the blocks of the vision tower must run as modules of their own where video tokens are pruned: "
                    "compile the whole model, not its tower"
                )
            return result, self._recorder.attention
        finally:
            self._recorder.forget()

    def _tower_shape(self) -> tuple[int, int]:
        """Numbers of layers and heads."""
        layers = self._model.vision_tower.encoder.layers
        return len(layers), int(layers[0].self_attn.num_heads)
