"""How many anchor frames of a segment share a pass over its tokens, in `assign` and `emit`: four, two, or one.

Counted from the segment's last, anchor frames form groups of four; of those left over, two form a pair. In `emit`, a
group that cannot share a pass goes as two pairs. The grouping depends on the segment alone, so that a video's bits do
not depend on the rest of the batch.
"""

from __future__ import annotations

import triton
import triton.language as tl

GROUP = 4
PAIR = tl.constexpr(2)
# Anchors of an anchor frame that one product takes at once.
BLOCK_SLOTS = 32


@triton.jit
def fewer_from(share, rest, first_ordinal, BLOCK_SLOTS: tl.constexpr):
    """Ordinal, counted from `first_ordinal`, from which anchor frames have one block of slots fewer; 0 if none differ.

    Of a segment's anchor frames, the last `rest` have `share + 1` anchors, the others `share`.
    """
    return tl.where(share % BLOCK_SLOTS == 0, tl.maximum(rest - first_ordinal, 0), 0)


@triton.jit
def goes_together(ordinal, fewer, FRAMES: tl.constexpr):
    """Whether FRAMES anchor frames from `ordinal` on have equally many blocks of slots, so that all need each pass."""
    return (fewer <= ordinal) | (fewer >= ordinal + FRAMES)
