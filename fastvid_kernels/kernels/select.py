"""Launch 6: which tokens of each frame are kept, and where they go in the output (SPEC sections 3, 4 and 6)."""

from __future__ import annotations

import triton
import triton.language as tl

from fastvid_kernels.kernels.frame import comes_before
from fastvid_kernels.kernels.gram import squared_norms
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
from fastvid_kernels.kernels.plan import frame_budget

# Values of a token's `state`; that of an anchor is its slot + 1.
FREE = tl.constexpr(0)
SALIENT = tl.constexpr(-1)


@triton.jit(do_not_specialize=[*BUDGET_ARGUMENTS, "row_vectors", "slots_per_frame", "first_frame"])
def select_kernel(
    gram_ptr,
    rank_ptr,
    key_ptr,
    state_ptr,
    anchor_ptr,
    anchor_row_ptr,
    inverse_norm_ptr,
    count_ptr,
    indices_ptr,
    segment_start_ptr,
    segment_end_ptr,
    first_frame,
    N,
    K,
    context_millionths,
    interval,
    row_vectors,
    SPLITS: tl.constexpr,
    slots_per_frame,
    BLOCK_N: tl.constexpr,
    COLUMNS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Select the `n_salient` tokens with the largest attention, and the `n_context` candidates with the best score."""
    wait_for_earlier_launches(OVERLAPS)
    padded = row_vectors * ROW_VECTOR
    t = first_frame + tl.program_id(0)
    n_salient, n_context, _, rows_before = frame_budget(
        t, segment_start_ptr, segment_end_ptr, N, K, context_millionths, interval
    )
    frame = t.to(tl.int64) * padded
    i = tl.arange(0, BLOCK_N)
    # Rows are read whole, in vectors: values beyond the frame change nothing.
    attention_rank = tl.load(rank_ptr + frame + i, mask=i < padded, other=0)
    is_salient = tl.where(i < N, attention_rank, BLOCK_N) < n_salient
    is_anchor = i < 0
    if n_context > 0:
        key = tl.where(i < N, tl.load(key_ptr + frame + i, mask=i < padded, other=0), 0)
        # Counted by column, and added up at last: to add up takes longer than to compare.
        ahead = tl.zeros([BLOCK_N, COLUMNS], tl.int32)
        for first in range(0, N, COLUMNS):
            j = first + tl.arange(0, COLUMNS)
            other_key = tl.where(j < N, tl.load(key_ptr + frame + j, mask=j < padded, other=0), 0)
            before = comes_before(other_key, j, key, i) & (j < N)[None, :]
            ahead += before.to(tl.int32)
        rank = tl.sum(ahead, axis=1)
        is_anchor = (rank < n_context) & (i < N)
    kept = is_salient | is_anchor
    row = tl.cumsum(kept.to(tl.int32), axis=0) - 1
    slot = tl.cumsum(is_anchor.to(tl.int32), axis=0) - 1
    state = tl.where(is_salient, SALIENT, tl.where(is_anchor, slot + 1, FREE))
    tl.store(state_ptr + frame + i, state.to(tl.int16), mask=i < padded)
    tl.store(indices_ptr + rows_before + row, t.to(tl.int64) * N + i, mask=kept)

    slots = t.to(tl.int64) * slots_per_frame
    tl.store(anchor_ptr + slots + slot, i, mask=is_anchor)
    tl.store(anchor_row_ptr + slots + slot, row, mask=is_anchor)
    if n_context > 0:
        matrix_ptr = gram_ptr + tl.program_id(0).to(tl.int64) * SPLITS * padded * padded
        # Not the approximate root: it takes a subnormal square for 0, and then all tokens join the first anchor.
        norm = tl.sqrt_rn(squared_norms(matrix_ptr, i, N, padded, SPLITS))
        inverse_norm = tl.where(norm == 0, 0.0, tl.div_rn(1.0, norm))
        tl.store(inverse_norm_ptr + slots + slot, inverse_norm, mask=is_anchor)
        tl.store(count_ptr + slots + slot, tl.zeros_like(slot), mask=is_anchor)


def select_step(request: Request, shapes: Shapes, first_frame: int, frames: int) -> Step:
    """Grid: frames."""
    return Step(
        select_kernel,
        grid=(frames,),
        arrays={
            "gram_ptr": "gram",
            "rank_ptr": "rank",
            "key_ptr": "key",
            "state_ptr": "state",
            "anchor_ptr": "anchor",
            "anchor_row_ptr": "anchor_row",
            "inverse_norm_ptr": "inverse_norm",
            "count_ptr": "count",
            "indices_ptr": "indices",
            **SEGMENT_ARRAYS,
        },
        constants={
            "first_frame": first_frame,
            "row_vectors": shapes.row_vectors,
            "SPLITS": shapes.gram_splits,
            "slots_per_frame": shapes.slots,
            "BLOCK_N": shapes.block_n,
            "COLUMNS": 2 * shapes.candidate_rows,
            **budget_arguments(request, shapes),
            **OPTIONS,
            "num_warps": 8,
        },
    )
