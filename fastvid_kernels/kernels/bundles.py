"""What the kernels that merge hand to their parts together: arguments that belong to one another."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Tokens(NamedTuple):
    """The tokens `[F, N, D]`: where they start, and strides in elements."""

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
    """Of each slot of each frame, its anchor's position in the frame and the number of tokens that joined it."""

    anchor_ptr: Any
    count_ptr: Any
    per_frame: Any


class Joined(NamedTuple):
    """The slot that each token joined in each of `ordinals` anchor frames of its segment, from `first_ordinal` on.

    A row is a frame's, of `padded` tokens.
    """

    nearest_ptr: Any
    first_ordinal: Any
    ordinals: Any
    padded: Any


@triton.jit
def rows_of(x, frame, i):
    """Where tokens `i` of frames start, whatever their shapes; 64 bits, since strides may be large."""
    return x.ptr + frame.to(tl.int64) * x.stride_t + i.to(tl.int64) * x.stride_n


@triton.jit
def anchor_frame(segment, ordinal):
    """The anchor frame of that ordinal, counted from the segment's last."""
    return segment.end - 1 - ordinal * segment.interval


@triton.jit
def anchors_of(segment, ordinal):
    """How many anchors the anchor frame of that ordinal has."""
    return segment.share + (ordinal < segment.rest).to(tl.int32)
