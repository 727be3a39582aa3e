"""Launch 7: the anchor that each token joins, in each anchor frame of its segment (Eq. 5; SPEC section 5)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastvid_kernels.kernels.gram import product
from fastvid_kernels.kernels.launch import (
    BUDGET_ARGUMENTS,
    OPTIONS,
    ROW_VECTOR,
    SEGMENT_ARRAYS,
    Request,
    Shapes,
    Step,
    budget_arguments,
)
from fastvid_kernels.kernels.plan import segment_budget
from fastvid_kernels.kernels.select import FREE, SALIENT
from fastvid_kernels.kernels.ties import first_of, has_close_rival, settle_ties

_BLOCK_M = 64
_LANES = 4


@triton.jit(do_not_specialize=[*BUDGET_ARGUMENTS, "row_vectors", "slots_per_frame", "first_ordinal", "ordinals"])
def assign_kernel(
    x_ptr,
    state_ptr,
    anchor_ptr,
    inverse_norm_ptr,
    count_ptr,
    nearest_ptr,
    segment_start_ptr,
    segment_end_ptr,
    stride_t,
    stride_n,
    stride_d,
    N,
    D,
    K,
    context_millionths,
    interval,
    first_ordinal,
    ordinals,
    LANES: tl.constexpr,
    row_vectors,
    slots_per_frame,
    BLOCK_M: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    SETTLES_TIES: tl.constexpr,
):
    """Slot of the most similar anchor, -1 for a token that joins none, for BLOCK_M tokens of a frame.

    The program goes through every LANES-th of `ordinals` anchor frames of the frame's segment, counted from the last.
    """
    padded = row_vectors * ROW_VECTOR
    t = tl.program_id(0)
    start = tl.load(segment_start_ptr + t)
    end = tl.load(segment_end_ptr + t)
    i = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    state = tl.load(state_ptr + t.to(tl.int64) * padded + i, mask=i < N, other=SALIENT)
    # Rows beyond the frame read its last token, slots beyond the anchors its first: no mask, and nothing is stored.
    frame_ptr = x_ptr + t.to(tl.int64) * stride_t
    x_rows = frame_ptr + tl.minimum(i, N - 1).to(tl.int64) * stride_n
    end_ordinal = tl.minimum((end - start + interval - 1) // interval, first_ordinal + ordinals)
    for ordinal in range(first_ordinal + tl.program_id(2), end_ordinal, LANES):
        u = end - 1 - ordinal * interval
        _, n_context, _, _ = segment_budget(u, start, end, N, K, context_millionths, interval)
        # 32 bits hold it: 2**20 frames of at most 1,024 slots.
        slots = u * slots_per_frame
        anchor_frame_ptr = x_ptr + u.to(tl.int64) * stride_t
        best = tl.full([BLOCK_M], float("-inf"), tl.float32)
        runner_up = best
        nearest = tl.zeros([BLOCK_M], tl.int32)
        for first_slot in range(0, n_context, BLOCK_SLOTS):
            slot = first_slot + tl.arange(0, BLOCK_SLOTS)
            exists = slot < n_context
            anchor = tl.load(anchor_ptr + slots + slot, mask=exists, other=0)
            anchor_rows = anchor_frame_ptr + anchor.to(tl.int64) * stride_n
            similarity = tl.zeros([BLOCK_M, BLOCK_SLOTS], tl.float32)
            for first in range(0, D, BLOCK_D):
                channel = first + tl.arange(0, BLOCK_D)
                offset = channel.to(tl.int64) * stride_d
                inside = channel < D
                x = tl.load(x_rows[:, None] + offset[None, :], mask=inside[None, :], other=0.0)
                y = tl.load(anchor_rows[None, :] + offset[:, None], mask=inside[:, None], other=0.0)
                similarity = product(x, y, similarity, PRECISION, UPCAST)
            similarity *= tl.load(inverse_norm_ptr + slots + slot, mask=exists, other=0.0)[None, :]
            usable = exists[None, :] & (similarity == similarity)
            similarity = tl.where(usable, similarity, float("-inf"))
            block_best = tl.max(similarity, axis=1)
            first_best = first_of(similarity, slot, slots_per_frame)
            if SETTLES_TIES:
                others = tl.where(slot[None, :] == first_best[:, None], float("-inf"), similarity)
                runner_up = tl.maximum(runner_up, tl.maximum(tl.max(others, axis=1), tl.minimum(best, block_best)))
            # Strictly better: among equals, and where nothing is comparable, the first anchor stands.
            better = block_best > best
            nearest = tl.where(better, first_best, nearest)
            best = tl.where(better, block_best, best)
        barred = tl.where(t == u, state != FREE, state == SALIENT)
        if SETTLES_TIES:
            is_tied = has_close_rival(best, runner_up) & (i < N) & ~barred
            nearest = settle_ties(
                nearest, is_tied, i, frame_ptr, anchor_frame_ptr, anchor_ptr + slots, n_context, stride_n, stride_d,
                N, D, BLOCK_SLOTS, BLOCK_D,
            )  # fmt: skip
        joined = tl.where((n_context > 0) & (i < N), tl.where(barred, -1, nearest), -1)
        cell = (t.to(tl.int64) * ordinals + ordinal - first_ordinal) * padded
        tl.store(nearest_ptr + cell + i, joined.to(tl.int16), mask=i < N)
        one = tl.full([BLOCK_M], 1, tl.int32)
        tl.atomic_add(count_ptr + slots + joined, one, mask=joined >= 0, sem="relaxed")


def assign_step(request: Request, shapes: Shapes, first_ordinal: int) -> Step:
    """Grid: frames x tiles of tokens x lanes of anchor frames."""
    return Step(
        assign_kernel,
        grid=(shapes.frames, -(-shapes.tokens_per_frame // _BLOCK_M), _LANES),
        arrays={
            "x_ptr": "tokens",
            "state_ptr": "state",
            "anchor_ptr": "anchor",
            "inverse_norm_ptr": "inverse_norm",
            "count_ptr": "count",
            "nearest_ptr": "nearest",
            **SEGMENT_ARRAYS,
        },
        constants={
            "D": shapes.channels,
            "first_ordinal": first_ordinal,
            "ordinals": shapes.ordinals_per_chunk,
            "LANES": _LANES,
            "row_vectors": shapes.row_vectors,
            "slots_per_frame": shapes.slots,
            "BLOCK_M": _BLOCK_M,
            "BLOCK_SLOTS": 32,
            "BLOCK_D": request.depth,
            "num_stages": request.stages,
            # Half precision has lost more in its own rounding than float32 sums lose.
            "SETTLES_TIES": request.dtype == torch.float32,
            **request.strides,
            **budget_arguments(request, shapes),
            **request.arithmetic,
            **OPTIONS,
        },
    )
