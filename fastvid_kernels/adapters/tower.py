"""Attention of video tokens from the last block of a vision tower without a [CLS] token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastvid_kernels.adapters.hooks import ChildHook
from fastvid_kernels.adapters.stopwatch import part_of_pruning
from fastvid_kernels.vision import TowerScore, rotated

Grid = tuple[int, int, int]
"""Number of frames, and of rows and columns of patches in a frame."""


class BlockScorer:
    """What the hooks on a block's attention do: they score tokens without storing queries or keys.

    The attention has `num_heads`, and a projection `qkv` or two, `q` and `k`; it is called with `position_embeddings`.
    Like `Recorder`, a scorer refers to no module.

    Args:
        score: computes attention from queries and keys after their rotary embedding.
        patches_per_token: number of patches merged into one token; they are adjacent in the tower's order.

    Attributes:
        grids: of the videos in the call that is scored; if there are none, the hooks do nothing.
        scores: of the videos, once the projection has run.
    """

    def __init__(self, score: TowerScore, patches_per_token: int) -> None:
        self._score = score
        self._patches_per_token = patches_per_token
        self._heads = 0
        self._angles: tuple[Tensor, Tensor] | None = None
        self._queries: Tensor | None = None
        self.grids: Sequence[Grid] = ()
        self.scores: list[Tensor] = []

    def forget(self) -> None:
        """Drop what belongs to a call."""
        self.grids, self.scores, self._angles, self._queries = (), [], None, None

    def before_attention(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Hook before the attention: keep the angles of the rotary embedding."""
        if self.grids:
            self._angles = kwargs["position_embeddings"]
            self._heads = module.num_heads

    def after_query(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Hook after a projection that gives queries alone: keep them."""
        if self.grids:
            self._queries = output.detach()

    def after_key(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Hook after a projection that gives keys alone: score the videos."""
        if self.grids:
            assert self._queries is not None, "the block projects queries before keys"
            self.after_projection(module, args, torch.cat([self._queries, output.detach()], dim=-1))
            self._queries = None

    def after_projection(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Hook after a projection that gives queries, keys, and maybe values, one after the other: score the videos."""
        if not self.grids:
            return
        assert self._angles is not None, "the block's attention embeds positions"
        with part_of_pruning(output.device), torch.no_grad():
            patches = [frames * rows * columns for frames, rows, columns in self.grids]
            parts = (one.split(patches) for one in (output, *self._angles))
            self.scores = [self._video(*one) for one in zip(self.grids, *parts, strict=True)]

    def _video(self, grid: Grid, projected: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        frames, rows, columns = grid
        parts = projected.view(frames, rows * columns, -1, self._heads, cos.shape[-1])
        cos, sin = (angles.view(frames, -1, angles.shape[-1]) for angles in (cos, sin))
        queries, keys = (rotated(parts[:, :, number], cos, sin) for number in (0, 1))
        return self._score(queries, keys, self._patches_per_token)


class TowerAttention:
    """Hooks on the attention of a tower's last block, or on what replaces it later."""

    def __init__(self, tower: Any, scorer: BlockScorer) -> None:
        attention = f"blocks.{len(tower.blocks) - 1}.attn"
        self._scorer = scorer
        projections: dict[str, Any] = {"qkv": scorer.after_projection}
        if not hasattr(tower.blocks[-1].attn, "qkv"):
            projections = {"q": scorer.after_query, "k": scorer.after_key}
        self._hooks = (
            ChildHook(tower, attention, scorer.before_attention, before=True),
            *(ChildHook(tower, f"{attention}.{name}", hook) for name, hook in projections.items()),
        )

    def attach(self) -> tuple[ChildHook, ...]:
        """Register the hooks, or move them to modules that have replaced others."""
        for hook in self._hooks:
            hook.follow()
        return self._hooks

    def of(self, run: Callable[..., Any], grids: Sequence[Grid], *args: Any, **kwargs: Any) -> tuple[Any, list[Tensor]]:
        """Call `run`; return its result, and the attention of each video, float32 `[F, N]`, in the tower's order."""
        self.attach()
        self._scorer.grids = grids
        try:
            result = run(*args, **kwargs)
            scores = self._scorer.scores
            if len(scores) != len(grids):
                raise RuntimeError(
                    "the vision tower's last block must run as a module of its own where video tokens are pruned: "
                    "compile the whole model, not its tower; after replacing the tower, call "
                    "model.fastvid_handle.remove() and apply_fastvid again"
                )
            return result, scores
        finally:
            self._scorer.forget()
