"""The picture's pixels are what its legend says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastvid_kernels.cli.common.errors import CommandError
from fastvid_kernels.cli.drawing.layout import Layout, choose_layout
from fastvid_kernels.cli.drawing.picture import (
    ANCHOR,
    BACKGROUND,
    SALIENT,
    SEGMENT_COLOURS,
    draw_pruning,
    save_png,
)
from tests.cli.clips import scenery

GRID = 14
N = GRID * GRID
SEGMENTS = [(0, 3), (3, 4), (4, 9)]


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.stack([scenery(seed) for seed in range(9)])


@pytest.fixture(scope="module")
def kept() -> tuple[list[int], list[int]]:
    chosen = np.random.default_rng(0).permutation(9 * N)[:120]
    return sorted(chosen[:70].tolist()), sorted(chosen[70:].tolist())


@pytest.fixture(scope="module")
def drawn(frames: np.ndarray, kept: tuple[list[int], list[int]]) -> tuple[np.ndarray, Layout]:
    captions = [(f"frame {i}",) for i in range(9)]
    picture, layout = draw_pruning(frames, captions, SEGMENTS, *kept, GRID, "title", "figures", "note")
    return np.asarray(picture), layout


def crop(picture: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    left, top, right, bottom = box
    return picture[top:bottom, left:right].astype(int)


def source(frames: np.ndarray, layout: Layout, token: int) -> np.ndarray:
    """The token's pixels as they would be without dimming and outline."""
    frame = token // N
    whole = np.asarray(Image.fromarray(frames[frame]).resize(layout.frame_size, Image.Resampling.LANCZOS))
    left, top, right, bottom = layout.token_box(token)
    x, y, _, _ = layout.frame_box(frame)
    return whole[top - y : bottom - y, left - x : right - x].astype(int)


def test_kept_tokens_are_outlined_and_shown_as_they_are(
    frames: np.ndarray, kept: tuple[list[int], list[int]], drawn: tuple[np.ndarray, Layout]
) -> None:
    picture, layout = drawn
    for colour, tokens in zip((SALIENT, ANCHOR), kept, strict=True):
        for token in tokens:
            pixels = crop(picture, layout.token_box(token))
            for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
                assert (edge == colour).all()
            assert np.array_equal(pixels[2:-2, 2:-2], source(frames, layout, token)[2:-2, 2:-2])


def test_removed_tokens_are_darker_and_grey(
    frames: np.ndarray, kept: tuple[list[int], list[int]], drawn: tuple[np.ndarray, Layout]
) -> None:
    picture, layout = drawn
    luma = np.array([0.299, 0.587, 0.114])
    for token in set(range(0, 9 * N, 5)) - set(kept[0] + kept[1]):
        pixels, original = crop(picture, layout.token_box(token)), source(frames, layout, token)
        assert ((pixels @ luma) <= 0.7 * (original @ luma)).all()
        assert (pixels.max(axis=2) - pixels.min(axis=2)).max() <= 20


def test_segments_are_framed_where_they_begin(drawn: tuple[np.ndarray, Layout]) -> None:
    picture, layout = drawn
    starts = {start: SEGMENT_COLOURS[i] for i, (start, _) in enumerate(SEGMENTS)}
    for frame in range(9):
        left, _, _, bottom = layout.frame_box(frame)
        edge = tuple(picture[bottom - 1, left - 3])
        assert edge == starts.get(frame, BACKGROUND)


def test_the_line_above_a_segment_goes_through_its_gaps_only(drawn: tuple[np.ndarray, Layout]) -> None:
    picture, layout = drawn
    line_above = 40  # from the frame up to the middle of the line
    for number, (start, end) in enumerate(SEGMENTS):
        colour = SEGMENT_COLOURS[number]
        for frame in range(start, end):
            _, top, right, _ = layout.frame_box(frame)
            assert tuple(picture[top - line_above, right - 1]) == colour
            ends_row = frame % layout.columns == layout.columns - 1
            beyond = tuple(picture[top - line_above, right + 5])
            assert beyond == (colour if frame + 1 < end and not ends_row else BACKGROUND)


@pytest.mark.parametrize("num_frames", [1, 2, 5, 8, 31, 32, 33, 64, 256])
@pytest.mark.parametrize("size", [(640, 272), (1920, 1080), (640, 480), (480, 480), (720, 1280)])
def test_layouts_hold_every_frame_undistorted(num_frames: int, size: tuple[int, int]) -> None:
    layout = choose_layout(num_frames, *size, GRID)
    boxes = [layout.frame_box(frame) for frame in range(num_frames)]

    assert (layout.rows - 1) * layout.columns < num_frames <= layout.rows * layout.columns
    assert len(set(boxes)) == num_frames
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= layout.size[0]
        assert 0 <= top < bottom <= layout.size[1]
        assert (right - left) / (bottom - top) == pytest.approx(size[0] / size[1], rel=0.06)
    assert min(layout.patch_width, layout.patch_height) >= 10
    _, _, last_right, last_bottom = boxes[-1]
    legend_left, legend_top = layout.legend_corner
    assert legend_left >= last_right or legend_top >= last_bottom


def header(frames: np.ndarray, title: str, figures: str) -> np.ndarray:
    """Pixels above a picture of one frame."""
    picture, layout = draw_pruning(frames[:1], [("",)], [(0, 1)], [], [], GRID, title, figures, "")
    return np.asarray(picture)[: layout.frame_box(0)[1] - 50]


def test_characters_without_a_glyph_become_question_marks(frames: np.ndarray) -> None:
    assert np.array_equal(header(frames, "動画.mp4 (9.7%)", "4 ms"), header(frames, "??.mp4 (9.7%)", "4 ms"))
    assert not np.array_equal(header(frames, "ee.mp4", "4 ms"), header(frames, "??.mp4", "4 ms"))


@pytest.mark.parametrize("length", [10, 40, 300])
def test_a_long_title_stays_clear_of_the_figures(frames: np.ndarray, length: int) -> None:
    inked = (header(frames, "m" * length, "32 of 250 frames") != BACKGROUND).any(axis=(0, 2)).nonzero()[0]

    assert np.diff(inked).max() >= 50  # the widest blank between any two letters: title | figures
    assert inked[0] >= 40
    assert inked[-1] < len(header(frames, "m", "f")[0]) - 40


def test_png_is_written_whole(tmp_path: Path) -> None:
    picture = Image.fromarray(scenery(1))

    save_png(picture, tmp_path / "picture.png")

    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
    with Image.open(tmp_path / "picture.png") as written:
        assert written.format == "PNG"
        assert np.array_equal(np.asarray(written), scenery(1))


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def write_half(self: Image.Image, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise failure

    old = tmp_path / "picture.png"
    old.write_bytes(b"an older picture")
    monkeypatch.setattr(Image.Image, "save", write_half)

    with pytest.raises(CommandError if isinstance(failure, OSError) else type(failure)):
        save_png(Image.new("RGB", (4, 4)), old)

    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
    assert old.read_bytes() == b"an older picture"
