"""Launch 7: the anchor that each token joins, in each anchor frame of its segment (Eq. 5; SPEC section 5)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastvid_kernels.kernels.bundles import (
    Joined,
    Segment,
    Slots,
    Tokens,
    anchor_frame,
    anchors_of,
    cell_of,
    rows_of,
)
from fastvid_kernels.kernels.gram import product
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
from fastvid_kernels.kernels.overlap import wait_for_earlier_launches
from fastvid_kernels.kernels.plan import context_shares
from fastvid_kernels.kernels.select import FREE, SALIENT
from fastvid_kernels.kernels.ties import first_of, has_close_rival, settle_ties

_ROWS = 64
_LANES = 4
# The product for a group's anchors does not fit the registers of four warps.
_WARPS = 8


@triton.jit
def _join_nearest(
    x,
    segment,
    slots,
    joined,
    state_ptr,
    inverse_norm_ptr,
    first_token,
    ordinal,
    ROWS: tl.constexpr,
    FRAMES: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    SETTLES_TIES: tl.constexpr,
):
    """Store which anchor each of ROWS tokens of a segment joins in each of FRAMES anchor frames, and count them.

    All FRAMES share one product: its rows are tokens, its columns BLOCK_SLOTS anchors of each anchor frame. Values of
    shape `[ROWS * FRAMES]` hold one element for each pair of a token and an anchor frame.
    """
    tokens = (segment.end - segment.start) * x.N
    # Rows beyond the segment read its last token, and slots beyond the anchors read token 0 of their frame. So loads
    # need no mask for them, and their results are not stored.
    row = tl.minimum(first_token + tl.arange(0, ROWS), tokens - 1)
    x_rows = rows_of(x, segment.start + row // x.N, row % x.N)
    column = tl.arange(0, FRAMES * BLOCK_SLOTS)
    column_ordinal = ordinal + column // BLOCK_SLOTS
    column_frame = anchor_frame(segment, column_ordinal)
    column_anchors = anchors_of(segment, column_ordinal)
    # This fits 32 bits: 2**20 frames of at most 1,024 slots.
    column_slots = column_frame * slots.per_frame

    pair = tl.arange(0, ROWS * FRAMES)
    best = tl.full([ROWS * FRAMES], float("-inf"), tl.float32)
    runner_up = best
    nearest = tl.zeros([ROWS * FRAMES], tl.int32)
    for first_slot in range(0, anchors_of(segment, ordinal), BLOCK_SLOTS):
        column_slot = first_slot + column % BLOCK_SLOTS
        exists = column_slot < column_anchors
        anchor = tl.load(slots.anchor_ptr + (column_slots + column_slot), mask=exists, other=0)
        y_rows = rows_of(x, column_frame, anchor)
        similarity = tl.zeros([ROWS, FRAMES * BLOCK_SLOTS], tl.float32)
        for first in range(0, x.D, BLOCK_D):
            channel = first + tl.arange(0, BLOCK_D)
            offset = channel.to(tl.int64) * x.stride_d
            inside = channel < x.D
            token_tile = tl.load(x_rows[:, None] + offset[None, :], mask=inside[None, :], other=0.0)
            anchor_tile = tl.load(y_rows[None, :] + offset[:, None], mask=inside[:, None], other=0.0)
            similarity = product(token_tile, anchor_tile, similarity, PRECISION, UPCAST)
        slot = first_slot + tl.arange(0, BLOCK_SLOTS)
        frame_ordinal = ordinal + tl.arange(0, FRAMES)
        frame_slots = anchor_frame(segment, frame_ordinal) * slots.per_frame + first_slot
        frame_anchors = anchors_of(segment, frame_ordinal)
        inverse_norm = tl.load(
            inverse_norm_ptr + (frame_slots[:, None] + tl.arange(0, BLOCK_SLOTS)[None, :]),
            mask=slot[None, :] < frame_anchors[:, None], other=float("nan"),
        )  # fmt: skip
        similarity *= tl.reshape(inverse_norm, [FRAMES * BLOCK_SLOTS])[None, :]
        usable = similarity == similarity
        similarity = tl.where(usable, similarity, float("-inf"))
        similarity = tl.reshape(similarity, [ROWS * FRAMES, BLOCK_SLOTS])
        block_best = tl.max(similarity, axis=1)
        first_best = first_of(similarity, slot, slots.per_frame)
        if SETTLES_TIES:
            others = tl.where(slot[None, :] == first_best[:, None], float("-inf"), similarity)
            runner_up = tl.maximum(runner_up, tl.maximum(tl.max(others, axis=1), tl.minimum(best, block_best)))
        # Strictly better: ties, and tokens whose similarities are all -inf, keep the first anchor.
        better = block_best > best
        nearest = tl.where(better, first_best, nearest)
        best = tl.where(better, block_best, best)

    position = first_token + pair // FRAMES
    exists = position < tokens
    token = tl.minimum(position, tokens - 1)
    t = segment.start + token // x.N
    i = token % x.N
    pair_ordinal = ordinal + pair % FRAMES
    u = anchor_frame(segment, pair_ordinal)
    state = tl.load(state_ptr + t.to(tl.int64) * joined.row_vectors * ROW_VECTOR + i)
    joins = exists & tl.where(t == u, state == FREE, state != SALIENT)
    joins = joins & (anchors_of(segment, pair_ordinal) > 0)
    frame_slots = u * slots.per_frame
    if SETTLES_TIES:
        is_tied = has_close_rival(best, runner_up) & joins
        nearest = settle_ties(
            nearest, is_tied, pair, first_token, ordinal, x, segment, slots, FRAMES, BLOCK_SLOTS, BLOCK_D
        )
    nearest = tl.where(joins, nearest, -1)
    # Whole vectors are read: the last one is filled up with -1.
    is_read = position < tl.cdiv(tokens, ROW_VECTOR) * ROW_VECTOR
    cell = cell_of(joined, segment.start, segment.end, pair_ordinal)
    tl.store(joined.nearest_ptr + cell + position, nearest.to(tl.int16), mask=is_read)
    one = tl.full([ROWS * FRAMES], 1, tl.int32)
    tl.atomic_add(slots.count_ptr + frame_slots + nearest, one, mask=joins, sem="relaxed")


@triton.jit(
    do_not_specialize=[*BUDGET_ARGUMENTS, "row_vectors", "slots_per_frame", "first_ordinal", "ordinals", "tiles"]
)
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
    tiles,
    LANES: tl.constexpr,
    row_vectors,
    slots_per_frame,
    ROWS: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    GROUP_D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    SETTLES_TIES: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Slot of the most similar anchor, -1 for a token that joins none, for a tile of a segment's tokens.

    The tokens of a segment are tiled as a whole; `tiles` tiles per frame are enough for that. A program handles every
    LANES-th group of its segment's anchor frames, counted from the last, and its share of those left over.
    """
    wait_for_earlier_launches(OVERLAPS)
    lane = tl.program_id(0) % LANES
    t = tl.program_id(0) // LANES
    start = tl.load(segment_start_ptr + t)
    end = tl.load(segment_end_ptr + t)
    tile = (t - start) * tiles + tl.program_id(1)
    tokens = (end - start) * N
    anchor_frames, share, rest = context_shares(start, end, N, K, context_millionths, interval)
    ordinals_here = tl.minimum(anchor_frames - first_ordinal, ordinals)
    groups = ordinals_here // GROUP
    fewer = fewer_from(share, rest, first_ordinal, BLOCK_SLOTS)
    x = Tokens(x_ptr, stride_t, stride_n, stride_d, N, D)
    segment = Segment(start, end, interval, share, rest)
    slots = Slots(anchor_ptr, count_ptr, slots_per_frame)
    joined = Joined(nearest_ptr, first_ordinal, ordinals, row_vectors)
    if tile * GROUP_ROWS < tokens:
        for group in range(lane, groups, LANES):
            if goes_together(group * GROUP, fewer, GROUP):
                _join_nearest(
                    x, segment, slots, joined, state_ptr, inverse_norm_ptr,
                    tile * GROUP_ROWS, first_ordinal + group * GROUP,
                    GROUP_ROWS, GROUP, BLOCK_SLOTS, GROUP_D, PRECISION, UPCAST, SETTLES_TIES,
                )  # fmt: skip
    if tile * ROWS < tokens:
        grouped = groups * GROUP
        has_pair = ordinals_here - grouped >= PAIR
        pairs = (has_pair & goes_together(grouped, fewer, PAIR)).to(tl.int32)
        # Lanes take work in turn: the pair goes to the lane after that of the last group.
        if (pairs > 0) & (groups % LANES == lane):
            _join_nearest(
                x, segment, slots, joined, state_ptr, inverse_norm_ptr, tile * ROWS, first_ordinal + grouped,
                ROWS, PAIR, BLOCK_SLOTS, BLOCK_D, PRECISION, UPCAST, SETTLES_TIES,
            )  # fmt: skip
        # One at a time: the anchor frames of the group that cannot share a pass, if there is one, and those left over.
        first_apart = tl.minimum(fewer // GROUP * GROUP, grouped)
        apart = tl.where((first_apart < grouped) & (fewer % GROUP != 0), GROUP, 0)
        first_left = grouped + pairs * PAIR
        alone = apart + ordinals_here - first_left
        for one in range((lane + LANES - (groups + pairs) % LANES) % LANES, alone, LANES):
            _join_nearest(
                x, segment, slots, joined, state_ptr, inverse_norm_ptr,
                tile * ROWS, first_ordinal + one + tl.where(one < apart, first_apart, first_left - apart),
                ROWS, 1, BLOCK_SLOTS, BLOCK_D, PRECISION, UPCAST, SETTLES_TIES,
            )  # fmt: skip


def assign_step(request: Request, shapes: Shapes, first_ordinal: int) -> Step:
    """Grid: frames * lanes (lanes fastest, so that programs on the same tokens run side by side) x tiles of tokens."""
    # float32 takes smaller tiles: its three TF32 products and the ties leave fewer registers.
    is_single = request.dtype == torch.float32
    tiles = -(-shapes.tokens_per_frame // _ROWS)
    block_d = request.depth if is_single else 2 * request.depth
    tile_bytes = (_ROWS + 2 * BLOCK_SLOTS) * block_d * request.dtype.itemsize
    return Step(
        assign_kernel,
        grid=(shapes.frames * _LANES, tiles),
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
            "tiles": tiles,
            "LANES": _LANES,
            "row_vectors": shapes.row_vectors,
            "slots_per_frame": shapes.slots,
            "ROWS": _ROWS,
            "GROUP_ROWS": _ROWS if is_single else 2 * _ROWS,
            "GROUP": GROUP,
            "BLOCK_SLOTS": BLOCK_SLOTS,
            "GROUP_D": request.depth // 2 if is_single else request.depth,
            "BLOCK_D": block_d,
            "num_stages": request.stages(tile_bytes, blocks=1, most=4),
            # In half precision, rounding of the tokens themselves has lost more than float32 sums lose.
            "SETTLES_TIES": is_single,
            **request.strides,
            **budget_arguments(request, shapes),
            **request.arithmetic,
            **OPTIONS,
            "num_warps": _WARPS,
        },
    )
