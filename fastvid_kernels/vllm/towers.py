"""Attention of video tokens from a block of vLLM's towers, which have other arguments and shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastvid_kernels.adapters.cls_token import ClsRecorder
from fastvid_kernels.adapters.hooks import ChildHook
from fastvid_kernels.adapters.tower import BlockScorer, Grid
from fastvid_kernels.vision import TowerScore

Gather = Callable[[Tensor, int], Tensor]
"""Concatenates the tensors of all ranks along a dimension."""


def alone(part: Tensor, dim: int) -> Tensor:
    """`Gather` of a single rank."""
    return part


class ServedBlockScorer(BlockScorer):
    """`BlockScorer` for a block whose projection is `[P, 1, 3 * H * d]` with a bias beside it.

    The attention is called with `rotary_pos_emb_cos` and `rotary_pos_emb_sin`.

    Args:
        heads: number of heads that this rank has, with their queries, keys and values.
        score: computes attention from queries and keys after their rotary embedding.
        patches_per_token: number of patches merged into one token.
        gather: gathers the scores of all ranks, since each has some of the heads and all must prune alike.
    """

    def __init__(self, heads: int, score: TowerScore, patches_per_token: int, gather: Gather = alone) -> None:
        super().__init__(score, patches_per_token)
        self._heads = heads
        self._gather = gather

    def before_attention(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """See `BlockScorer`."""
        if self.grids:
            # Channel i of a head's first half is rotated with channel i of its second half, by the same angle.
            halves = (kwargs["rotary_pos_emb_cos"], kwargs["rotary_pos_emb_sin"])
            cos, sin = (torch.cat([half, half], dim=-1) for half in halves)
            self._angles = cos, sin

    def after_projection(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """See `BlockScorer`."""
        super().after_projection(module, args, output[0].flatten(0, 1))

    def _video(self, grid: Grid, projected: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self._gather(super()._video(grid, projected, cos, sin)[None], 0).mean(dim=0)


class SlicedBlockScorer(ServedBlockScorer):
    """`ServedBlockScorer` for ranks that have a slice of the row `[queries, keys, values]`, whichever heads it cuts.

    The slices are gathered, as the block's attention does too, and every rank scores all heads.

    Args:
        heads: number of heads of all ranks.
        score: as in `ServedBlockScorer`.
        patches_per_token: as in `ServedBlockScorer`.
        gather: gathers the slices.
    """

    def __init__(self, heads: int, score: TowerScore, patches_per_token: int, gather: Gather = alone) -> None:
        super().__init__(heads, score, patches_per_token)
        self._gather_slices = gather

    def after_projection(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """See `BlockScorer`."""
        if self.grids:
            super().after_projection(module, args, (self._gather_slices(output[0], -1),))


class ServedClsAttention:
    """What [CLS] attends to in the last block of a CLIP tower that projects queries, keys and values in one row.

    vLLM builds no blocks behind the one that the model's tokens are made of.

    Args:
        tower: vLLM's tower.
        gather: gathers the scores of all ranks, each of which has the queries, keys and values of some heads.
    """

    def __init__(self, tower: Any, gather: Gather = alone) -> None:
        layers = tower.vision_model.encoder.layers
        self._recorder = ClsRecorder(layers[-1].self_attn.num_heads_per_partition)
        path = f"vision_model.encoder.layers.{len(layers) - 1}.self_attn.qkv_proj"
        self._hook = ChildHook(tower, path, self._after_projection)
        self._tower = tower
        self._gather = gather

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the tower on frames `[F, 3, height, width]`.

        Returns:
            The patches' states behind the block, `[F, P, H]`; attention `[F, P]`; and the states of [CLS], `[F, H]`.

        Raises:
            RuntimeError: the block's projection did not run as a module of its own.
        """
        self._hook.follow()
        self._recorder.start()
        try:
            states: Tensor = self._tower(pixels, feature_select_strategy="full")
            attention = self._recorder.attention
            if attention is None:
                raise RuntimeError("the blocks of the vision tower must run as modules of their own, not compiled")
            # Ranks exchange contiguous tensors only.
            return states[:, 1:], self._gather(attention[None].contiguous(), 0).mean(dim=0), states[:, 0]
        finally:
            self._recorder.forget()

    def _after_projection(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        queries, keys, _ = output[0].chunk(3, dim=-1)
        self._recorder.after_query(module, args, queries)
        self._recorder.after_key(module, args, keys)
