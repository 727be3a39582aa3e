"""Attention of video tokens from a block of vLLM's towers, which have other arguments and shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastvid_kernels.adapters.cls_token import ClsRecorder
from fastvid_kernels.adapters.hooks import ChildHook
from fastvid_kernels.adapters.pruner import Video, joined
from fastvid_kernels.adapters.tower import BlockScorer, Grid
from fastvid_kernels.vision import ATTENTION_SUBSTITUTES, TowerScore

Result = TypeVar("Result")
Gather = Callable[[Tensor, int], Tensor]
"""Concatenates the tensors of all ranks along a dimension."""

_FRAMES_AT_ONCE = 32


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
    """What [CLS] attends to in a block of a tower, from the queries and keys that the block gives to vLLM's attention.

    Args:
        tower: vLLM's tower.
        path: from the tower to the module that gets queries, keys and values, `[F, 1 + P, H * d]` each.
        heads: how many heads of them this rank has.
        gather: gathers the scores of all ranks.
    """

    def __init__(self, tower: nn.Module, path: str, heads: int, gather: Gather = alone) -> None:
        self._recorder = ClsRecorder(heads)
        self._hook = ChildHook(tower, path, self._before_attention, before=True)
        self._gather = gather

    def of(self, run: Callable[[Tensor], Result], pixels: Tensor) -> tuple[Result, Tensor]:
        """Run the tower on frames `[F, 3, height, width]`.

        Args:
            run: runs the tower once.
            pixels: the frames.

        Returns:
            The result of `run`, and the attention `[F, P]`.

        Raises:
            RuntimeError: the block did not run as a module of its own.
        """
        self._hook.follow()
        self._recorder.start()
        try:
            result = run(pixels)
            attention = self._recorder.attention
            if attention is None:
                raise RuntimeError("the blocks of the vision tower must run as modules of their own, not compiled")
            # Ranks exchange contiguous tensors only.
            return result, self._gather(attention[None].contiguous(), 0).mean(dim=0)
        finally:
            self._recorder.forget()

    def _before_attention(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        queries, keys, _ = args
        self._recorder.after_query(module, args, queries)
        self._recorder.after_key(module, args, keys)


class ServedScorer:
    """Scores the tokens of frames by [CLS], or by a substitute chosen by name.

    Args:
        run: runs the tower on frames `[F, 3, height, width]`, and returns tokens `[F, N, D]` and the states
            `[F, 1 + P, H]` of [CLS] and the patches, of which they are made.
        of_cls: what [CLS] attends to.
        name: of a substitute; any other stands for [CLS].
        pool: pools attention `[F, P]` of patches to tokens `[F, N]`.
    """

    def __init__(
        self,
        run: Callable[[Tensor], tuple[Tensor, Tensor]],
        of_cls: ServedClsAttention,
        name: str,
        pool: Callable[[Tensor], Tensor],
    ) -> None:
        self._run = run
        self._of_cls = of_cls
        self._substitute = ATTENTION_SUBSTITUTES.get(name)
        self._pool = pool

    def __call__(self, pixels: Tensor) -> Video:
        """The video. The features of its frames are the states of [CLS]; with a substitute, it has none."""
        if self._substitute is not None:
            tokens, states = self._run(pixels)
            return Video(tokens, self._pool(self._substitute(states[:, 1:])))
        (tokens, states), attention = self._of_cls.of(self._run, pixels)
        return Video(tokens, self._pool(attention), states[:, 0])


def in_parts(score: Callable[[Tensor], Video], pixels: Tensor) -> Video:
    """What `score` returns for frames `[F, 3, height, width]`, some at a time.

    A tower that sees each frame alone gives the same. Pruned videos may have many more frames than fit the memory that
    vLLM's own profiling sets aside for a tower.
    """
    parts = [score(some) for some in pixels.split(_FRAMES_AT_ONCE)]
    features = [part.features for part in parts if part.features is not None]
    return Video(
        joined([part.tokens for part in parts]),
        joined([part.attention for part in parts]),
        joined(features) if features else None,
    )
