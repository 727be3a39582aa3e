"""Files as users have them: damaged, rotated, with cover pictures, with strange names."""

from __future__ import annotations

import os
import shutil
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastvid_kernels.cli.common.errors import CommandError
from fastvid_kernels.cli.videos import reader
from fastvid_kernels.cli.videos.video import SampledVideo, sample_indices, sample_video
from tests.cli.clips import pan, scenery, write_clip

VIDEOS = Path(__file__).parent / "videos"
CORNERS = 12


def sampled(name: str, count: int = 8) -> SampledVideo:
    return sample_video(VIDEOS / name, count)


def test_a_damaged_last_frame_is_the_only_one_lost() -> None:
    video = sampled("corrupt_last_plain.mp4", 32)
    assert (video.num_source_frames, video.lost) == (19, 1)
    # The last stored frame is shown before the frame that depends on it.
    np.testing.assert_array_equal(video.frames[:18], sampled("plain.mp4", 32).frames[:18])


def test_a_recording_that_broke_off() -> None:
    """Its index, at the front, lists 20 frames; the data ends within the 16th."""
    video = sampled("trunc93_faststart.mp4", 32)
    assert (video.num_source_frames, video.lost) == (15, 5)


@pytest.mark.parametrize("name", ["plain", "corrupt_last_plain", "trunc93_faststart"])
def test_the_same_frames_whatever_the_number_of_cores(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    several = sampled(f"{name}.mp4", 32)
    read_frames = reader.read_frames
    monkeypatch.setattr(
        "fastvid_kernels.cli.videos.video.read_frames",
        lambda path, losses, threads: read_frames(path, losses, threads=False),
    )
    one = sampled(f"{name}.mp4", 32)
    assert (several.num_source_frames, several.lost) == (one.num_source_frames, one.lost)
    np.testing.assert_array_equal(several.frames, one.frames)


def test_a_cover_is_not_the_film() -> None:
    np.testing.assert_array_equal(sampled("cover_first.mp4").frames, sampled("plain.mp4").frames)


def test_a_cover_alone_is_no_film(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(VIDEOS / "cover_first.mp4")) as source, av.open(str(path), "w") as target:
        cover = source.streams.video[0]
        stream = target.add_stream_from_template(cover)
        stream.disposition = av.stream.Disposition.attached_pic
        for packet in source.demux(cover):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    with pytest.raises(CommandError, match="has no video in it"):
        sample_video(path, 8)


def test_a_mirrored_film_is_shown_as_players_show_it() -> None:
    np.testing.assert_array_equal(sampled("mirror_h.mp4").frames, sampled("plain.mp4").frames[:, :, ::-1])


IDENTITY = (1, 0, 0, 1)
# All ways to turn and mirror a picture, as a, b, c, d: a pixel goes to x' = a x + c y, y' = b x + d y.
MATRICES = [
    (1, 0, 0, 1),
    (-1, 0, 0, 1),
    (1, 0, 0, -1),
    (-1, 0, 0, -1),
    (0, 1, 1, 0),
    (0, 1, -1, 0),
    (0, -1, 1, 0),
    (0, -1, -1, 0),
]


def with_matrix(path: Path, matrix: tuple[int, int, int, int], stored: np.ndarray) -> Path:
    """A clip of one picture with a matrix in its track header."""
    write_clip(path, [stored] * 2)
    return turned(path, matrix)


def turned(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write another matrix into a file's track header (ISO/IEC 14496-12, section 8.3.2)."""

    def packed(a: int, b: int, c: int, d: int) -> bytes:
        return struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)

    content = path.read_bytes()
    at = content.index(packed(*IDENTITY), content.index(b"tkhd"))
    path.write_bytes(content[:at] + packed(*matrix) + content[at + 36 :])
    return path


def moved(stored: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """A picture `[H, W, 3]` whose pixels go where a matrix sends them, shifted so that none has a negative place."""
    a, b, c, d = matrix
    y, x = np.mgrid[: stored.shape[0], : stored.shape[1]]
    to_x, to_y = a * x + c * y, b * x + d * y
    shape = stored.shape if a else (stored.shape[1], stored.shape[0], 3)
    shown = np.empty(shape, stored.dtype)
    shown[to_y - to_y.min(), to_x - to_x.min()] = stored
    return shown


@pytest.mark.parametrize("matrix", MATRICES)
def test_every_way_to_turn_and_mirror(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    stored = scenery(4)
    frame = sample_video(with_matrix(tmp_path / "turned.mp4", matrix, stored), 2).frames[0]
    assert np.abs(frame.astype(int) - moved(stored, matrix)).mean() < 8


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (1, 0, 1, 0)])
def test_a_matrix_that_no_player_can_follow_is_ignored(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    stored = scenery(4)
    frame = sample_video(with_matrix(tmp_path / "odd.mp4", matrix, stored), 2).frames[0]
    assert np.abs(frame.astype(int) - stored).mean() < 8


@pytest.mark.parametrize(
    "name", ["12:30.mp4", "shot%d.png", "shot1.mp4%03d", "http:", "concat:a|b.mp4", "-.mp4", "ä☃.mp4"]
)
def test_a_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(VIDEOS / "plain.mp4", name)
    for number in (1, 2):
        shutil.copy(VIDEOS / "mirror_h.mp4", f"shot{number}.png")
    np.testing.assert_array_equal(sample_video(Path(name), 8).frames, sampled("plain.mp4").frames)


def test_a_local_folder_that_looks_like_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "http:" / "host").mkdir(parents=True)
    shutil.copy(VIDEOS / "plain.mp4", "http:/host/film.mp4")
    assert sample_video(Path("http:/host/film.mp4"), 8).num_source_frames == 20


def test_what_can_be_read_once_only_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(CommandError, match="must be a regular file"):
        sample_video(pipe, 8)
    with pytest.raises(CommandError, match="must be a regular file"):
        sample_video(Path("/dev/zero"), 8)


@pytest.mark.parametrize("name", ["n" * 300, "no/such/folder.mp4", "plain.mp4/inside.mp4"])
def test_names_that_lead_nowhere(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(VIDEOS)
    with pytest.raises(CommandError, match=r"there is no file|cannot open"):
        sample_video(Path(name), 8)


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_a_truncated_avi_gives_what_it_has(tmp_path: Path, keep: float) -> None:
    path = write_clip(tmp_path / "long.avi", pan(3, 60, pixels_per_frame=4))
    whole = sample_video(path, 60)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    part = sample_video(path, 60)
    assert 0 < part.num_source_frames < 60
    assert part.source_indices == sample_indices(part.num_source_frames, 60)
    same = part.num_source_frames - 1
    np.testing.assert_array_equal(part.frames[:same], whole.frames[:same])


LOSSLESS = {"ffv1": ("mkv", "avi"), "png": ("mov", "avi"), "rawvideo": ("avi",), "huffyuv": ("avi",)}
LOSSY = {"mpeg4": ("mp4", "avi", "mkv"), "mjpeg": ("mov", "avi"), "libx264": ("mp4", "mkv")}
CONTAINERS = LOSSLESS | LOSSY
FORMATS = {"ffv1": "bgr0", "png": "rgb24", "rawvideo": "bgr24", "huffyuv": "rgb24"}
FORMATS |= {"mpeg4": "yuv420p", "mjpeg": "yuvj420p", "libx264": "yuv420p"}


@st.composite
def clips(draw: Any) -> dict[str, Any]:
    codec = draw(st.sampled_from(sorted(CONTAINERS)))
    container = draw(st.sampled_from(CONTAINERS[codec]))
    return {
        "codec": codec,
        "container": container,
        "matrix": draw(st.sampled_from(MATRICES)) if container in ("mov", "mp4") else IDENTITY,
        "frames": draw(st.integers(1, 9)),
        "size": draw(st.tuples(st.integers(1, 9), st.integers(1, 9))),
        "seed": draw(st.integers(0, 2**16)),
        "damage": draw(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6)),
        "keep": draw(st.sampled_from([1.0, 1.0, 0.95, 0.7, 0.3])),
    }


def write_pictures(path: Path, pictures: np.ndarray, codec: str) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(25))
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = FORMATS[codec]
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


ONE_FOLDER = [HealthCheck.function_scoped_fixture]


def check_clip(clip: dict[str, Any], folder: Path) -> None:
    """Read a clip whole, then damaged.

    Whole, it must give every frame as written, or, if the codec is lossy, as PyAV's own loop over frames decodes it.
    Damaged, it must give some frames, as many each time, or an error of one line. The pixels of damaged frames are not
    compared, since a decoder may leave there whatever was in memory.
    """
    rows, columns = (2 * side for side in clip["size"])
    pictures = np.random.default_rng(clip["seed"]).integers(0, 256, (clip["frames"], rows, columns, 3), np.uint8)
    path = folder / f"clip.{clip['container']}"
    write_pictures(path, pictures, clip["codec"])
    if clip["codec"] in LOSSY:
        with av.open(str(path)) as container:
            pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    if clip["matrix"] != IDENTITY:
        turned(path, clip["matrix"])
        pictures = np.stack([moved(picture, clip["matrix"]) for picture in pictures])
    count = max(1, clip["frames"] - 2)
    whole = sample_video(path, count)
    assert whole.num_source_frames == clip["frames"]
    assert whole.lost == 0
    np.testing.assert_array_equal(whole.frames, pictures[list(sample_indices(clip["frames"], count))])
    content = bytearray(path.read_bytes())
    for place, value in clip["damage"]:
        content[int(place * (len(content) - 1))] = value
    path.write_bytes(content[: int(len(content) * clip["keep"])])
    first, again = outcome(path, count), outcome(path, count)
    if isinstance(first, SampledVideo):
        assert isinstance(again, SampledVideo)
        assert first.frames.shape == again.frames.shape
        assert (first.num_source_frames, first.lost) == (again.num_source_frames, again.lost)
        assert first.num_source_frames > 0
    else:
        assert first == again
        assert str(path) in first
        assert "\n" not in first


def outcome(path: Path, count: int) -> SampledVideo | str:
    try:
        return sample_video(path, count)
    except CommandError as error:
        return str(error)


@settings(max_examples=150, deadline=None, suppress_health_check=ONE_FOLDER, derandomize=True)
@given(clip=clips())
def test_any_clip(clip: dict[str, Any], tmp_path: Path) -> None:
    check_clip(clip, tmp_path)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=ONE_FOLDER)
@given(clip=clips())
def test_any_of_many_clips(clip: dict[str, Any], tmp_path: Path) -> None:
    check_clip(clip, tmp_path)
