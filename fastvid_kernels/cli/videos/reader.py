"""Read the frames of a video file and their orientation, even if the file is damaged. No other module opens videos.

Python opens the file and passes it to FFmpeg without its name, so that FFmpeg cannot take the name for an address or
for a pattern of many files.
"""

from __future__ import annotations

import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from av.video.stream import VideoStream

from fastvid_kernels.cli.common.errors import CommandError

# Titles may be in any encoding. From version 19 on, PyAV reads them all; before, it must be told to.
_ANY_TITLE: dict[str, Any] = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "replace"}


@dataclass(frozen=True)
class Orientation:
    """How to turn stored pixels upright: first transpose them or not, then reverse columns and rows or not."""

    transposed: bool = False
    flipped_columns: bool = False
    flipped_rows: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Orientation:
        """Orientation nearest to a frame's display matrix (ISO/IEC 14496-12, 6.2.2); as stored if none is valid."""
        data: Any = frame.side_data.get("DISPLAYMATRIX")
        if data is None:
            return cls()
        # x' = a x + c y and y' = b x + d y, in the order a, b, u, c, d, v, ...
        a, b, _, c, d, *_ = (float(one) for one in np.frombuffer(bytes(data), dtype=np.int32))
        if abs(a * d - b * c) < 1e-6 * (a * a + b * b + c * c + d * d) or a == b == c == d == 0:
            return cls()
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(transposed=True, flipped_columns=c < 0, flipped_rows=b < 0)
        return cls(flipped_columns=a < 0, flipped_rows=d < 0)

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Turn a picture `[H, W, 3]` upright."""
        if self.transposed:
            pixels = pixels.swapaxes(0, 1)
        return pixels[:: -1 if self.flipped_rows else 1, :: -1 if self.flipped_columns else 1]


@dataclass
class Losses:
    """Counts of what was read from a file, and what was lost.

    Attributes:
        packets: packets of the film that were found. A packet is a frame, or half of one in an interlaced film, or a
            frame that an edit list leaves out but other frames depend on.
        frames: frames that were decoded from them.
        lost: packets that could not be decoded, or are missing at the end.
        suspicious: whether a decoder on several threads may have silently dropped or repaired something.
    """

    packets: int = 0
    frames: int = 0
    lost: int = 0
    suspicious: bool = False


def check_is_file(path: Path) -> None:
    """Raise unless a path names a regular file that can be opened.

    Raises:
        CommandError: the path does not name one.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise CommandError(f"{path} is a folder, not a video")
        if not stat.S_ISREG(mode):
            raise CommandError(f"{path} must be a regular file, because it is read twice: save it to a file first")
        path.open("rb").close()
    except FileNotFoundError as error:
        raise CommandError(f"there is no file {path}") from error
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot open {path}: {getattr(error, 'strerror', None) or error}") from error


def count_packets(path: Path) -> int:
    """The number of frames to expect. Packets are counted, without decoding, because headers are often wrong."""
    losses = Losses()
    with _opened(path) as container:
        packets = _packets(container, _film(container, path), losses)
        return sum(1 for packet in packets if packet and packet.size and not packet.is_discard)


def read_frames(path: Path, losses: Losses, *, threads: bool) -> Iterator[tuple[av.VideoFrame, VideoStream]]:
    """Yield the film's frames in the order in which they are shown, each with its stream.

    Args:
        path: a file.
        losses: updated as frames are read.
        threads: whether to decode on all cores. On one core, a damaged file gives the same frames on every machine.
    """
    with _opened(path) as container:
        film = _film(container, path)
        film.thread_type = "AUTO" if threads else "NONE"
        promised, cut_away = _promised(film), 0
        for packet in _packets(container, film, losses):
            if packet is not None:
                losses.packets += bool(packet.size)
                cut_away += packet.is_discard
                if packet.is_corrupt:
                    # The packet is cut short: some decoders would fill the frame with whatever is in memory.
                    losses.lost += 1
                    continue
            try:
                frames = film.decode(packet)
            except av.FFmpegError:
                losses.lost += 1
                continue
            for frame in frames:
                losses.frames += 1
                losses.suspicious |= frame.is_corrupt
                yield frame, film
        losses.lost += max(0, promised - losses.packets)
        losses.suspicious |= losses.lost > 0 or losses.frames != losses.packets - cut_away


def _promised(film: VideoStream) -> int:
    """The number of packets that the headers announce, without those that an edit list leaves out; 0 if unknown."""
    # FFmpeg applies an edit list to the index, which not every version of PyAV exposes, but not to the header's count.
    index = getattr(film, "index_entries", None) or ()
    return min(film.frames, len(index) or film.frames)


def _packets(
    container: av.container.InputContainer, film: VideoStream, losses: Losses
) -> Iterator[av.Packet[VideoStream] | None]:
    """Yield all packets that can be read, then an empty one or None, for which a decoder returns its last frames."""
    packets: Any = container.demux(film)
    try:
        yield from packets
    except (av.FFmpegError, OSError):
        # The recording breaks off here, or the disk cannot be read; the packets before this are not affected.
        losses.lost += 1
        yield None


class _Nameless(io.RawIOBase):
    """An open file that hides its name."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


@contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
    opened: Any = av.open
    with path.open("rb") as file, opened(_Nameless(file), **_ANY_TITLE) as container:
        yield container


def _film(container: av.container.InputContainer, path: Path) -> VideoStream:
    """The best video stream that is not a cover picture."""
    films = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
    if not films:
        raise CommandError(f"{path} has no video in it")
    best = container.streams.best("video")
    return best if best in films else films[0]
