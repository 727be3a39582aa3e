"""Launch 5: log(density * delta) of every candidate, as an integer that sorts the same (Eq. 4; SPEC section 4)."""

from __future__ import annotations

import triton
import triton.language as tl

from fastvid_kernels.kernels.floats import LOWEST_KEY, float_key
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


@triton.jit(do_not_specialize=[*BUDGET_ARGUMENTS, "row_vectors", "first_frame"])
def delta_kernel(
    gram_ptr,
    rank_ptr,
    s_ptr,
    key_ptr,
    segment_start_ptr,
    segment_end_ptr,
    first_frame,
    N,
    inverse_d,
    K,
    context_millionths,
    interval,
    row_vectors,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Score of ROWS tokens of an anchor frame, from the squared distance to the nearest denser candidate.

    For the densest candidate this distance is +inf, where SPEC takes the largest in the frame. The selection is the
    same: any other delta is at most the distance to the densest, so with either value the densest ranks first.
    """
    wait_for_earlier_launches(OVERLAPS)
    padded = row_vectors * ROW_VECTOR
    frame_of_chunk, tile = frame_and_tile(tl.cdiv(N, ROWS))
    t = first_frame + frame_of_chunk
    n_salient, n_context, _, _ = frame_budget(t, segment_start_ptr, segment_end_ptr, N, K, context_millionths, interval)
    if n_context == 0:
        return
    i = tile * ROWS + tl.arange(0, ROWS)
    j = tl.arange(0, BLOCK_N)
    frame = t.to(tl.int64) * padded
    matrix_ptr = gram_ptr + frame_of_chunk.to(tl.int64) * SPLITS * padded * padded
    distance = squared_distances(matrix_ptr, i, j, N, padded, SPLITS)
    is_candidate_i = tl.load(rank_ptr + frame + i, mask=i < N, other=0) >= n_salient
    is_candidate_j = tl.load(rank_ptr + frame + j, mask=j < N, other=0) >= n_salient
    s_i = tl.load(s_ptr + frame + i, mask=i < N, other=0.0)
    s_j = tl.load(s_ptr + frame + j, mask=j < N, other=0.0)
    # Equal tokens must be equally dense. Their s may differ: a float32 product made of TF32 ones is not symmetric.
    is_tie = (s_j[None, :] == s_i[:, None]) | (distance == 0)
    denser = tl.where(is_tie, j[None, :] < i[:, None], s_j[None, :] < s_i[:, None])
    denser = denser & (is_candidate_j & (j < N))[None, :]
    squared_delta = tl.min(tl.where(denser, distance, float("inf")), axis=1)
    score = 0.5 * tl.log(squared_delta * tl.full([], inverse_d, tl.float32)) - s_i
    score = tl.where(score == score, score, float("-inf"))
    key = tl.where(is_candidate_i, float_key(score), LOWEST_KEY)
    tl.store(key_ptr + frame + i, key, mask=i < N)


def delta_step(request: Request, shapes: Shapes, first_frame: int, frames: int) -> Step:
    """Grid: frames * tiles of tokens."""
    return Step(
        delta_kernel,
        grid=(frames * -(-shapes.tokens_per_frame // shapes.candidate_rows),),
        arrays={"gram_ptr": "gram", "rank_ptr": "rank", "s_ptr": "s", "key_ptr": "key", **SEGMENT_ARRAYS},
        constants={
            "first_frame": first_frame,
            "inverse_d": 1.0 / shapes.channels,
            "row_vectors": shapes.row_vectors,
            "SPLITS": shapes.gram_splits,
            "ROWS": shapes.candidate_rows,
            "BLOCK_N": shapes.block_n,
            **budget_arguments(request, shapes),
            **OPTIONS,
        },
    )
