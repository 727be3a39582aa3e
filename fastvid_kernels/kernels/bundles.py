"""Arguments that belong together, as tuples that the merging kernels pass to their functions."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fastvid_kernels.kernels.launch import ROW_VECTOR


class Tokens(NamedTuple):
    """The tokens `[F, N, D]`: pointer to the first, and strides in elements."""

    ptr: Any
    stride_t: Any
    stride_n: Any
    stride_d: Any
    N: Any
    D: Any


class Segment(NamedTuple):
    """Frames `[start, end)`, of which every `interval`-th from the last is an anchor frame.

    Each anchor frame has `share` anchors, and the last `rest` of them one more.
    """

    start: Any
    end: Any
    interval: Any
    share: Any
    rest: Any


class Slots(NamedTuple):
    """For each slot of each frame, the position of its anchor in the frame and the number of tokens that joined it."""

    anchor_ptr: Any
    count_ptr: Any
    per_frame: Any


class Joined(NamedTuple):
    """The slot that each token joined in each of `ordinals` anchor frames of its segment, from `first_ordinal` on.

    A segment of L frames has L * N slots for one ordinal, in the order of its tokens, then those for the next. For each
    ordinal they take L * row_vectors whole vectors, of which the last one that holds a slot is filled up with -1.
    """

    nearest_ptr: Any
    first_ordinal: Any
    ordinals: Any
    row_vectors: Any


class Merging(NamedTuple):
    """How anchors are merged.

    The output, where each slot's row is among those of its frame, SPEC's K, d and beta, and the largest number of the
    output's dtype.
    """

    output_ptr: Any
    anchor_row_ptr: Any
    K: Any
    context_millionths: Any
    beta: Any
    largest: Any


@triton.jit
def rows_of(x, frame, i):
    """Pointers to tokens `i` of frames `frame`, broadcast; in 64 bits, since strides may be large."""
    return x.ptr + frame.to(tl.int64) * x.stride_t + i.to(tl.int64) * x.stride_n


@triton.jit
def anchor_frame(segment, ordinal):
    """The anchor frame with this ordinal, counted from the segment's last."""
    return segment.end - 1 - ordinal * segment.interval


@triton.jit
def anchors_of(segment, ordinal):
    """The number of anchors in the anchor frame with this ordinal."""
    return segment.share + (ordinal < segment.rest).to(tl.int32)


@triton.jit
def cell_of(joined, start, end, ordinal):
    """Where in `joined` the slots begin that the tokens of frames [start, end) joined in one of their anchor frames."""
    frames = start.to(tl.int64) * joined.ordinals + (ordinal - joined.first_ordinal).to(tl.int64) * (end - start)
    return frames * joined.row_vectors * ROW_VECTOR
