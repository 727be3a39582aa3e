"""Launch 3: inner products of the tokens of each anchor frame, from which distances follow (SPEC section 4)."""

from __future__ import annotations

import triton
import triton.language as tl

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

_BLOCK = 64


@triton.jit
def frame_and_tile(tiles):
    """The frame of this program, and which of the frame's tiles it handles.

    Tiles follow one another. Most frames have no work, and those that have it lie `anchor_interval` apart: if frames
    followed one another, a multiprocessor could get only frames with work, and its neighbour none.
    """
    return tl.program_id(0) // tiles, tl.program_id(0) % tiles


@triton.jit
def product(x, y, accumulator, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """`accumulator + x @ y`, summed in float32; UPCAST is for the interpreter, which cannot multiply bfloat16."""
    if UPCAST:
        x = x.to(tl.float32)
        y = y.to(tl.float32)
    return tl.dot(x, y, accumulator, input_precision=PRECISION)


@triton.jit(do_not_specialize=[*BUDGET_ARGUMENTS, "row_vectors", "first_frame"])
def gram_kernel(
    x_ptr,
    gram_ptr,
    segment_start_ptr,
    segment_end_ptr,
    stride_t,
    stride_n,
    stride_d,
    first_frame,
    N,
    D,
    K,
    context_millionths,
    interval,
    row_vectors,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """One tile on or above the diagonal, over one of SPLITS ranges of channels; stored with its mirror image."""
    wait_for_earlier_launches(OVERLAPS)
    padded = row_vectors * ROW_VECTOR
    in_row = tl.cdiv(N, BLOCK)
    frame, tile = frame_and_tile(in_row * (in_row + 1) // 2 * SPLITS)
    t = first_frame + frame
    _, n_context, _, _ = frame_budget(t, segment_start_ptr, segment_end_ptr, N, K, context_millionths, interval)
    if n_context == 0:
        return
    split = tile % SPLITS
    tile = tile // SPLITS
    row = 0
    while tile >= in_row:
        tile -= in_row
        in_row -= 1
        row += 1
    i = row * BLOCK + tl.arange(0, BLOCK)
    j = (row + tile) * BLOCK + tl.arange(0, BLOCK)
    frame_ptr = x_ptr + t.to(tl.int64) * stride_t
    # Rows beyond the frame read its last token, so that loads need no mask for them; their products are never used.
    i_ptr = frame_ptr + tl.minimum(i, N - 1).to(tl.int64) * stride_n
    j_ptr = frame_ptr + tl.minimum(j, N - 1).to(tl.int64) * stride_n
    accumulator = tl.zeros([BLOCK, BLOCK], tl.float32)
    range_length = tl.cdiv(tl.cdiv(D, SPLITS), BLOCK_D) * BLOCK_D
    range_end = tl.minimum(D, (split + 1) * range_length)
    # On the diagonal, rows are multiplied by themselves: they are asked for once. Not in float32, where the parts of a
    # product take so many registers that a multiprocessor of sm_89 would hold a block less.
    if (tile == 0) & (PRECISION == "ieee"):
        for first in range(split * range_length, range_end, BLOCK_D):
            channel = first + tl.arange(0, BLOCK_D)
            offset = channel.to(tl.int64) * stride_d
            x = tl.load(i_ptr[:, None] + offset[None, :], mask=(channel < range_end)[None, :], other=0.0)
            accumulator = product(x, tl.trans(x), accumulator, PRECISION, UPCAST)
    else:
        for first in range(split * range_length, range_end, BLOCK_D):
            channel = first + tl.arange(0, BLOCK_D)
            offset = channel.to(tl.int64) * stride_d
            x = tl.load(i_ptr[:, None] + offset[None, :], mask=(channel < range_end)[None, :], other=0.0)
            y = tl.load(j_ptr[None, :] + offset[:, None], mask=(channel < range_end)[:, None], other=0.0)
            accumulator = product(x, y, accumulator, PRECISION, UPCAST)
    matrix_ptr = gram_ptr + (frame.to(tl.int64) * SPLITS + split) * padded * padded
    # Rows are stored up to `padded`, which the compiler knows to be whole vectors; columns beyond N are never used.
    mask = (i < N)[:, None] & (j < padded)[None, :]
    tl.store(matrix_ptr + i[:, None] * padded + j[None, :], accumulator, mask=mask)
    if tile > 0:
        mask = (j < N)[:, None] & (i < padded)[None, :]
        tl.store(matrix_ptr + j[:, None] * padded + i[None, :], tl.trans(accumulator), mask=mask)


@triton.jit
def squared_norms(matrix_ptr, token, N, padded, SPLITS: tl.constexpr):
    """The diagonal of a frame's Gram matrix."""
    norm = tl.zeros_like(token).to(tl.float32)
    for split in tl.static_range(SPLITS):
        norm += tl.load(matrix_ptr + split * padded * padded + token * (padded + 1), mask=token < N, other=0.0)
    return norm


@triton.jit
def squared_distances(matrix_ptr, i, j, N, padded, SPLITS: tl.constexpr):
    """`|x_i - x_j|^2`, `[I, J]` float32: +inf where NaN or infinite, 0 between equal finite tokens.

    Norms come from the same products as the rest, so that equal tokens cancel exactly. Values beyond N are arbitrary.
    """
    mask = (i < N)[:, None] & (j < padded)[None, :]
    inner = tl.zeros([i.shape[0], j.shape[0]], tl.float32)
    for split in tl.static_range(SPLITS):
        offset = split * padded * padded + i[:, None] * padded + j[None, :]
        inner += tl.load(matrix_ptr + offset, mask=mask, other=0.0)
    norm_i = squared_norms(matrix_ptr, i, N, padded, SPLITS)
    norm_j = squared_norms(matrix_ptr, j, N, padded, SPLITS)
    distance = norm_i[:, None] + norm_j[None, :] - 2.0 * inner
    # A comparison, not a maximum: the hardware's maximum of NaN and 0 is 0, the distance of equal tokens.
    return tl.where(distance == distance, tl.where(distance > 0, distance, 0.0), float("inf"))


def gram_step(request: Request, shapes: Shapes, first_frame: int, frames: int) -> Step:
    """Grid: frames * tiles on or above the diagonal * splits of the channels."""
    tiles = -(-shapes.tokens_per_frame // _BLOCK)
    tile_bytes = 2 * _BLOCK * request.depth * request.dtype.itemsize
    return Step(
        gram_kernel,
        grid=(frames * (tiles * (tiles + 1) // 2) * shapes.gram_splits,),
        arrays={"x_ptr": "tokens", "gram_ptr": "gram", **SEGMENT_ARRAYS},
        constants={
            "first_frame": first_frame,
            "D": shapes.channels,
            "row_vectors": shapes.row_vectors,
            "SPLITS": shapes.gram_splits,
            "BLOCK": _BLOCK,
            "BLOCK_D": request.depth,
            "num_stages": request.stages(tile_bytes, blocks=2, most=5),
            **request.strides,
            **budget_arguments(request, shapes),
            **request.arithmetic,
            **OPTIONS,
        },
    )
