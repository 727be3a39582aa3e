"""Which anchor frames of a segment one pass over its tokens serves, in `assign` and `emit`: four, two, or one.

Counted from the segment's last, they go in groups of four; of those left over, two go as a pair. What goes together
depends on the segment alone, so that a video gives the same bits in any company.
"""

from __future__ import annotations

import triton
import triton.language as tl

GROUP = 4
PAIR = tl.constexpr(2)
# Anchors of an anchor frame that a pass takes at once.
BLOCK_SLOTS = 32
# Of a block: a product of a group's anchors does not fit the registers of four.
WARPS = 8


@triton.jit
def fewer_from(share, rest, first_ordinal, BLOCK_SLOTS: tl.constexpr):
    """From which ordinal on, counted from the first, anchor frames have a block of slots fewer; 0 if all have as many.

    Of a segment's anchor frames, the last `rest` have `share + 1` anchors, the others `share`.
    """
    return tl.where(share % BLOCK_SLOTS == 0, tl.maximum(rest - first_ordinal, 0), 0)


@triton.jit
def goes_together(ordinal, fewer, FRAMES: tl.constexpr):
    """Whether FRAMES anchor frames from `ordinal` on have equally many blocks: no pass is idle for any of them."""
    return (fewer <= ordinal) | (fewer >= ordinal + FRAMES)
