"""Kinds of files that have always been readable, and must stay so."""

from __future__ import annotations

import errno
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fastvid_kernels.cli.common.errors import CommandError
from fastvid_kernels.cli.videos import reader
from fastvid_kernels.cli.videos.reader import Orientation
from fastvid_kernels.cli.videos.video import sample_video

GREYS = [20, 60, 100, 140, 180, 220]


def write(
    path: Path,
    codec: str,
    pixel_format: str,
    *,
    size: tuple[int, int] = (32, 48),
    times: list[int] | None = None,
    greys: list[int] = GREYS,
    title: str | None = None,
) -> Path:
    """Write a film in which every frame is one grey; `times` are in 25ths of a second."""
    with av.open(str(path), "w") as container:
        if title is not None:
            container.metadata["title"] = title
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = size
        stream.pix_fmt = pixel_format
        stream.time_base = stream.codec_context.time_base = Fraction(1, 25)
        for number, grey in enumerate(greys):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), grey, np.uint8), format="rgb24")
            frame.pts, frame.time_base = (number if times is None else times[number]), Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def check_greys(path: Path, greys: list[int] = GREYS, atol: float = 4) -> None:
    video = sample_video(path, 32)
    assert video.lost == 0
    np.testing.assert_allclose(video.frames.mean(axis=(1, 2, 3)), greys, atol=atol)


@pytest.mark.parametrize(
    ("codec", "pixel_format"),
    [
        ("ffv1", "gray"),
        ("ffv1", "gray10le"),
        ("ffv1", "gray16le"),
        ("ffv1", "yuv420p10le"),
        ("ffv1", "yuv444p16le"),
        ("ffv1", "yuva420p"),
        ("ffv1", "bgra"),
        ("ffv1", "yuv411p"),
    ],
)
def test_grey_deep_and_transparent_formats(tmp_path: Path, codec: str, pixel_format: str) -> None:
    check_greys(write(tmp_path / "clip.mkv", codec, pixel_format))


@pytest.mark.parametrize("size", [(33, 47), (1, 1), (2, 300), (31, 2)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write(tmp_path / "clip.mkv", "ffv1", "bgr0", size=size)
    check_greys(path)
    assert sample_video(path, 2).frames.shape[1:3] == size


def test_a_variable_frame_rate(tmp_path: Path) -> None:
    times = [0, 1, 2, 50, 51, 100]
    path = write(tmp_path / "clip.mkv", "ffv1", "bgr0", times=times)
    check_greys(path)
    assert sample_video(path, 32).times == pytest.approx([time / 25 for time in times], abs=1e-3)


def test_times_that_begin_late_count_from_the_first_frame(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mkv", "ffv1", "bgr0", times=[75 + number for number in range(6)])
    assert sample_video(path, 32).times == pytest.approx([number / 25 for number in range(6)], abs=1e-3)


@pytest.mark.parametrize("container", ["mkv", "avi", "nut"])
def test_negative_times(tmp_path: Path, container: str) -> None:
    path = write(tmp_path / f"clip.{container}", "ffv1", "bgr0", times=[-3, -2, -1, 0, 1, 2])
    check_greys(path)
    assert sample_video(path, 32).times == pytest.approx([number / 25 for number in range(6)], abs=1e-3)


def edited(path: Path, first: int) -> Path:
    """A copy of an mp4 film, 25 frames a second, whose edit list begins at frame `first` (ISO/IEC 14496-12, 8.6.6)."""
    content = bytearray(path.read_bytes())
    entry = content.index(b"elst") + 12
    duration, media_time = struct.unpack_from(">Ii", content, entry)
    # The film's clock counts in 1000ths of a second, its video track's in 12800ths.
    struct.pack_into(">Ii", content, entry, duration - 40 * first, media_time + 512 * first)
    edited = path.with_stem(f"from_{first}")
    edited.write_bytes(content)
    return edited


@pytest.mark.parametrize("first", [1, 3, 5])
def test_an_edit_list_that_begins_between_key_frames(tmp_path: Path, first: int) -> None:
    """Frames before the edit list are decoded, as later ones depend on them, but neither shown nor counted as lost."""
    path = tmp_path / "clip.mp4"
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 128, (64, 96, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = 64, 96, "yuv420p", 12
        for number in range(10):
            picture = np.roll(pictures, number, 1) + np.uint8(12 * number)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    whole, part = sample_video(path, 32), sample_video(edited(path, first), 32)
    assert (part.num_source_frames, part.lost) == (10 - first, 0)
    np.testing.assert_array_equal(part.frames, whole.frames[first:])


@pytest.mark.parametrize("first", [1, 4])
def test_an_edit_list_that_begins_at_a_key_frame(tmp_path: Path, first: int) -> None:
    path = write(tmp_path / "clip.mp4", "mpeg4", "yuv420p")
    check_greys(edited(path, first), GREYS[first:], atol=6)


@pytest.mark.parametrize("bottom_up", [False, True])
def test_an_avi_whose_rows_begin_at_the_bottom(tmp_path: Path, bottom_up: bool) -> None:
    """A positive height in its BITMAPINFOHEADER means that rows begin at the bottom; FFmpeg writes a negative one."""
    path = tmp_path / "clip.avi"
    picture = np.zeros((8, 12, 3), np.uint8)
    picture[:3] = 200
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=25)
        stream.height, stream.width, stream.pix_fmt = 8, 12, "bgr24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    height = content.index(b"strf") + 16
    assert struct.unpack_from("<i", content, height) == (-8,)
    if bottom_up:
        struct.pack_into("<i", content, height, 8)
        path.write_bytes(content)
    np.testing.assert_array_equal(sample_video(path, 1).frames[0], picture[::-1] if bottom_up else picture)


def test_a_disk_with_a_bad_sector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames before the bad sector are used, and the rest count as lost."""
    path = tmp_path / "clip.mov"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 128, 256, "yuvj420p"
        for picture in rng.integers(0, 256, (60, 128, 256, 3), np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    whole = sample_video(path, 60)
    size = path.stat().st_size

    def read(self: Any, length: int = -1) -> bytes:
        content: bytes = original(self, length)
        if 0.5 * size < self.tell() < 0.7 * size:
            raise OSError(errno.EIO, "Input/output error")
        return content

    original = reader._Nameless.read
    monkeypatch.setattr(reader._Nameless, "read", read)
    video = sample_video(path, 60)
    assert 20 < video.num_source_frames < 45
    assert video.lost > 0
    np.testing.assert_array_equal(video.frames[:20], whole.frames[:20])


def test_a_stream_without_times_or_a_count(tmp_path: Path) -> None:
    """Raw MPEG-4 video: neither an index nor a container."""
    path = write(tmp_path / "clip.m4v", "mpeg4", "yuv420p")
    check_greys(path, atol=6)


def test_an_animation_that_is_no_film(tmp_path: Path) -> None:
    check_greys(write(tmp_path / "clip.gif", "gif", "gray"))


def test_a_picture_is_a_film_of_one_frame(tmp_path: Path) -> None:
    path = write(tmp_path / "one.mjpeg", "mjpeg", "yuvj420p", greys=[99])
    check_greys(path, [99], atol=6)


@pytest.mark.parametrize("container", ["mp4", "mkv", "avi"])
def test_a_title_that_is_not_in_unicode(tmp_path: Path, container: str) -> None:
    path = write(tmp_path / f"clip.{container}", "mpeg4", "yuv420p", title="Cafe Mozart")
    content = path.read_bytes()
    assert content.count(b"Cafe Mozart") == 1
    path.write_bytes(content.replace(b"Cafe Mozart", "Café Mozart".encode("latin-1")))
    check_greys(path, atol=6)


def test_frames_that_change_their_size_are_shown_in_the_first_one_s(tmp_path: Path) -> None:
    parts = [
        write(tmp_path / f"{number}.mjpeg", "mjpeg", "yuvj420p", size=size, greys=[grey] * 3)
        for number, (size, grey) in enumerate([((32, 48), 60), ((64, 96), 180)])
    ]
    path = tmp_path / "both.mjpeg"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    video = sample_video(path, 32)
    assert video.frames.shape[1:3] == (32, 48)
    np.testing.assert_allclose(video.frames.mean(axis=(1, 2, 3))[[0, -1]], [60, 180], atol=8)


@pytest.mark.parametrize("content", [b"", b"\x00" * 5000, b"not a film at all" * 300])
def test_junk(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "junk.mp4"
    path.write_bytes(content)
    with pytest.raises(CommandError, match=r"cannot decode|has no video in it"):
        sample_video(path, 8)


def test_an_orientation_is_the_film_s_even_if_it_stands_on_its_first_frame_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "clip.mkv", "ffv1", "bgr0")
    seen: list[Orientation] = []

    def first_only(frame: av.VideoFrame) -> Orientation:
        seen.append(Orientation() if seen else Orientation(transposed=True))
        return seen[-1]

    monkeypatch.setattr(Orientation, "of", staticmethod(first_only))
    assert sample_video(path, 6).frames.shape == (6, 48, 32, 3)
