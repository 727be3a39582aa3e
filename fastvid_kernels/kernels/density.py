"""Launch 4: s of every candidate, whose density is exp(-s) (Eq. 3; SPEC section 4)."""

from __future__ import annotations

import triton
import triton.language as tl

from fastvid_kernels.kernels.gram import squared_distances
from fastvid_kernels.kernels.launch import OPTIONS, Call
from fastvid_kernels.kernels.plan import segment_budget


@triton.jit
def density_kernel(
    gram_ptr,
    rank_ptr,
    s_ptr,
    segment_start_ptr,
    segment_end_ptr,
    first_frame,
    N,
    D,
    K,
    context_millionths,
    interval,
    num_neighbors,
    PADDED: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Mean of the `num_neighbors` smallest squared distances, over D, for ROWS tokens of an anchor frame."""
    t = first_frame + tl.program_id(0)
    start = tl.load(segment_start_ptr + t)
    end = tl.load(segment_end_ptr + t)
    n_salient, n_context, _, _ = segment_budget(t, start, end, N, K, context_millionths, interval)
    if n_context == 0:
        return
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    j = tl.arange(0, BLOCK_N)
    matrix_ptr = gram_ptr + tl.program_id(0).to(tl.int64) * SPLITS * PADDED * PADDED
    is_candidate = tl.load(rank_ptr + t.to(tl.int64) * PADDED + j, mask=j < N, other=0) >= n_salient
    distance = squared_distances(matrix_ptr, i, j, N, PADDED, SPLITS)
    distance = tl.where((is_candidate & (j < N))[None, :], distance, float("inf"))
    neighbors = tl.minimum(num_neighbors, N - n_salient)
    total = tl.zeros([ROWS], tl.float32)
    for _ in range(0, neighbors):
        nearest = tl.min(distance, axis=1)
        first = tl.min(tl.where(distance == nearest[:, None], j[None, :], BLOCK_N), axis=1)
        distance = tl.where(j[None, :] == first[:, None], float("inf"), distance)
        total += nearest
    s = tl.div_rn(total, (neighbors * D).to(tl.float32))
    tl.store(s_ptr + t.to(tl.int64) * PADDED + i, s, mask=i < N)


def launch_density(call: Call, first_frame: int, frames: int) -> None:
    """Grid: frames x tiles of tokens."""
    shapes = call.shapes
    density_kernel[frames, -(-shapes.tokens_per_frame // shapes.candidate_rows)](
        gram_ptr=call.workspace["gram"],
        rank_ptr=call.workspace["rank"],
        s_ptr=call.workspace["s"],
        first_frame=first_frame,
        D=shapes.channels,
        num_neighbors=min(call.config.num_neighbors, shapes.tokens_per_frame),
        PADDED=shapes.padded,
        SPLITS=shapes.gram_splits,
        ROWS=shapes.candidate_rows,
        BLOCK_N=shapes.block_n,
        **OPTIONS,
        **call.plan,
    )
