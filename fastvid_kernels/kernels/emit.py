"""Launch 8: the output, with salient tokens copied and other tokens merged into anchors (Eq. 5; SPEC sections 5, 6)."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from fastvid_kernels.kernels.bundles import Joined, Merging, Segment, Slots, Tokens, rows_of
from fastvid_kernels.kernels.gram import frame_and_tile
from fastvid_kernels.kernels.groups import BLOCK_SLOTS, GROUP, PAIR, fewer_from, goes_together
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
from fastvid_kernels.kernels.merge import store_merged, twice_sums
from fastvid_kernels.kernels.overlap import wait_for_earlier_launches
from fastvid_kernels.kernels.plan import context_shares, segment_budget
from fastvid_kernels.kernels.select import SALIENT


@triton.jit
def _copy(
    x,
    output_ptr,
    indices_ptr,
    state_ptr,
    count_ptr,
    t,
    first_row,
    rows,
    channel,
    COPIES_ALL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Copy the salient tokens of a frame, and the anchors that no token joined; or all that it keeps.

    Its `rows` rows of the output begin at `first_row`; the other pointers are to those of its frame.
    """
    inside = channel < x.D
    offset = channel.to(tl.int64) * x.stride_d
    for first in range(0, rows, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        exists = row < rows
        i = tl.load(indices_ptr + first_row + row, mask=exists, other=0) - t.to(tl.int64) * x.N
        is_copy = exists
        if not COPIES_ALL:
            state = tl.load(state_ptr + i, mask=exists, other=SALIENT).to(tl.int32)
            count = tl.load(count_ptr + state - 1, mask=exists & (state > 0), other=0)
            is_copy = exists & (count == 0)
        mask = is_copy[:, None] & inside[None, :]
        copied = tl.load(rows_of(x, t, i)[:, None] + offset[None, :], mask=mask)
        tl.store(output_ptr + (first_row + row)[:, None] * x.D + channel[None, :], copied, mask=mask)


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
    COPY_D: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    GROUP_TOKENS: tl.constexpr,
    GROUP_D: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    FRAMES_FOLLOW: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Some channels of rows of the output, for a frame whose ordinal is one of the `ordinals` of this launch.

    A program merges BLOCK_SLOTS anchors of its frame in BLOCK_D channels, or copies rows of it in COPY_D channels.
    Where anchor frames go together, programs of the last of them merge the anchors of all: of the last of a pair, or of
    the last few of a group, in GROUP_D channels each. Programs start with the last frames, which are still in cache.
    """
    wait_for_earlier_launches(OVERLAPS)
    blocks = tl.cdiv(D, BLOCK_D)
    to_merge = blocks * tl.cdiv(slots_per_frame, BLOCK_SLOTS)
    frame, tile = frame_and_tile(to_merge + tl.cdiv(D, COPY_D))
    t = T - 1 - frame
    start = tl.load(segment_start_ptr + t)
    end = tl.load(segment_end_ptr + t)
    n_salient, n_context, ordinal, rows_before = segment_budget(t, start, end, N, K, context_millionths, interval)
    if (ordinal < first_ordinal) | (ordinal >= first_ordinal + ordinals):
        return
    x = Tokens(x_ptr, stride_t, stride_n, stride_d, N, D)
    if tile >= to_merge:
        copied_channel = (tile - to_merge) * COPY_D + tl.arange(0, COPY_D)
        _copy(
            x, output_ptr, indices_ptr, state_ptr + t.to(tl.int64) * row_vectors * ROW_VECTOR,
            count_ptr + t.to(tl.int64) * slots_per_frame, t, rows_before, n_salient + n_context, copied_channel,
            BETA_IS_ONE, BLOCK_ROWS,
        )  # fmt: skip
        return
    first_slot = tile // blocks * BLOCK_SLOTS
    if BETA_IS_ONE | (n_context <= first_slot):
        return
    block = tile % blocks
    channel = block * BLOCK_D + tl.arange(0, BLOCK_D)
    beta, largest = tl.full([], beta, tl.float32), tl.full([], largest, tl.float32)
    anchor_frames, share, rest = context_shares(start, end, N, K, context_millionths, interval)
    ordinals_here = tl.minimum(anchor_frames - first_ordinal, ordinals)
    grouped = ordinals_here // GROUP * GROUP
    fewer = fewer_from(share, rest, first_ordinal, BLOCK_SLOTS)
    segment = Segment(start, end, interval, share, rest)
    slots = Slots(anchor_ptr, count_ptr, slots_per_frame)
    joined = Joined(nearest_ptr, first_ordinal, ordinals, row_vectors)
    merging = Merging(output_ptr, anchor_row_ptr, K, context_millionths, beta, largest)
    own = ordinal - first_ordinal
    in_group = own % GROUP
    if (own < grouped) & goes_together(own - in_group, fewer, GROUP):
        # A pass for a group is for fewer channels, so programs of several of its frames share the work.
        first_channel = block * BLOCK_D + in_group * GROUP_D
        if (in_group < BLOCK_D // GROUP_D) & (first_channel < D):
            first = ordinal - in_group
            group_channel = first_channel + tl.arange(0, GROUP_D)
            sums, further_sums = twice_sums(
                x, segment, joined, first, PAIR, first_slot, group_channel,
                GROUP // PAIR, BLOCK_SLOTS, GROUP_TOKENS, FRAMES_FOLLOW, PRECISION, UPCAST,
            )  # fmt: skip
            store_merged(sums, x, segment, slots, joined, merging, first, PAIR, first_slot, group_channel, BLOCK_SLOTS)
            store_merged(
                further_sums, x, segment, slots, joined, merging, first + PAIR, PAIR, first_slot, group_channel,
                BLOCK_SLOTS,
            )  # fmt: skip
        return
    in_pair = own % PAIR
    has_next = own - in_pair + 1 < ordinals_here
    frames = tl.where(has_next & goes_together(own - in_pair, fewer, PAIR), PAIR, 1)
    if (in_pair == 0) | (frames == 1):
        sums, _ = twice_sums(
            x, segment, joined, ordinal, frames, first_slot, channel,
            1, BLOCK_SLOTS, BLOCK_TOKENS, FRAMES_FOLLOW, PRECISION, UPCAST,
        )  # fmt: skip
        store_merged(sums, x, segment, slots, joined, merging, ordinal, frames, first_slot, channel, BLOCK_SLOTS)


def emit_step(request: Request, shapes: Shapes, first_ordinal: int) -> Step:
    """Grid: frames * (blocks of anchors * blocks of channels to merge + blocks of channels to copy)."""
    block_d, copy_d = 2 * request.depth, 8 * request.depth
    tiles = -(-shapes.slots // BLOCK_SLOTS) * -(-shapes.channels // block_d) + -(-shapes.channels // copy_d)
    block_tokens = 32 if request.dtype == torch.float32 else 64
    stride_t, stride_n, _ = request.token_strides
    return Step(
        emit_kernel,
        grid=(shapes.frames * tiles,),
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
            "COPY_D": copy_d,
            "GROUP": GROUP,
            "BLOCK_SLOTS": BLOCK_SLOTS,
            "GROUP_TOKENS": block_tokens,
            "GROUP_D": request.depth,
            "BLOCK_TOKENS": block_tokens,
            "BLOCK_D": block_d,
            "FRAMES_FOLLOW": shapes.frames == 1 or stride_t == shapes.tokens_per_frame * stride_n,
            "num_stages": request.least_stages,
            **request.strides,
            **budget_arguments(request, shapes),
            **request.arithmetic,
            **OPTIONS,
        },
    )
