"""Attention of video tokens from the last block of a vision tower without a [CLS] token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fastvid_kernels.adapters.hooks import ChildHook
from fastvid_kernels.adapters.stopwatch import part_of_pruning
from fastvid_kernels.vision import TowerScore, rotated

Grid = tuple[int, int, int]
"""Number of frames, and of rows and columns of patches in a frame."""


class TowerAttention:
    """Two hooks on a tower's last block that score the tokens of a call without storing queries or keys.

    Args:
        attention: the block's attention, with `num_heads` and a `qkv` projection, called with `position_embeddings`.
        score: computes attention from queries and keys after their rotary embedding.
        patches_per_token: number of patches merged into one token; they are adjacent in the tower's order.
    """

    def __init__(self, attention: Any, score: TowerScore, patches_per_token: int) -> None:
        self._attention = attention
        self._projection_hook = ChildHook(attention, "qkv", self._score_videos)
        self._score = score
        self._patches_per_token = patches_per_token
        self._grids: Sequence[Grid] = ()
        self._angles: tuple[Tensor, Tensor] | None = None
        self._scores: list[Tensor] = []

    def attach(self) -> list[RemovableHandle | ChildHook]:
        """Register the hooks."""
        self._projection_hook.follow()
        return [
            self._attention.register_forward_pre_hook(self._keep_angles, with_kwargs=True),
            self._projection_hook,
        ]

    def of(self, run: Callable[..., Any], grids: Sequence[Grid], *args: Any, **kwargs: Any) -> tuple[Any, list[Tensor]]:
        """Call `run`; return its result, and the attention of each video, float32 `[F, N]`, in the tower's order."""
        self._projection_hook.follow()
        self._grids, self._scores = grids, []
        try:
            result = run(*args, **kwargs)
            if len(self._scores) != len(grids):
                raise RuntimeError(
                    "the vision tower's last block must run as a module of its own where video tokens are pruned: "
                    "compile the whole model, not its tower; after replacing the tower, call "
                    "model.fastvid_handle.remove() and apply_fastvid again"
                )
            return result, self._scores
        finally:
            self._grids, self._angles, self._scores = (), None, []

    def _keep_angles(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._grids:
            self._angles = kwargs["position_embeddings"]

    def _score_videos(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if not self._grids:
            return
        assert self._angles is not None, "the block's attention embeds positions"
        with part_of_pruning(output.device), torch.no_grad():
            patches = [frames * rows * columns for frames, rows, columns in self._grids]
            parts = (one.split(patches) for one in (output, *self._angles))
            self._scores = [self._video(*one) for one in zip(self._grids, *parts, strict=True)]

    def _video(self, grid: Grid, projected: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        frames = grid[0]
        qkv = projected.view(frames, -1, 3, self._attention.num_heads, cos.shape[-1])
        cos, sin = (angles.view(frames, -1, angles.shape[-1]) for angles in (cos, sin))
        queries, keys = (rotated(qkv[:, :, number], cos, sin) for number in (0, 1))
        return self._score(queries, keys, self._patches_per_token)
