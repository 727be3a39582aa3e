"""A video that needs no decoder."""

from __future__ import annotations

import numpy as np

SYNTHETIC_RATE = 2.0
"""The frame rate that the video is taken to have, in frames per second."""
_SIDE = 384
_CELLS = 6
_SHOTS = 5


def synthetic_frames(count: int) -> np.ndarray:
    """Frames `[count, 384, 384, 3]`, uint8: up to five shots, each with its own drifting pattern, plus noise."""
    random = np.random.default_rng(0)
    frames = np.empty((count, _SIDE, _SIDE, 3), dtype=np.uint8)
    repeat = _SIDE // _CELLS
    for shot, indices in enumerate(np.array_split(np.arange(count), min(_SHOTS, count))):
        pattern = np.random.default_rng(shot + 1).integers(30, 226, (_CELLS, _CELLS, 3))
        picture = pattern.repeat(repeat, 0).repeat(repeat, 1)
        for step, index in enumerate(indices):
            noise = random.integers(-20, 21, picture.shape)
            frames[index] = np.roll(picture, 4 * step, axis=1) + noise
    return frames
