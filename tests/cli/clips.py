"""Synthetic clips whose shots are known, written with PyAV."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

WIDTH, HEIGHT = 320, 180


def scenery(seed: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A picture with soft patches of colour and a few hard-edged boxes, `[height, width, 3]` uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (4, max(4, 6 * width // WIDTH), 3)).astype(np.uint8)
    picture = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    for _ in range(6 * width // WIDTH):
        left, top = rng.integers(0, width - 40), rng.integers(0, height - 40)
        picture[top : top + rng.integers(15, 60), left : left + rng.integers(15, 60)] = rng.integers(0, 255, 3)
    return picture


def static(seed: int, num_frames: int) -> list[np.ndarray]:
    """One picture, held."""
    return [scenery(seed)] * num_frames


def pan(seed: int, num_frames: int, pixels_per_frame: int = 1) -> list[np.ndarray]:
    """A camera that moves slowly along a wide picture."""
    wide = scenery(seed, WIDTH + num_frames * pixels_per_frame)
    starts = range(0, num_frames * pixels_per_frame, pixels_per_frame)
    return [wide[:, start : start + WIDTH] for start in starts]


def write_clip(path: Path, frames: Sequence[np.ndarray], clockwise_turns: int = 0) -> Path:
    """Encode `frames`, each `[H, W, 3]` uint8, at 25 frames a second.

    To show an MP4 file upright, a player must turn it by `clockwise_turns` quarter turns, as it must for films taken
    with a telephone held upright.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.bit_rate, stream.time_base = "yuv420p", 4_000_000, Fraction(1, 25)
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(stream.encode())
    if clockwise_turns:
        _turn(path, clockwise_turns)
    return path


def _turn(path: Path, clockwise_turns: int) -> None:
    """Rewrite the matrix of the MP4 track header (ISO/IEC 14496-12, section 8.3.2)."""
    content = path.read_bytes()
    header = content.index(b"tkhd")
    at = content.index(_matrix(0), header)
    path.write_bytes(content[:at] + _matrix(clockwise_turns) + content[at + len(_matrix(0)) :])


def _matrix(clockwise_turns: int) -> bytes:
    cosine, sine = ((1, 0), (0, 1), (-1, 0), (0, -1))[clockwise_turns]
    # Fixed point: 16.16, and 2.30 in the last column.
    return struct.pack(">9i", cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30)
