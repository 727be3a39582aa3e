"""Launch 1: cosine of each frame to the next (Eq. 1; SPEC section 1) and order of its attention (section 3)."""

from __future__ import annotations

import triton
import triton.language as tl

from fastvid_kernels.kernels.floats import float_key
from fastvid_kernels.kernels.launch import OPTIONS, Request, Shapes, Step
from fastvid_kernels.kernels.overlap import wait_for_earlier_launches


@triton.jit
def comes_before(other_key, other, key, token):
    """Whether `other` ranks before `token`: [A] and [B] give [B, A]. Larger keys first, ties by index."""
    larger = other_key[None, :] > key[:, None]
    return larger | ((other_key[None, :] == key[:, None]) & (other[None, :] < token[:, None]))


@triton.jit
def _mean_token(frame_ptr, stride_n, stride_d, N, channel, mask, BLOCK_N: tl.constexpr):
    """Mean of a frame's tokens in some channels: summed in float64, rounded once to float32."""
    total = tl.zeros_like(channel).to(tl.float64)
    for first in range(0, N, BLOCK_N):
        token = (first + tl.arange(0, BLOCK_N)).to(tl.int64)
        x_mask = (token < N)[:, None] & mask[None, :]
        x = tl.load(frame_ptr + token[:, None] * stride_n + channel[None, :] * stride_d, mask=x_mask, other=0.0)
        total += tl.sum(x.to(tl.float32).to(tl.float64), axis=0)
    return (total / N).to(tl.float32)


@triton.jit(do_not_specialize=["stride_at", "T", "N", "stride_rank"])
def frame_kernel(
    feature_ptr,
    attn_ptr,
    partial_ptr,
    rank_ptr,
    stride_ft,
    stride_fn,
    stride_fd,
    stride_at,
    stride_an,
    T,
    N,
    CHANNELS,
    stride_rank,
    IS_MEAN: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Partial dot product and squared norms over every SPLITS-th block of channels; attention ranks of some tokens.

    `feature_ptr` holds features `[T, CHANNELS]`, or tokens `[T, N, CHANNELS]` whose mean is the feature.
    """
    wait_for_earlier_launches(OVERLAPS)
    t = tl.program_id(0)
    split = tl.program_id(1)
    has_next = t < T - 1
    frame_ptr = feature_ptr + t.to(tl.int64) * stride_ft
    next_ptr = frame_ptr + stride_ft * has_next.to(tl.int64)
    dot = tl.full([], 0.0, tl.float64)
    norm = tl.full([], 0.0, tl.float64)
    next_norm = tl.full([], 0.0, tl.float64)
    for first in range(split * BLOCK_D, CHANNELS, SPLITS * BLOCK_D):
        channel = (first + tl.arange(0, BLOCK_D)).to(tl.int64)
        mask = channel < CHANNELS
        if IS_MEAN:
            x = _mean_token(frame_ptr, stride_fn, stride_fd, N, channel, mask, BLOCK_N)
            y = _mean_token(next_ptr, stride_fn, stride_fd, N, channel, mask, BLOCK_N)
        else:
            x = tl.load(frame_ptr + channel * stride_fd, mask=mask, other=0.0)
            y = tl.load(next_ptr + channel * stride_fd, mask=mask, other=0.0)
        x = x.to(tl.float64)
        y = y.to(tl.float64)
        dot += tl.sum(x * y, axis=0)
        norm += tl.sum(x * x, axis=0)
        next_norm += tl.sum(y * y, axis=0)
    cell_ptr = partial_ptr + (t * SPLITS + split) * 3
    tl.store(cell_ptr, dot)
    tl.store(cell_ptr + 1, norm)
    tl.store(cell_ptr + 2, next_norm)

    attn_ptr += t.to(tl.int64) * stride_at
    for first in range(split * ROWS, N, SPLITS * ROWS):
        token = first + tl.arange(0, ROWS)
        key = float_key(tl.load(attn_ptr + token.to(tl.int64) * stride_an, mask=token < N, other=0.0).to(tl.float32))
        # Counted by column, and added up at last: to add up takes longer than to compare.
        ahead = tl.zeros([ROWS, BLOCK_N], tl.int32)
        for other_first in range(0, N, BLOCK_N):
            other = other_first + tl.arange(0, BLOCK_N)
            other_attn = tl.load(attn_ptr + other.to(tl.int64) * stride_an, mask=other < N, other=0.0)
            before = comes_before(float_key(other_attn.to(tl.float32)), other, key, token) & (other < N)[None, :]
            ahead += before.to(tl.int32)
        rank = tl.sum(ahead, axis=1)
        # Up to the end of the padded row, since rows are read whole: ranks beyond the frame change nothing.
        tl.store(rank_ptr + t.to(tl.int64) * stride_rank + token, rank.to(tl.int16), mask=token < stride_rank)


def frame_step(request: Request, shapes: Shapes) -> Step:
    """Grid: frames x splits of the feature's channels."""
    is_mean = request.feature_channels is None
    stride_ft, stride_fn, stride_fd = request.token_strides
    if not is_mean:
        stride_fn = 0
        stride_ft, stride_fd = request.feature_strides
    return Step(
        frame_kernel,
        grid=(shapes.frames, shapes.feature_splits),
        arrays={
            "feature_ptr": "tokens" if is_mean else "frame_features",
            "attn_ptr": "attn",
            "partial_ptr": "partial",
            "rank_ptr": "rank",
        },
        constants={
            "stride_ft": stride_ft,
            "stride_fn": stride_fn,
            "stride_fd": stride_fd,
            "stride_at": request.attn_strides[0],
            "stride_an": request.attn_strides[1],
            "T": shapes.frames,
            "N": shapes.tokens_per_frame,
            "CHANNELS": request.feature_channels or shapes.channels,
            "stride_rank": shapes.padded,
            "IS_MEAN": is_mean,
            "SPLITS": shapes.feature_splits,
            "BLOCK_D": 64,
            "BLOCK_N": 16,
            "ROWS": 16,
            **OPTIONS,
        },
    )
