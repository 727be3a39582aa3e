"""Near ties in launch 7: the most similar anchor in float64, where float32 cannot tell (Eq. 5; SPEC sections 5, 8)."""

from __future__ import annotations

import triton
import triton.language as tl

from fastvid_kernels.kernels.bundles import anchor_frame, anchors_of, rows_of
from fastvid_kernels.kernels.floats import is_finite

# Similarities with a relative difference up to this may be ordered wrongly by a float32 sum over channels.
_CLOSE = tl.constexpr(2.0**-18)


@triton.jit
def first_of(values, position, none):
    """Position of the first of the largest `values`, `[M, S]` to `[M]`; `none` exceeds every position."""
    largest = tl.max(values, axis=1)
    return tl.min(tl.where(values == largest[:, None], position[None, :], none), axis=1)


@triton.jit
def has_close_rival(best, runner_up):
    """Whether the second largest similarity is within rounding of the largest; False where that is not finite."""
    return is_finite(best) & (best - runner_up <= _CLOSE * tl.abs(best))


@triton.jit
def settle_ties(
    nearest,
    is_tied,
    pair,
    first_token,
    first_ordinal,
    x,
    segment,
    slots,
    FRAMES: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """`nearest`, with the slots of tied pairs decided in float64: one pair at a time, since they are few.

    A pair is a token of the segment and one of FRAMES anchor frames. Each tied pair costs one pass over the anchors of
    its anchor frame.
    """
    for _ in range(0, tl.sum(is_tied.to(tl.int32), axis=0)):
        first = tl.min(tl.where(is_tied, pair, pair.shape[0]), axis=0)
        is_tied = is_tied & (pair != first)
        token = first_token + first // FRAMES
        ordinal = first_ordinal + first % FRAMES
        u = anchor_frame(segment, ordinal)
        slot = _most_similar(
            x, segment.start + token // x.N, token % x.N, u, slots.anchor_ptr + u * slots.per_frame,
            anchors_of(segment, ordinal), BLOCK_SLOTS, BLOCK_D,
        )  # fmt: skip
        nearest = tl.where(pair == first, slot, nearest)
    return nearest


@triton.jit
def _most_similar(
    x,
    t,
    i,
    u,
    anchor_ptr,
    n_context,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Slot of the anchor of frame u most similar to token i of frame t, in float64.

    Equal anchors get the same sums, so the first of them is taken.
    """
    token_ptr = rows_of(x, t, i)
    best = tl.full([1], float("-inf"), tl.float64)
    nearest = tl.zeros([1], tl.int32)
    for first_slot in range(0, n_context, BLOCK_SLOTS):
        slot = first_slot + tl.arange(0, BLOCK_SLOTS)
        exists = slot < n_context
        anchor = tl.load(anchor_ptr + slot, mask=exists, other=0)
        anchor_rows = rows_of(x, u, anchor)
        inner = tl.zeros([BLOCK_SLOTS, BLOCK_D], tl.float64)
        squares = tl.zeros([BLOCK_SLOTS, BLOCK_D], tl.float64)
        for first in range(0, x.D, BLOCK_D):
            channel = first + tl.arange(0, BLOCK_D)
            offset = channel.to(tl.int64) * x.stride_d
            inside = channel < x.D
            own = tl.load(token_ptr + offset, mask=inside, other=0.0).to(tl.float64)
            other = tl.load(anchor_rows[:, None] + offset[None, :], mask=inside[None, :], other=0.0).to(tl.float64)
            inner += own[None, :] * other
            squares += other * other
        norm = tl.sqrt(tl.sum(squares, axis=1))
        similarity = tl.sum(inner, axis=1) / tl.where(norm == 0, 1.0, norm)
        similarity = tl.where(exists & (similarity == similarity), similarity, float("-inf"))[None, :]
        block_best = tl.max(similarity, axis=1)
        nearest = tl.where(block_best > best, first_of(similarity, slot, n_context), nearest)
        best = tl.maximum(best, block_best)
    return tl.sum(nearest, axis=0)
