"""Launch 8 of a backward pass, in place of emit: each token's gradient, from the output rows that it is part of."""

from __future__ import annotations

import triton
import triton.language as tl

from fastvid_kernels.kernels.bundles import Joined, cell_of
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
from fastvid_kernels.kernels.overlap import wait_for_earlier_launches
from fastvid_kernels.kernels.plan import segment_budget
from fastvid_kernels.kernels.select import FREE, SALIENT

_BLOCK_TOKENS = 16


@triton.jit(
    do_not_specialize=[
        *BUDGET_ARGUMENTS, "row_vectors", "slots_per_frame", "first_ordinal", "ordinals", "is_first", "is_last"
    ]
)  # fmt: skip
def gradient_kernel(
    grad_ptr,
    gradient_ptr,
    low_ptr,
    state_ptr,
    anchor_row_ptr,
    count_ptr,
    nearest_ptr,
    segment_start_ptr,
    segment_end_ptr,
    N,
    D,
    K,
    context_millionths,
    interval,
    first_ordinal,
    ordinals,
    is_first,
    is_last,
    beta,
    row_vectors,
    slots_per_frame,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """BLOCK_D channels of the gradient of BLOCK_TOKENS tokens of a frame. No two programs write the same element.

    Terms are added in ascending order of anchor frames, which is descending order of ordinals. Between launches, the
    output holds the float32 sums so far. In half precision it holds their upper 16 bits, and `low_ptr` the lower 16.
    """
    wait_for_earlier_launches(OVERLAPS)
    padded = row_vectors * ROW_VECTOR
    t = tl.program_id(0)
    start = tl.load(segment_start_ptr + t)
    end = tl.load(segment_end_ptr + t)
    first = tl.program_id(1) * BLOCK_TOKENS
    i = first + tl.arange(0, BLOCK_TOKENS)
    exists = i < N
    frame = t.to(tl.int64) * padded
    state = tl.load(state_ptr + frame + i, mask=exists, other=FREE).to(tl.int32)
    channel = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = channel < D
    cell = (t.to(tl.int64) * N + i)[:, None] * D + channel[None, :]
    mask = exists[:, None] & inside[None, :]
    beta = tl.full([], beta, tl.float32)
    total = tl.zeros([BLOCK_TOKENS, BLOCK_D], tl.float32)
    IS_HALF: tl.constexpr = gradient_ptr.dtype.element_ty != tl.float32
    if is_first == 0:
        waiting = tl.load(gradient_ptr + cell, mask=mask, other=0.0)
        if IS_HALF:
            high = waiting.to(tl.int16, bitcast=True).to(tl.int32) << 16
            low = tl.load(low_ptr + cell, mask=mask, other=0).to(tl.int32) & 0xFFFF
            total = (high | low).to(tl.float32, bitcast=True)
        else:
            total = waiting

    anchor_frames = tl.minimum((end - start + interval - 1) // interval - first_ordinal, ordinals)
    joined = Joined(nearest_ptr, first_ordinal, ordinals, row_vectors)
    slots_ptr = nearest_ptr + cell_of(joined, start, end, first_ordinal + anchor_frames) + (t - start) * N
    for step in range(0, anchor_frames):
        own_ordinal = anchor_frames - 1 - step
        slots_ptr -= (end - start).to(tl.int64) * padded
        u = end - 1 - (first_ordinal + own_ordinal) * interval
        _, n_context, _, rows_before = segment_budget(u, start, end, N, K, context_millionths, interval)
        if n_context > 0:
            nearest = tl.load(slots_ptr + i, mask=exists, other=-1).to(tl.int32)
            is_anchor = (state > 0) & (t == u)
            slot = tl.where(is_anchor, state - 1, nearest)
            takes_part = slot >= 0
            slots = u.to(tl.int64) * slots_per_frame
            count = tl.load(count_ptr + slots + slot, mask=takes_part, other=0)
            # Correctly rounded quotients give the same bits as the eager backend's weights.
            weight = tl.maximum(beta, tl.div_rn(1.0, (count + 1).to(tl.float32)))
            mean_share = tl.div_rn(1.0 - weight, tl.maximum(count, 1).to(tl.float32))
            takes_part = takes_part & (tl.where(is_anchor, 0.0, weight) < 1.0)
            row = rows_before + tl.load(anchor_row_ptr + slots + slot, mask=takes_part, other=0)
            rows = grad_ptr + row[:, None] * D + channel[None, :]
            grad = tl.load(rows, mask=takes_part[:, None] & inside[None, :], other=0.0).to(tl.float32)
            term = tl.where(is_anchor, weight, mean_share)[:, None] * grad
            # A selection, not a weight of 0 where the token takes no part: 0 * inf would be NaN.
            total = tl.where(takes_part[:, None], total + term, total)

    if is_last == 0:
        if IS_HALF:
            bits = total.to(tl.int32, bitcast=True)
            high = (bits >> 16).to(tl.int16).to(gradient_ptr.dtype.element_ty, bitcast=True)
            tl.store(gradient_ptr + cell, high, mask=mask)
            tl.store(low_ptr + cell, bits.to(tl.int16), mask=mask)
        else:
            tl.store(gradient_ptr + cell, total, mask=mask)
        return
    before = tl.full([], 0, tl.int32)
    for other_first in range(0, first, BLOCK_TOKENS):
        other = tl.load(state_ptr + frame + other_first + tl.arange(0, BLOCK_TOKENS))
        before += tl.sum((other != FREE).to(tl.int32), axis=0)
    is_salient = exists & (state == SALIENT)
    _, _, _, rows_before = segment_budget(t, start, end, N, K, context_millionths, interval)
    row = rows_before + before + tl.cumsum((state != FREE).to(tl.int32), axis=0) - 1
    rows = grad_ptr + row[:, None] * D + channel[None, :]
    grad = tl.load(rows, mask=is_salient[:, None] & inside[None, :], other=0.0).to(tl.float32)
    total = tl.where(is_salient[:, None], grad, total)
    tl.store(gradient_ptr + cell, total.to(gradient_ptr.dtype.element_ty), mask=mask)


def gradient_step(request: Request, shapes: Shapes, first_ordinal: int) -> Step:
    """Grid: frames x tiles of tokens x blocks of channels. The launch of the highest ordinals comes first."""
    block_d = 2 * request.depth
    is_first = first_ordinal + shapes.ordinals_per_chunk >= shapes.ordinals
    return Step(
        gradient_kernel,
        grid=(shapes.frames, -(-shapes.tokens_per_frame // _BLOCK_TOKENS), -(-shapes.channels // block_d)),
        arrays={
            "grad_ptr": "grad",
            "gradient_ptr": "output",
            "low_ptr": "low",
            "state_ptr": "state",
            "anchor_row_ptr": "anchor_row",
            "count_ptr": "count",
            "nearest_ptr": "nearest",
            **SEGMENT_ARRAYS,
        },
        constants={
            "D": shapes.channels,
            "first_ordinal": first_ordinal,
            "ordinals": shapes.ordinals_per_chunk,
            "is_first": int(is_first),
            "is_last": int(first_ordinal == 0),
            "beta": float(request.config.beta),
            "row_vectors": shapes.row_vectors,
            "slots_per_frame": shapes.slots,
            "BLOCK_TOKENS": _BLOCK_TOKENS,
            "BLOCK_D": block_d,
            **budget_arguments(request, shapes),
            **OPTIONS,
        },
    )
