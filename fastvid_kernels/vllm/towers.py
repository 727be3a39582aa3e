"""Attention of video tokens from the last block of vLLM's Qwen towers, which have other arguments and shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastvid_kernels.adapters.tower import Grid, TowerAttention
from fastvid_kernels.vision import TowerScore, rotated

Gather = Callable[[Tensor], Tensor]
"""Maps this rank's scores to those of all ranks, stacked by rank in a new first dimension."""


def _alone(scores: Tensor) -> Tensor:
    return scores[None]


class ServedTowerAttention(TowerAttention):
    """`TowerAttention` for a block whose projection is `[P, 1, 3 * H * d]` with a bias beside it.

    Args:
        attention: the block's attention, with a `qkv` projection, called with `rotary_pos_emb_cos` and `_sin`.
        heads: number of heads that this rank has.
        score: computes attention from queries and keys after their rotary embedding.
        patches_per_token: number of patches merged into one token.
        gather: gathers the scores of all ranks, since each rank has some of the heads and all must prune alike.
    """

    def __init__(
        self, attention: Any, heads: int, score: TowerScore, patches_per_token: int, gather: Gather = _alone
    ) -> None:
        super().__init__(attention, score, patches_per_token)
        self._heads = heads
        self._gather = gather

    def _keep_angles(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._grids:
            # Channel i of a head's first half is rotated with channel i of its second half, by the same angle.
            halves = (kwargs["rotary_pos_emb_cos"], kwargs["rotary_pos_emb_sin"])
            cos, sin = (torch.cat([half, half], dim=-1) for half in halves)
            self._angles = cos, sin

    def _score_videos(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        super()._score_videos(module, args, output[0].flatten(0, 1))

    def _video(self, grid: Grid, projected: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        # The base class reads `num_heads` of the attention, which vLLM's attention does not have.
        frames = grid[0]
        qkv = projected.view(frames, -1, 3, self._heads, cos.shape[-1])
        cos, sin = (angles.view(frames, -1, angles.shape[-1]) for angles in (cos, sin))
        queries, keys = (rotated(qkv[:, :, number], cos, sin) for number in (0, 1))
        return self._gather(self._score(queries, keys, self._patches_per_token)).mean(dim=0)
