"""Size limits of the kernels and of GPUs, in a module that can be imported without Triton."""

from __future__ import annotations

from typing import Final

MAX_FRAMES: Final = 1 << 20
MAX_TOKENS_PER_FRAME: Final = 1024
# Sizes of a tile that holds all tokens of a frame: each size is compiled as a kernel of its own.
FRAME_TILES: Final = (64, 256, MAX_TOKENS_PER_FRAME)

# Shared memory of a multiprocessor, of the supported GPUs that have least: compute capability 8.6, 8.9 and 12.0.
LEAST_SHARED_BYTES: Final = 100 << 10
# Of the data-centre GPUs; others have half, and are asked for no more.
AMD_THREADS_PER_WARP: Final = 64


def fits_kernels(frames: int, tokens_per_frame: int) -> bool:
    """Whether the kernels can hold a call of this size."""
    return frames <= MAX_FRAMES and tokens_per_frame <= MAX_TOKENS_PER_FRAME
