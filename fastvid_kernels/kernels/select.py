"""Launch 6: which tokens of each frame are kept, and where they go in the output (SPEC sections 3, 4 and 6)."""

from __future__ import annotations

import triton
import triton.language as tl

from fastvid_kernels.kernels.frame import comes_before
from fastvid_kernels.kernels.gram import squared_norms
from fastvid_kernels.kernels.launch import OPTIONS, Call
from fastvid_kernels.kernels.plan import segment_budget

# What `state` says of a token; an anchor's is its slot + 1.
FREE = tl.constexpr(0)
SALIENT = tl.constexpr(-1)


@triton.jit
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
    PADDED: tl.constexpr,
    SPLITS: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The `n_salient` tokens first by attention, and the `n_context` candidates first by score."""
    t = first_frame + tl.program_id(0)
    start = tl.load(segment_start_ptr + t)
    end = tl.load(segment_end_ptr + t)
    n_salient, n_context, _, rows_before = segment_budget(t, start, end, N, K, context_millionths, interval)
    frame = t.to(tl.int64) * PADDED
    i = tl.arange(0, BLOCK_N)
    is_salient = tl.load(rank_ptr + frame + i, mask=i < N, other=BLOCK_N) < n_salient
    is_anchor = i < 0
    if n_context > 0:
        key = tl.load(key_ptr + frame + i, mask=i < N, other=0)
        rank = tl.zeros([BLOCK_N], tl.int32)
        for first in range(0, N, COLUMNS):
            j = first + tl.arange(0, COLUMNS)
            other_key = tl.load(key_ptr + frame + j, mask=j < N, other=0)
            before = comes_before(other_key, j, key, i) & (j < N)[None, :]
            rank += tl.sum(before.to(tl.int32), axis=1)
        is_anchor = (rank < n_context) & (i < N)
    kept = is_salient | is_anchor
    row = tl.cumsum(kept.to(tl.int32), axis=0) - 1
    slot = tl.cumsum(is_anchor.to(tl.int32), axis=0) - 1
    state = tl.where(is_salient, SALIENT, tl.where(is_anchor, slot + 1, FREE))
    tl.store(state_ptr + frame + i, state.to(tl.int16), mask=i < N)
    tl.store(indices_ptr + rows_before + row, t.to(tl.int64) * N + i, mask=kept)

    slots = t.to(tl.int64) * SLOTS
    tl.store(anchor_ptr + slots + slot, i, mask=is_anchor)
    tl.store(anchor_row_ptr + slots + slot, row, mask=is_anchor)
    if n_context > 0:
        matrix_ptr = gram_ptr + tl.program_id(0).to(tl.int64) * SPLITS * PADDED * PADDED
        # Not the fast root: it takes the square of a subnormal norm for 0, and everything joins the first anchor.
        norm = tl.sqrt_rn(squared_norms(matrix_ptr, i, N, PADDED, SPLITS))
        inverse_norm = tl.where(norm == 0, 0.0, tl.div_rn(1.0, norm))
        tl.store(inverse_norm_ptr + slots + slot, inverse_norm, mask=is_anchor)
        tl.store(count_ptr + slots + slot, tl.zeros_like(slot), mask=is_anchor)


def launch_select(call: Call, first_frame: int, frames: int) -> None:
    """Grid: frames."""
    shapes, workspace = call.shapes, call.workspace
    select_kernel[(frames,)](
        gram_ptr=workspace["gram"],
        rank_ptr=workspace["rank"],
        key_ptr=workspace["key"],
        state_ptr=workspace["state"],
        anchor_ptr=workspace["anchor"],
        anchor_row_ptr=workspace["anchor_row"],
        inverse_norm_ptr=workspace["inverse_norm"],
        count_ptr=workspace["count"],
        indices_ptr=call.indices,
        first_frame=first_frame,
        PADDED=shapes.padded,
        SPLITS=shapes.gram_splits,
        SLOTS=shapes.slots,
        BLOCK_N=shapes.block_n,
        COLUMNS=shapes.candidate_rows,
        **OPTIONS,
        **call.plan,
    )
