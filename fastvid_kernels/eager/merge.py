"""DTM's merge: every token of a segment joins an anchor of each anchor frame (Eq. 5; SPEC section 5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvid_kernels.eager.budgets import Segment
from fastvid_kernels.eager.products import first_equal, inner_products

# Elements of a block of tokens, and of its similarities to all anchors: both fit in a CPU's cache.
_BLOCK_ELEMENTS = 2**22
# A block in another dtype is a copy, so it holds at most this fraction of its segment's frames, or one frame.
_COPIED_SHARE = 16
_ANCHORS_AT_ONCE = 256
# Similarities with a relative difference up to this may be ordered wrongly by a float32 sum over channels.
_FLOAT32_TIE = 2.0**-18
# With this scale, the sum of as many tokens as a tensor can hold does not overflow.
_HEADROOM = 2.0**-40


@dataclass(frozen=True)
class Joined:
    """Which token joined which anchor, for `explain`.

    Attributes:
        token: int64 `[P]`, flat index of the token.
        slot: int64 `[P]`, the position of the anchor among all anchors.
    """

    token: Tensor
    slot: Tensor


def merge_tokens(
    tokens: Tensor,
    salient: Tensor,
    kept: Tensor,
    anchors: Tensor,
    plan: Sequence[Segment],
    beta: float,
    joined: list[Joined] | None = None,
) -> tuple[Tensor, Tensor]:
    """Merge every segment's tokens into its anchors.

    Args:
        tokens: `[F, N, D]`.
        salient: bool `[F, N]`, tokens that ATS keeps and that therefore join no anchor.
        kept: bool `[F, N]`, the salient tokens and the anchors.
        anchors: int64 `[C]`, flat indices of the anchors, ascending.
        plan: all segments, in order.
        beta: the least weight of an anchor in its merged token.
        joined: receives which token joined which anchor, block by block.

    Returns:
        The merged anchors `[C, D]` in float32 (float64 for float64 tokens), and bool `[C]`, which of them differ from
        a copy of the anchor (w < 1).
    """
    sums, counts = _sum_joined(tokens, salient, kept, anchors, plan, joined=joined)
    weight, mean_share = anchor_weights(counts, beta, sums.dtype)
    merged = _add_anchors(sums.mul_(mean_share), weight, tokens, anchors)
    # If the sum is finite, so are all its terms; it costs a third of testing each of them.
    if not math.isfinite(merged.sum().item()):
        # The sum of finite tokens may have overflowed: add them up again, scaled down.
        limit = torch.finfo(tokens.dtype).max * _HEADROOM
        sums, _ = _sum_joined(tokens, salient, kept, anchors, plan, scale=_HEADROOM)
        scaled = _add_anchors(sums.mul_(mean_share), weight, tokens, anchors, scale=_HEADROOM)
        bounded = torch.where(scaled.isfinite(), scaled.clamp(-limit, limit), scaled) / _HEADROOM
        merged = torch.where(merged.isfinite(), merged, bounded)
    return merged, weight[:, 0] < 1


def _sum_joined(
    tokens: Tensor,
    salient: Tensor,
    kept: Tensor,
    anchors: Tensor,
    plan: Sequence[Segment],
    scale: float = 1.0,
    joined: list[Joined] | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum, times `scale`, and number of the tokens that join each anchor: `[C, D]` and int64 `[C]`."""
    n, dim = tokens.shape[1:]
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    sums = torch.zeros(len(anchors), dim, dtype=dtype, device=tokens.device)
    counts = torch.zeros(len(sums), dtype=torch.int64, device=sums.device)
    first_slot = 0
    for segment in plan:
        n_slots = sum(segment.n_context)
        slots = slice(first_slot, first_slot + n_slots)
        first_slot += n_slots
        own_anchors = _rows(tokens, anchors[slots]).to(dtype)
        for frames, block, nearest, pool in nearest_anchors(tokens, salient, kept, own_anchors, segment):
            token, slot = _sorted_by_slot(nearest, pool)
            block_counts = torch.bincount(slot, minlength=n_slots)
            starts = block_counts.cumsum(0) - block_counts
            sums[slots] += F.embedding_bag(token, block if scale == 1 else block * scale, starts, mode="sum")
            counts[slots] += block_counts
            if joined is not None:
                joined.append(Joined(token + frames.start * n, slot + slots.start))
            # Frees this block before the next one is made.
            del block
    return sums, counts


def _rows(tokens: Tensor, indices: Tensor) -> Tensor:
    """The tokens of `[F, N, D]` at flat indices."""
    n = tokens.shape[1]
    return tokens[indices // n, indices % n]


def _add_anchors(sums: Tensor, weight: Tensor, tokens: Tensor, anchors: Tensor, scale: float = 1.0) -> Tensor:
    """Add the weighted anchors, times `scale`, to `sums` in place; a few at a time, to copy few at once."""
    for first in range(0, len(anchors), _ANCHORS_AT_ONCE):
        part = slice(first, first + _ANCHORS_AT_ONCE)
        own = _rows(tokens, anchors[part]).to(sums.dtype)
        sums[part].addcmul_(weight[part], own if scale == 1 else own * scale)
    return sums


def nearest_anchors(
    tokens: Tensor, salient: Tensor, kept: Tensor, anchor_tokens: Tensor, segment: Segment
) -> Iterator[tuple[range, Tensor, Tensor, Tensor]]:
    """Which anchor each token of a segment joins, block by block; nothing where the segment has no anchors.

    Args:
        tokens: `[F, N, D]`.
        salient: bool `[F, N]`.
        kept: bool `[F, N]`.
        anchor_tokens: `[C, D]`, the segment's anchors in order, in the dtype of the sums.
        segment: the segment.

    Yields:
        A run of the segment's frames; their tokens `[rows, D]`; int64 `[A, rows]`, the position among all C anchors of
        the one most similar to each token, in each of the A anchor frames that have anchors; and bool `[A, rows]`,
        whether the token joins it.
    """
    budgets = {f: count for f, count in zip(segment.anchor_frames, segment.n_context, strict=True) if count > 0}
    if not budgets:
        return
    n_context = [*budgets.values()]
    inverse_norms = _inverse_norms(anchor_tokens)
    # Computed at the first near tie, since most short segments have none.
    first_twin = cache(partial(_first_twin, anchor_tokens, n_context))
    for frames, block in _blocks(tokens, segment, len(anchor_tokens), anchor_tokens.dtype):
        nearest = _nearest_anchor(block, anchor_tokens, inverse_norms, n_context, first_twin)
        yield frames, block, nearest, _pool(salient, kept, frames, [*budgets])
        del block


def anchor_weights(counts: Tensor, beta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """w of each anchor, and (1 - w) / n, the weight of each of the n tokens that joined it: both `[C, 1]`."""
    weight = (1.0 / (counts + 1).to(dtype)).clamp_(min=beta)[:, None]
    return weight, (1 - weight) / counts.clamp(min=1)[:, None]


def _blocks(tokens: Tensor, segment: Segment, n_slots: int, dtype: torch.dtype) -> Iterator[tuple[range, Tensor]]:
    """Runs of a segment's frames, and their tokens as `[rows, D]`.

    The size of a run depends on the segment alone, and so do the order of the sums and the bits of the result.
    """
    n, dim = tokens.shape[1:]
    step = max(1, _BLOCK_ELEMENTS // (n * max(dim, n_slots)))
    if tokens.dtype != dtype:
        step = min(step, max(1, (segment.end - segment.start) // _COPIED_SHARE))
    for start in range(segment.start, segment.end, step):
        frames = range(start, min(start + step, segment.end))
        yield frames, tokens[frames.start : frames.stop].reshape(-1, dim).to(dtype)


def _pool(salient: Tensor, kept: Tensor, frames: range, anchor_frames: list[int]) -> Tensor:
    """Which tokens of some frames join an anchor of each anchor frame: bool `[A, rows]`.

    All do, except salient tokens and, in the anchor frame itself, its anchors.
    """
    pool = salient[frames.start : frames.stop].logical_not().repeat(len(anchor_frames), 1, 1)
    for row, frame in enumerate(anchor_frames):
        if frames.start <= frame < frames.stop:
            pool[row, frame - frames.start] = kept[frame].logical_not()
    return pool.flatten(1)


def _inverse_norms(anchor_tokens: Tensor) -> Tensor:
    """1 / |a| of each anchor, 0 for a zero anchor: float64, in which norms neither overflow nor vanish."""
    norms = torch.linalg.vector_norm(anchor_tokens, dim=1, dtype=torch.float64)
    return torch.where(norms == 0, 0.0, 1 / norms)


def _nearest_anchor(
    block: Tensor,
    anchor_tokens: Tensor,
    inverse_norms: Tensor,
    n_context: list[int],
    first_twin: Callable[[], Tensor],
) -> Tensor:
    """For each anchor frame and token, the position of the most similar of its anchors: int64 `[A, rows]`.

    Similarities too close for float32 are compared again in float64; of equal anchors the first is taken, which
    `first_twin` knows.
    """
    nearest, tied = _most_similar(_similarity(block, anchor_tokens, inverse_norms), n_context)
    rows = tied.nonzero().squeeze(1)
    if len(rows) > 0 and block.dtype != torch.float64:
        tied_tokens = block[rows].double()
        # One anchor frame at a time: a float64 copy of all anchors would take more memory than all else.
        by_frame = zip(anchor_tokens.split(n_context), inverse_norms.split(n_context), strict=True)
        exact = torch.cat([_similarity(tied_tokens, own.double(), norms) for own, norms in by_frame], dim=1)
        nearest[:, rows], _ = _most_similar(exact, n_context)
    if len(rows) > 0:
        nearest = first_twin()[nearest]
    return nearest


def _first_twin(anchor_tokens: Tensor, n_context: list[int]) -> Tensor:
    """Position of the first anchor of the same frame that equals each one: int64 `[anchors]`.

    A matrix product may sum the columns at its edges in another order, so that of equal anchors a later one may come
    out more similar.
    """
    frames = anchor_tokens.split(n_context)
    starts = accumulate(n_context[:-1], initial=0)
    return torch.cat([first_equal(own) + start for own, start in zip(frames, starts, strict=True)])


def _similarity(block: Tensor, anchor_tokens: Tensor, inverse_norms: Tensor) -> Tensor:
    """Inner products of tokens with normalised anchors, -inf where NaN: `[rows, anchors]`."""
    similarity = inner_products(block, anchor_tokens).mul_(inverse_norms.to(block.dtype))
    # A finite sum shows that there is no NaN, as in most blocks; an infinite one only costs another pass.
    if not math.isfinite(similarity.sum().item()):
        similarity.nan_to_num_(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    return similarity


def _most_similar(similarity: Tensor, n_context: list[int]) -> tuple[Tensor, Tensor]:
    """Position of the most similar anchor in each anchor frame, int64 `[A, rows]`, and bool `[rows]`, any near ties."""
    best_of_frames = []
    tied = torch.zeros(len(similarity), dtype=torch.bool, device=similarity.device)
    first = 0
    for own in similarity.split(n_context, dim=1):
        best, position = own.max(1)
        runner_up = own.scatter(1, position[:, None], -math.inf).amax(1)
        tied |= best - runner_up <= _FLOAT32_TIE * best.abs()
        best_of_frames.append(position + first)
        first += own.shape[1]
    return torch.stack(best_of_frames), tied


def _sorted_by_slot(nearest: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
    """The pool's (token, slot) pairs, sorted by slot, then by token; both arguments are `[A, rows]`."""
    row, token = pool.nonzero(as_tuple=True)
    slot, order = torch.sort(nearest[row, token], stable=True)
    return token[order], slot
