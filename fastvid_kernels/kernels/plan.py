"""Launch 2: from transitions to segments (Eq. 2; SPEC section 1); and the budget of a frame (section 2)."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from fastvid_kernels.kernels.floats import is_finite
from fastvid_kernels.kernels.launch import OPTIONS, SEGMENT_ARRAYS, Request, Shapes, Step, next_power_of_2
from fastvid_kernels.kernels.limits import MAX_FRAMES
from fastvid_kernels.kernels.overlap import wait_for_earlier_launches

# A transition is packed as (quantised cosine + offset) << bits | position, so that one order compares both.
POSITION_BITS = tl.constexpr(MAX_FRAMES.bit_length() - 1)
# The offset leaves 0 for non-finite transitions: below every cosine, and below every tau, which is clamped to -2.
COSINE_OFFSET = (1 << 41) + 1
_OFFSET = tl.constexpr(COSINE_OFFSET)
_LARGEST = tl.constexpr((1 << 63) - 1)


@triton.jit
def _context(length, N, K, CONTEXT_MILLIONTHS, INTERVAL):
    """(context tokens, anchor frames) of a segment of `length` frames."""
    anchor_frames = (length + INTERVAL - 1) // INTERVAL
    # Token counts fit 32 bits (2**20 frames of 1,024 tokens); only their products with millionths need 64.
    context = (length.to(tl.int64) * K * CONTEXT_MILLIONTHS // 1000000).to(tl.int32)
    return tl.minimum(context, anchor_frames * (N - K)), anchor_frames


@triton.jit
def context_shares(start, end, N, K, CONTEXT_MILLIONTHS, INTERVAL):
    """(anchor frames, share, rest) of the segment [start, end).

    Each anchor frame has `share` anchors, and the last `rest` of them one more.
    """
    context, anchor_frames = _context(end - start, N, K, CONTEXT_MILLIONTHS, INTERVAL)
    return anchor_frames, context // anchor_frames, context % anchor_frames


@triton.jit
def segment_budget(frame, start, end, N, K, CONTEXT_MILLIONTHS, INTERVAL):
    """What a frame of the segment [start, end) keeps: (n_salient, n_context, anchor ordinal, rows before it).

    The ordinal counts anchor frames from the segment's last; rows are counted from the start of the output, in int64.
    """
    length = end - start
    position = frame - start
    context, anchor_frames = _context(length, N, K, CONTEXT_MILLIONTHS, INTERVAL)
    salient = length * K - context

    salient_share, salient_rest = salient // length, salient % length
    n_salient = salient_share + (position < salient_rest).to(tl.int32)
    salient_before = position.to(tl.int64) * salient_share + tl.minimum(position, salient_rest)

    context_share, context_rest = context // anchor_frames, context % anchor_frames
    to_last = length - 1 - position
    ordinal = to_last // INTERVAL
    is_anchor_frame = to_last % INTERVAL == 0
    n_context = tl.where(is_anchor_frame, context_share + (ordinal < context_rest).to(tl.int32), 0)
    # Earlier anchor frames have higher ordinals; a frame between two anchor frames has the ordinal of the later one.
    first_before = ordinal + 1
    further = (anchor_frames - first_before).to(tl.int64)
    context_before = further * context_share + tl.maximum(context_rest - first_before, 0)
    rows_before = start.to(tl.int64) * K + salient_before + context_before
    return n_salient, n_context, ordinal, rows_before


@triton.jit
def frame_budget(frame, segment_start_ptr, segment_end_ptr, N, K, CONTEXT_MILLIONTHS, INTERVAL):
    """`segment_budget` of a frame, in the segment that `plan_kernel` stored for it."""
    start = tl.load(segment_start_ptr + frame)
    end = tl.load(segment_end_ptr + frame)
    return segment_budget(frame, start, end, N, K, CONTEXT_MILLIONTHS, INTERVAL)


@triton.jit
def _video_bound(cu_frames_ptr, video, T, BLOCK: tl.constexpr):
    """`cu_frames[video]`, clamped between its predecessors and T."""
    bound = 0
    for first in range(0, video + 1, BLOCK):
        entry = first + tl.arange(0, BLOCK)
        start = tl.load(cu_frames_ptr + entry, mask=entry <= video, other=0)
        bound = tl.maximum(bound, tl.max(tl.minimum(start, T), axis=0))
    return bound


@triton.jit
def _packed_transitions(partial_ptr, start, position, exists, SPLITS: tl.constexpr, BLOCK_SPLITS: tl.constexpr):
    """Transitions after the frames `start + position`, packed; their values are meaningless where none `exists`."""
    split = tl.arange(0, BLOCK_SPLITS)
    cell = ((start + position)[:, None] * SPLITS + split[None, :]) * 3
    mask = exists[:, None] & (split < SPLITS)[None, :]
    dot = tl.sum(tl.load(partial_ptr + cell, mask=mask, other=0.0), axis=1)
    norm = tl.sum(tl.load(partial_ptr + cell + 1, mask=mask, other=0.0), axis=1)
    next_norm = tl.sum(tl.load(partial_ptr + cell + 2, mask=mask, other=0.0), axis=1)
    scale = norm * next_norm
    usable = is_finite(dot) & is_finite(scale)
    divisible = usable & (scale > 0)
    cosine = tl.where(divisible, dot, 0.0) / tl.sqrt(tl.where(divisible, scale, 1.0))
    units = tl.floor(cosine * 1099511627776.0 + 0.5).to(tl.int64) + _OFFSET
    return (tl.where(usable, units, 0) << POSITION_BITS) | position


@triton.jit
def _larger(one, other):
    return tl.maximum(one, other)


@triton.jit
def _smaller(one, other):
    return tl.minimum(one, other)


@triton.jit
def _cut_short_video(
    partial_ptr,
    segment_start_ptr,
    segment_end_ptr,
    start,
    end,
    min_segments,
    threshold,
    SPLITS: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    SHORT: tl.constexpr,
):
    """Cut a video of at most SHORT frames in registers: nothing is stored to be loaded again."""
    position = tl.arange(0, SHORT)
    is_transition = position < end - start - 1
    packed = _packed_transitions(partial_ptr, start, position, is_transition, SPLITS, BLOCK_SPLITS)
    packed = tl.where(is_transition, packed, _LARGEST)
    # The largest of the `min_segments - 1` smallest, or -1, which no transition reaches.
    last = tl.max(tl.where(position < min_segments - 1, tl.sort(packed), -1), axis=0)
    is_cut = is_transition & ((packed <= last) | ((packed >> POSITION_BITS) < threshold))
    frame = start + position
    next_start = tl.associative_scan(tl.where(is_cut, frame + 1, start), 0, _larger)
    segment_end = tl.associative_scan(tl.where(is_cut, frame + 1, end), 0, _smaller, reverse=True)
    tl.store(segment_start_ptr + start, start, mask=start < end)
    tl.store(segment_start_ptr + frame + 1, next_start, mask=is_transition)
    tl.store(segment_end_ptr + frame, segment_end, mask=frame < end)


@triton.jit
def _cut_long_video(
    partial_ptr,
    packed_ptr,
    segment_first_ptr,
    segment_id_ptr,
    segment_start_ptr,
    segment_end_ptr,
    start,
    end,
    min_segments,
    threshold,
    SPLITS: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Cut a video of any length, BLOCK frames at a time, which are exchanged through memory."""
    transitions = end - start - 1
    for first in range(0, transitions, BLOCK):
        position = first + tl.arange(0, BLOCK)
        here = position < transitions
        packed = _packed_transitions(partial_ptr, start, position, here, SPLITS, BLOCK_SPLITS)
        tl.store(packed_ptr + start + position, packed, mask=here)
    tl.debug_barrier()

    # After r rounds, `last` is the r-th smallest packed transition.
    last = tl.full([], -1, tl.int64)
    for _ in range(0, tl.minimum(min_segments - 1, transitions)):
        smallest = tl.full([], _LARGEST, tl.int64)
        for first in range(0, transitions, BLOCK):
            position = first + tl.arange(0, BLOCK)
            packed = tl.load(packed_ptr + start + position, mask=position < transitions, other=_LARGEST)
            smallest = tl.minimum(smallest, tl.min(tl.where(packed > last, packed, _LARGEST), axis=0))
        last = smallest

    segments = 0
    for first in range(0, end - start, BLOCK):
        position = first + tl.arange(0, BLOCK)
        here = position < end - start
        packed = tl.load(packed_ptr + start + position - 1, mask=here & (position > 0), other=_LARGEST)
        is_cut = (packed <= last) | ((packed >> POSITION_BITS) < threshold)
        begins = here & ((position == 0) | is_cut)
        segment_id = segments + tl.cumsum(begins.to(tl.int32), axis=0) - 1
        tl.store(segment_id_ptr + start + position, segment_id, mask=here)
        tl.store(segment_first_ptr + start + segment_id, start + position, mask=begins)
        segments += tl.sum(begins.to(tl.int32), axis=0)
    tl.debug_barrier()

    for first in range(0, end - start, BLOCK):
        position = first + tl.arange(0, BLOCK)
        here = position < end - start
        segment_id = tl.load(segment_id_ptr + start + position, mask=here, other=0)
        segment_start = tl.load(segment_first_ptr + start + segment_id, mask=here, other=0)
        is_last = segment_id == segments - 1
        segment_end = tl.load(segment_first_ptr + start + segment_id + 1, mask=here & ~is_last, other=end)
        tl.store(segment_start_ptr + start + position, segment_start, mask=here)
        tl.store(segment_end_ptr + start + position, segment_end, mask=here)


@triton.jit(do_not_specialize=["T", "videos", "min_segments", "threshold"])
def plan_kernel(
    cu_frames_ptr,
    partial_ptr,
    packed_ptr,
    segment_first_ptr,
    segment_id_ptr,
    segment_start_ptr,
    segment_end_ptr,
    T,
    videos,
    min_segments,
    threshold,
    HAS_CU_FRAMES: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    SHORT: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Cut one video after its `min_segments - 1` least similar transitions and after those below tau."""
    wait_for_earlier_launches(OVERLAPS)
    video = tl.program_id(0)
    start = 0
    end = T
    if HAS_CU_FRAMES:
        if video > 0:
            start = _video_bound(cu_frames_ptr, video, T, BLOCK)
        if video < videos - 1:
            end = _video_bound(cu_frames_ptr, video + 1, T, BLOCK)
    # Both ways find the same cuts.
    if end - start <= SHORT:
        _cut_short_video(
            partial_ptr, segment_start_ptr, segment_end_ptr, start, end, min_segments, threshold,
            SPLITS, BLOCK_SPLITS, SHORT,
        )  # fmt: skip
    else:
        _cut_long_video(
            partial_ptr, packed_ptr, segment_first_ptr, segment_id_ptr, segment_start_ptr, segment_end_ptr, start, end,
            min_segments, threshold, SPLITS, BLOCK_SPLITS, BLOCK,
        )  # fmt: skip


def plan_step(request: Request, shapes: Shapes) -> Step:
    """Grid: videos."""
    is_batch, config = request.videos is not None, request.config
    videos = request.videos or 1
    return Step(
        plan_kernel,
        grid=(videos,),
        arrays={
            "cu_frames_ptr": "cu_frames" if is_batch else "segment_id",
            "partial_ptr": "partial",
            "packed_ptr": "packed",
            "segment_first_ptr": "segment_first",
            "segment_id_ptr": "segment_id",
            **SEGMENT_ARRAYS,
        },
        constants={
            "T": shapes.frames,
            "videos": videos,
            "min_segments": min(config.min_segments, shapes.frames),
            # No cosine reaches 2: the clamp changes no comparison.
            "threshold": math.floor(max(-2.0, min(2.0, config.tau)) * 2.0**40 + 0.5) + COSINE_OFFSET,
            "HAS_CU_FRAMES": is_batch,
            "SPLITS": shapes.feature_splits,
            "BLOCK_SPLITS": next_power_of_2(shapes.feature_splits),
            # A tile of all splits of 128 frames would leave too few registers for the rest.
            "SHORT": 64,
            "BLOCK": 128,
            **OPTIONS,
        },
    )
