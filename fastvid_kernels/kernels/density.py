"""Launch 4: s of every candidate, whose density is exp(-s) (Eq. 3; SPEC section 4)."""

from __future__ import annotations

import triton
import triton.language as tl

from fastvid_kernels.kernels.gram import frame_and_tile, squared_distances
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


@triton.jit(do_not_specialize=[*BUDGET_ARGUMENTS, "row_vectors", "first_frame", "num_neighbors"])
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
    row_vectors,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Mean of the `num_neighbors` smallest squared distances, divided by D, for ROWS tokens of an anchor frame."""
    wait_for_earlier_launches(OVERLAPS)
    padded = row_vectors * ROW_VECTOR
    frame_of_chunk, tile = frame_and_tile(tl.cdiv(N, ROWS))
    t = first_frame + frame_of_chunk
    n_salient, n_context, _, _ = frame_budget(t, segment_start_ptr, segment_end_ptr, N, K, context_millionths, interval)
    if n_context == 0:
        return
    i = tile * ROWS + tl.arange(0, ROWS)
    j = tl.arange(0, BLOCK_N)
    matrix_ptr = gram_ptr + frame_of_chunk.to(tl.int64) * SPLITS * padded * padded
    rank = tl.load(rank_ptr + t.to(tl.int64) * padded + j, mask=j < padded, other=0)
    is_candidate = tl.where(j < N, rank, -1) >= n_salient
    distance = squared_distances(matrix_ptr, i, j, N, padded, SPLITS)
    distance = tl.where(is_candidate[None, :], distance, float("inf"))
    neighbors = tl.minimum(num_neighbors, N - n_salient)
    total = tl.zeros([ROWS], tl.float32)
    for _ in range(0, neighbors):
        nearest = tl.min(distance, axis=1)
        first = tl.min(tl.where(distance == nearest[:, None], j[None, :], BLOCK_N), axis=1)
        distance = tl.where(j[None, :] == first[:, None], float("inf"), distance)
        total += nearest
    s = tl.div_rn(total, (neighbors * D).to(tl.float32))
    tl.store(s_ptr + t.to(tl.int64) * padded + i, s, mask=i < N)


def density_step(request: Request, shapes: Shapes, first_frame: int, frames: int) -> Step:
    """Grid: frames * tiles of tokens."""
    return Step(
        density_kernel,
        grid=(frames * -(-shapes.tokens_per_frame // shapes.candidate_rows),),
        arrays={"gram_ptr": "gram", "rank_ptr": "rank", "s_ptr": "s", **SEGMENT_ARRAYS},
        constants={
            "first_frame": first_frame,
            "D": shapes.channels,
            "num_neighbors": min(request.config.num_neighbors, shapes.tokens_per_frame),
            "row_vectors": shapes.row_vectors,
            "SPLITS": shapes.gram_splits,
            "ROWS": shapes.candidate_rows,
            "BLOCK_N": shapes.block_n,
            **budget_arguments(request, shapes),
            **OPTIONS,
        },
    )
