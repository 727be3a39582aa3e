"""What the kernels can hold; apart from them, so that it can be asked where Triton is missing."""

from __future__ import annotations

from typing import Final

MAX_FRAMES: Final = 1 << 20
MAX_TOKENS_PER_FRAME: Final = 1024


# Which anchor of which anchor frame each token joined, before anyone knows where a video ends: two bytes for each.
MAX_SCRATCH_BYTES: Final = 16 << 30


def fits_kernels(frames: int, tokens_per_frame: int, anchor_interval: int) -> bool:
    """Whether the kernels can hold a call of this size, all its videos together."""
    scratch = 2 * frames * -(-frames // anchor_interval) * tokens_per_frame
    return frames <= MAX_FRAMES and tokens_per_frame <= MAX_TOKENS_PER_FRAME and scratch <= MAX_SCRATCH_BYTES
