"""Launch 8: the output, salient tokens as they are and anchors with what joined them (Eq. 5; SPEC sections 5 and 6)."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from fastvid_kernels.kernels.floats import is_finite
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
from fastvid_kernels.kernels.select import SALIENT

# Room for the sum of as many tokens as a segment can hold.
HEADROOM = tl.constexpr(2.0**-24)


@triton.jit
def _sum_one_by_one(
    x_ptr,
    nearest_ptr,
    start,
    end,
    ordinal,
    ordinals,
    stride_t,
    stride_n,
    N,
    slot,
    offset,
    inside,
    padded,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sum of HEADROOM times the tokens that joined each slot: slow, but one token's NaN stays with its own anchor."""
    total = tl.zeros([BLOCK_SLOTS, BLOCK_D], tl.float32)
    for frame in range(0, end - start):
        u = (start + frame).to(tl.int64)
        cell = (u * ordinals + ordinal) * padded
        for i in range(0, N):
            joined = tl.load(nearest_ptr + cell + i).to(tl.int32)
            row_ptr = x_ptr + u * stride_t + tl.full([], i, tl.int64) * stride_n
            x = tl.load(row_ptr + offset, mask=inside, other=0.0)
            # A sum, not a product: 0 * NaN would spoil every anchor.
            total = tl.where((slot == joined)[:, None], total + x.to(tl.float32)[None, :] * HEADROOM, total)
    return total


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
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """BLOCK_D channels of all the rows that one frame keeps, if its anchor frame is one of `ordinals`.

    The last frames go first: they are still in cache.
    """
    padded = row_vectors * ROW_VECTOR
    t = T - 1 - tl.program_id(0)
    start = tl.load(segment_start_ptr + t)
    end = tl.load(segment_end_ptr + t)
    n_salient, n_context, ordinal, rows_before = segment_budget(t, start, end, N, K, context_millionths, interval)
    ordinal -= first_ordinal
    if (ordinal < 0) | (ordinal >= ordinals):
        return
    beta = tl.full([], beta, tl.float32)
    channel = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = channel < D
    offset = channel.to(tl.int64) * stride_d
    frame_ptr = x_ptr + t.to(tl.int64) * stride_t
    slots = t.to(tl.int64) * slots_per_frame

    for first in range(0, n_salient + n_context, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        exists = row < n_salient + n_context
        i = tl.load(indices_ptr + rows_before + row, mask=exists, other=0) - t.to(tl.int64) * N
        state = tl.load(state_ptr + t.to(tl.int64) * padded + i, mask=exists, other=SALIENT).to(tl.int32)
        count = tl.load(count_ptr + slots + state - 1, mask=exists & (state > 0), other=0)
        is_copy = exists & (count == 0)
        if BETA_IS_ONE:
            is_copy = exists
        mask = is_copy[:, None] & inside[None, :]
        x = tl.load(frame_ptr + (i * stride_n)[:, None] + offset[None, :], mask=mask)
        tl.store(output_ptr + (rows_before + row)[:, None] * D + channel[None, :], x, mask=mask)

    if BETA_IS_ONE:
        return
    for first_slot in range(0, n_context, BLOCK_SLOTS):
        slot = first_slot + tl.arange(0, BLOCK_SLOTS)
        exists = slot < n_context
        total = tl.zeros([BLOCK_SLOTS, BLOCK_D], tl.float32)
        for frame in range(0, end - start):
            u = (start + frame).to(tl.int64)
            cell = (u * ordinals + ordinal) * padded
            for first in range(0, N, BLOCK_TOKENS):
                token = first + tl.arange(0, BLOCK_TOKENS)
                joined = tl.load(nearest_ptr + cell + token, mask=token < N, other=-1).to(tl.int32)
                x_rows = x_ptr + u * stride_t + token.to(tl.int64) * stride_n
                x = tl.load(x_rows[:, None] + offset[None, :], mask=(joined >= 0)[:, None] & inside[None, :], other=0.0)
                # By way of float32: the interpreter turns a bool into the bits of a bfloat16, not its value.
                one_hot = (slot[:, None] == joined[None, :]).to(tl.float32).to(x.dtype)
                total = product(one_hot, x, total, PRECISION, UPCAST)
        scale = tl.full([], 1.0, tl.float32)
        if tl.min(is_finite(total).to(tl.int32)) == 0:
            # Some token is not finite, or a sum of finite ones is not: add up again, token by token, with room.
            scale = tl.full([], HEADROOM, tl.float32)
            total = _sum_one_by_one(
                x_ptr, nearest_ptr, start, end, ordinal, ordinals, stride_t, stride_n, N, slot, offset, inside, padded,
                BLOCK_SLOTS, BLOCK_D,
            )  # fmt: skip
        count = tl.load(count_ptr + slots + slot, mask=exists, other=0)
        weight = tl.maximum(beta, 1.0 / (count + 1).to(tl.float32))[:, None]
        mean_share = (1.0 - weight) / tl.maximum(count, 1).to(tl.float32)[:, None]
        anchor = tl.load(anchor_ptr + slots + slot, mask=exists, other=0).to(tl.int64)
        mask = (exists & (count > 0))[:, None] & inside[None, :]
        own = tl.load(frame_ptr + (anchor * stride_n)[:, None] + offset[None, :], mask=mask, other=0.0)
        own = own.to(tl.float32) * scale
        merged = weight * own + mean_share * total
        # Rounding may carry a mean of the largest numbers beyond them.
        limit = tl.full([], largest, tl.float32) * scale
        bounded = tl.where(merged > limit, limit, tl.where(merged < -limit, -limit, merged))
        merged = tl.where(is_finite(own) & is_finite(total), bounded, merged) / scale
        row = tl.load(anchor_row_ptr + slots + slot, mask=exists, other=0)
        output_rows = output_ptr + (rows_before + row)[:, None] * D + channel[None, :]
        tl.store(output_rows, merged.to(output_ptr.dtype.element_ty), mask=mask)


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
            "BLOCK_ROWS": 16,
            "BLOCK_SLOTS": 32,
            "BLOCK_TOKENS": 32,
            "BLOCK_D": block_d,
            "num_stages": request.stages,
            **request.strides,
            **budget_arguments(request, shapes),
            **request.arithmetic,
            **OPTIONS,
        },
    )
