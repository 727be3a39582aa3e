"""Launch 8: the output, with salient tokens copied and other tokens merged into anchors (Eq. 5; SPEC sections 5, 6)."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from fastvid_kernels.kernels.bundles import Joined, Segment, Slots, Tokens, anchor_frame, anchors_of, rows_of
from fastvid_kernels.kernels.floats import is_finite
from fastvid_kernels.kernels.gram import product
from fastvid_kernels.kernels.groups import BLOCK_SLOTS, GROUP, PAIR, WARPS, fewer_from, goes_together
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
from fastvid_kernels.kernels.plan import context_shares, segment_budget
from fastvid_kernels.kernels.select import FREE, SALIENT

# With this scale, the sum of as many tokens as a segment can hold does not overflow.
HEADROOM = tl.constexpr(2.0**-24)


@triton.jit
def _sum_one_by_one(
    x,
    segment,
    joined,
    slot,
    row_cell,
    offset,
    inside,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sum of HEADROOM times the tokens that joined each row: slow, but a token's NaN reaches only its own anchor."""
    total = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for frame in range(0, segment.end - segment.start):
        u = (segment.start + frame).to(tl.int64)
        cell = u * joined.ordinals * joined.padded
        for i in range(0, x.N):
            nearest = tl.load(joined.nearest_ptr + cell + row_cell + i).to(tl.int32)
            row_ptr = x.ptr + u * x.stride_t + tl.full([], i, tl.int64) * x.stride_n
            token = tl.load(row_ptr + offset, mask=inside, other=0.0)
            # A selection, not a product: 0 * NaN would make every anchor NaN.
            total = tl.where((slot == nearest)[:, None], total + token.to(tl.float32)[None, :] * HEADROOM, total)
    return total


@triton.jit
def _nearest(
    joined,
    state_ptr,
    segment,
    first,
    ordinal,
    N,
    FRAMES: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    """Slots that tokens joined in FRAMES anchor frames, `[FRAMES, BLOCK_TOKENS]`, and which tokens need loading."""
    tokens = (segment.end - segment.start) * N
    token = first + tl.arange(0, BLOCK_TOKENS)
    t = segment.start + token // N
    i = token % N
    cell = (t.to(tl.int64) * joined.ordinals + (ordinal - joined.first_ordinal)) * joined.padded + i
    frame = tl.arange(0, FRAMES)
    cells = cell[None, :] + (frame * joined.padded)[:, None]
    nearest = tl.load(joined.nearest_ptr + cells, mask=(token < tokens)[None, :], other=-1)
    state = tl.load(state_ptr + t.to(tl.int64) * joined.padded + i, mask=token < tokens, other=SALIENT)
    takes_part = state != SALIENT
    if FRAMES == 1:
        takes_part = tl.where(t == anchor_frame(segment, ordinal), state == FREE, takes_part)
    return nearest.to(tl.int32), takes_part


@triton.jit
def _merge(
    x,
    segment,
    slots,
    joined,
    output_ptr,
    state_ptr,
    anchor_row_ptr,
    ordinal,
    channel,
    K,
    context_millionths,
    beta,
    largest,
    FRAMES: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Some channels of the merged rows of FRAMES anchor frames, which share each pass over their segment's tokens.

    The rows of the product are BLOCK_SLOTS anchors of each anchor frame. Tokens are summed in the order of the segment,
    BLOCK_TOKENS at a time.
    """
    tokens = (segment.end - segment.start) * x.N
    inside = channel < x.D
    offset = channel.to(tl.int64) * x.stride_d
    row = tl.arange(0, FRAMES * BLOCK_SLOTS)
    row_ordinal = ordinal + row // BLOCK_SLOTS
    row_frame = anchor_frame(segment, row_ordinal)
    # This fits 32 bits: 2**20 frames of at most 1,024 slots.
    row_slots = row_frame * slots.per_frame
    for first_slot in range(0, anchors_of(segment, ordinal), BLOCK_SLOTS):
        block_slot = first_slot + tl.arange(0, BLOCK_SLOTS)
        total = tl.zeros([FRAMES * BLOCK_SLOTS, BLOCK_D], tl.float32)
        nearest, takes_part = _nearest(joined, state_ptr, segment, 0, ordinal, x.N, FRAMES, BLOCK_TOKENS)
        for first in range(0, tokens, BLOCK_TOKENS):
            token = first + tl.arange(0, BLOCK_TOKENS)
            rows = rows_of(x, segment.start + token // x.N, token % x.N)
            tile = tl.load(rows[:, None] + offset[None, :], mask=takes_part[:, None] & inside[None, :], other=0.0)
            next_nearest, takes_part = _nearest(
                joined, state_ptr, segment, first + BLOCK_TOKENS, ordinal, x.N, FRAMES, BLOCK_TOKENS
            )
            # Through float32: Triton's interpreter converts a bool to bfloat16 by its bits, not by its value.
            one_hot = (block_slot[None, :, None] == nearest[:, None, :]).to(tl.float32).to(tile.dtype)
            one_hot = tl.reshape(one_hot, [FRAMES * BLOCK_SLOTS, BLOCK_TOKENS])
            total = product(one_hot, tile, total, PRECISION, UPCAST)
            nearest = next_nearest
        slot = first_slot + row % BLOCK_SLOTS
        scale = tl.full([], 1.0, tl.float32)
        if tl.min(is_finite(total).to(tl.int32)) == 0:
            # Some token is not finite, or a sum overflowed: add up again, token by token and scaled down.
            scale = tl.full([], HEADROOM, tl.float32)
            row_cell = (row_ordinal - joined.first_ordinal) * joined.padded
            total = _sum_one_by_one(x, segment, joined, slot, row_cell, offset, inside, FRAMES * BLOCK_SLOTS, BLOCK_D)
        exists = slot < anchors_of(segment, row_ordinal)
        count = tl.load(slots.count_ptr + (row_slots + slot), mask=exists, other=0)
        weight = tl.maximum(beta, 1.0 / (count + 1).to(tl.float32))[:, None]
        mean_share = (1.0 - weight) / tl.maximum(count, 1).to(tl.float32)[:, None]
        anchor = tl.load(slots.anchor_ptr + (row_slots + slot), mask=exists, other=0)
        mask = (exists & (count > 0))[:, None] & inside[None, :]
        own_rows = rows_of(x, row_frame, anchor)
        own = tl.load(own_rows[:, None] + offset[None, :], mask=mask, other=0.0).to(tl.float32) * scale
        merged = weight * own + mean_share * total
        # Rounding may raise a mean of the largest finite numbers beyond them.
        limit = tl.full([], largest, tl.float32) * scale
        bounded = tl.where(merged > limit, limit, tl.where(merged < -limit, -limit, merged))
        merged = tl.where(is_finite(own) & is_finite(total), bounded, merged) / scale
        _, _, _, rows_before = segment_budget(
            row_frame, segment.start, segment.end, x.N, K, context_millionths, segment.interval
        )
        output_row = rows_before + tl.load(anchor_row_ptr + (row_slots + slot), mask=exists, other=0)
        output_rows = output_ptr + output_row[:, None] * x.D + channel[None, :]
        tl.store(output_rows, merged.to(output_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=[*BUDGET_ARGUMENTS, "row_vectors", "slots_per_frame", "first_ordinal", "ordinals", "T"])
def emit_kernel(
    x_ptr,
    output_ptr,
    indices_ptr,
    state_ptr,
    anchor_ptr,
    anchor_row_ptr,
    count_ptr,
    nearest_ptr,
    segment_start_ptr,
    segment_end_ptr,
    stride_t,
    stride_n,
    stride_d,
    T,
    N,
    D,
    K,
    context_millionths,
    interval,
    first_ordinal,
    ordinals,
    beta,
    largest,
    BETA_IS_ONE: tl.constexpr,
    row_vectors,
    slots_per_frame,
    BLOCK_ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    GROUP_TOKENS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """BLOCK_D channels of all rows that one frame keeps, if its ordinal is one of the `ordinals` of this launch.

    Where anchor frames go together, the program of the last of these frames merges the anchors of all of them.
    Programs start with the last frames, which are still in cache.
    """
    wait_for_earlier_launches(OVERLAPS)
    padded = row_vectors * ROW_VECTOR
    t = T - 1 - tl.program_id(0)
    start = tl.load(segment_start_ptr + t)
    end = tl.load(segment_end_ptr + t)
    n_salient, n_context, ordinal, rows_before = segment_budget(t, start, end, N, K, context_millionths, interval)
    if (ordinal < first_ordinal) | (ordinal >= first_ordinal + ordinals):
        return
    beta = tl.full([], beta, tl.float32)
    channel = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = channel < D
    offset = channel.to(tl.int64) * stride_d
    frame_ptr = x_ptr + t.to(tl.int64) * stride_t
    frame_slots = t.to(tl.int64) * slots_per_frame

    for first in range(0, n_salient + n_context, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        exists = row < n_salient + n_context
        i = tl.load(indices_ptr + rows_before + row, mask=exists, other=0) - t.to(tl.int64) * N
        state = tl.load(state_ptr + t.to(tl.int64) * padded + i, mask=exists, other=SALIENT).to(tl.int32)
        count = tl.load(count_ptr + frame_slots + state - 1, mask=exists & (state > 0), other=0)
        is_copy = exists & (count == 0)
        if BETA_IS_ONE:
            is_copy = exists
        mask = is_copy[:, None] & inside[None, :]
        copied = tl.load(frame_ptr + (i * stride_n)[:, None] + offset[None, :], mask=mask)
        tl.store(output_ptr + (rows_before + row)[:, None] * D + channel[None, :], copied, mask=mask)

    if BETA_IS_ONE:
        return
    if n_context == 0:
        return
    anchor_frames, share, rest = context_shares(start, end, N, K, context_millionths, interval)
    ordinals_here = tl.minimum(anchor_frames - first_ordinal, ordinals)
    grouped = ordinals_here // GROUP * GROUP
    fewer = fewer_from(share, rest, first_ordinal, BLOCK_SLOTS)
    x = Tokens(x_ptr, stride_t, stride_n, stride_d, N, D)
    segment = Segment(start, end, interval, share, rest)
    slots = Slots(anchor_ptr, count_ptr, slots_per_frame)
    joined = Joined(nearest_ptr, first_ordinal, ordinals, padded)
    own = ordinal - first_ordinal
    if (own < grouped) & goes_together(own // GROUP * GROUP, fewer, GROUP):
        if own % GROUP == 0:
            _merge(
                x, segment, slots, joined, output_ptr, state_ptr, anchor_row_ptr, ordinal, channel, K,
                context_millionths, beta, largest, GROUP, BLOCK_SLOTS, GROUP_TOKENS, BLOCK_D, PRECISION, UPCAST,
            )  # fmt: skip
    elif (
        (own >= grouped)
        & (own < grouped + PAIR)
        & (ordinals_here - grouped >= PAIR)
        & goes_together(grouped, fewer, PAIR)
    ):
        if own == grouped:
            _merge(
                x, segment, slots, joined, output_ptr, state_ptr, anchor_row_ptr, ordinal, channel, K,
                context_millionths, beta, largest, PAIR, BLOCK_SLOTS, BLOCK_TOKENS, BLOCK_D, PRECISION, UPCAST,
            )  # fmt: skip
    else:
        _merge(
            x, segment, slots, joined, output_ptr, state_ptr, anchor_row_ptr, ordinal, channel, K, context_millionths,
            beta, largest, 1, BLOCK_SLOTS, BLOCK_TOKENS, BLOCK_D, PRECISION, UPCAST,
        )  # fmt: skip


def emit_step(request: Request, shapes: Shapes, first_ordinal: int) -> Step:
    """Grid: frames x blocks of channels."""
    block_d = 2 * request.depth
    return Step(
        emit_kernel,
        grid=(shapes.frames, -(-shapes.channels // block_d)),
        arrays={
            "x_ptr": "tokens",
            "output_ptr": "output",
            "indices_ptr": "indices",
            "state_ptr": "state",
            "anchor_ptr": "anchor",
            "anchor_row_ptr": "anchor_row",
            "count_ptr": "count",
            "nearest_ptr": "nearest",
            **SEGMENT_ARRAYS,
        },
        constants={
            "T": shapes.frames,
            "D": shapes.channels,
            "first_ordinal": first_ordinal,
            "ordinals": shapes.ordinals_per_chunk,
            "beta": float(request.config.beta),
            "BETA_IS_ONE": bool(np.float32(request.config.beta) == 1),
            "largest": torch.finfo(request.dtype).max,
            "row_vectors": shapes.row_vectors,
            "slots_per_frame": shapes.slots,
            "BLOCK_ROWS": 64,
            "GROUP": GROUP,
            "BLOCK_SLOTS": BLOCK_SLOTS,
            "GROUP_TOKENS": 16 if request.dtype == torch.float32 else 64,
            "BLOCK_TOKENS": 32,
            "BLOCK_D": block_d,
            "num_stages": request.stages,
            **request.strides,
            **budget_arguments(request, shapes),
            **request.arithmetic,
            **OPTIONS,
            "num_warps": WARPS,
        },
    )
