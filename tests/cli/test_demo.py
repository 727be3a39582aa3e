"""`fastvid demo` from the command line, on real data."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from fastvid_kernels import explain
from fastvid_kernels.cli.app import app
from fastvid_kernels.cli.common.descriptors import GRID, TOKENS_PER_FRAME, describe
from fastvid_kernels.cli.drawing.layout import choose_layout
from fastvid_kernels.cli.drawing.picture import ANCHOR, SALIENT
from fastvid_kernels.cli.videos.video import default_clip, sample_video
from tests.cli.clips import pan, static, write_clip

BIKES_CUTS = (30, 76, 137, 187, 242)


def demo(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["demo", *map(str, arguments)], env={"COLUMNS": "160"})


def field(output: str, name: str) -> str:
    """The value beside `name` in the summary."""
    found = re.search(rf"│ {name} +│ (.*?) *│", output)
    assert found, f"no {name} in {output}"
    return found[1]


def segment_rows(output: str) -> list[list[str]]:
    """The rows of the table of segments, as cells."""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines() if "│" in line]
    return [row for row in rows if len(row) == 6]


@pytest.fixture(scope="module")
def bikes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """The demo as a newcomer runs it, except for where the picture goes."""
    picture = tmp_path_factory.mktemp("bikes") / "demo.png"
    return demo("--output", picture), picture


def test_default_clip_is_pruned_to_a_tenth(bikes: tuple[Result, Path]) -> None:
    result, picture = bikes

    assert result.exit_code == 0, result.output
    assert field(result.output, "frames") == "32, sampled uniformly from 250"
    assert field(result.output, "tokens before") == "6,272 (32 x 196)"
    assert field(result.output, "tokens after") == "608 (9.7%)"
    assert re.fullmatch(r"\d+\.\d\d ms, median of 9 runs after a warm-up", field(result.output, "time"))
    assert field(result.output, "device")
    assert "no vision model ran" in result.output
    assert [path.name for path in picture.parent.iterdir()] == [picture.name]
    assert picture.stat().st_size < 1.5e6


def test_default_clips_cuts_are_reported(bikes: tuple[Result, Path]) -> None:
    rows = segment_rows(bikes[0].output)
    begins = [int(row[1]) for row in rows]
    sampled = sample_video(default_clip(), 32).source_indices

    for cut in BIKES_CUTS:
        assert min(index for index in sampled if index >= cut) in begins
    assert 6 <= len(rows) <= 12
    assert field(bikes[0].output, "segments") == str(len(rows))
    assert sum(int(row[3]) for row in rows) == 32
    assert sum(int(row[4]) + int(row[5]) for row in rows) == 608


def test_picture_outlines_exactly_what_explain_says(bikes: tuple[Result, Path]) -> None:
    video = sample_video(default_clip(), 32)
    described = describe(video.frames)
    explanation = explain(described.tokens, described.attn, described.frame_features)
    layout = choose_layout(32, video.frames.shape[2], video.frames.shape[1], GRID)
    with Image.open(bikes[1]) as opened:
        assert opened.size == layout.size
        pixels = np.asarray(opened)
    corners: dict[tuple[int, ...], list[int]] = {SALIENT: [], ANCHOR: []}
    for token in range(32 * TOKENS_PER_FRAME):
        left, top, right, bottom = layout.token_box(token)
        first, second = tuple(pixels[top, left]), tuple(pixels[bottom - 1, right - 1])
        if first == second and first in corners:
            corners[first].append(token)

    assert corners[SALIENT] == explanation.salient.tolist()
    assert corners[ANCHOR] == explanation.anchors.tolist()


def test_another_video_and_other_figures(tmp_path: Path) -> None:
    shots = [static(1, 20), pan(2, 20), static(3, 20)]
    clip = write_clip(tmp_path / "[red] shots.mp4", [frame for shot in shots for frame in shot])

    result = demo("--video", clip, "--frames", 12, "--retention", 0.25, "--output", tmp_path / "out.png")

    assert result.exit_code == 0, result.output
    assert "[red] shots.mp4" in result.output
    assert field(result.output, "tokens after") == "588 (25.0%)"
    sampled = sample_video(clip, 12).source_indices
    begins = [int(row[1]) for row in segment_rows(result.output)]
    for cut in (20, 40):
        assert min(index for index in sampled if index >= cut) in begins


@pytest.mark.parametrize("num_source_frames", [1, 3])
def test_short_videos_are_used_whole_and_it_says_so(tmp_path: Path, num_source_frames: int) -> None:
    clip = write_clip(tmp_path / "short.mp4", pan(1, num_source_frames))

    result = demo("--video", clip, "--output", tmp_path / "out.png")

    assert result.exit_code == 0, result.output
    assert re.search(rf"{num_source_frames} frames?, fewer than the 32 asked for", result.output)
    assert field(result.output, "tokens after").startswith(f"{19 * num_source_frames} ")
    assert (tmp_path / "out.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--retention", "0"], "--retention must be above 0 and at most 1, got 0"),
        (["--retention", "1.01"], "--retention must be above 0 and at most 1, got 1.01"),
        (["--retention", "nan"], "--retention must be above 0 and at most 1, got nan"),
        (["--retention", "0.005"], "use 0.005103 or more"),
        (["--frames", "0"], "--frames must be from 1 to 256, got 0"),
        (["--frames", "257"], "--frames must be from 1 to 256, got 257"),
        (["--video", "missing.mp4"], "there is no file missing.mp4"),
        (["--video", "."], ". is a folder, not a video"),
        (["--video", "noise.mp4"], "cannot decode noise.mp4"),
        (["--output", "picture.jpg"], "--output must be a .png file"),
        (["--output", "nowhere/picture.png"], "there is no folder nowhere"),
        (["--output", "folder.png"], "folder.png is a folder"),
        (["--device", "abacus"], "--device abacus cannot be used"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "folder.png").mkdir()

    result = demo(*arguments)

    assert result.exit_code == 2
    assert complaint in result.stderr
    assert result.stderr.startswith("fastvid: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png", "noise.mp4"]


def test_the_smallest_retention_named_works(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "short.mp4", pan(1, 3))

    result = demo("--video", clip, "--retention", "0.005103", "--output", tmp_path / "out.png")

    assert field(result.output, "tokens after").startswith("3 ")


def test_a_write_that_fails_gets_one_line_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_half(self: Image.Image, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    clip = write_clip(tmp_path / "short.mp4", pan(1, 2))
    monkeypatch.setattr(Image.Image, "save", write_half)

    result = demo("--video", clip, "--output", tmp_path / "out.png")

    assert result.exit_code == 2
    assert result.stderr == f"fastvid: cannot write {tmp_path / 'out.png'}: No space left on device\n"
    assert [path.name for path in tmp_path.iterdir()] == ["short.mp4"]


def test_the_demo_does_without_transformers(tmp_path: Path) -> None:
    program = "import sys; sys.modules['transformers'] = None; from fastvid_kernels.cli import main; main()"
    finished = subprocess.run(
        [sys.executable, "-c", program, "demo", "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert "--retention" in finished.stdout


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("av", "av"),
        ("PIL", "pillow"),
        ("rich", "rich"),
        ("skvideo", "scikit-video"),
        ("typer", "typer"),
        ("transformers", "transformers"),
    ],
)
def test_a_missing_extra_is_named(tmp_path: Path, module: str, package: str) -> None:
    command = "run" if module == "transformers" else "demo"
    program = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv = ['fastvid', {command!r}]; "
        "from fastvid_kernels.cli import main; main()"
    )
    root = Path(__file__).parents[2]

    finished = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert finished.returncode == 2
    assert finished.stderr == (
        f'fastvid: the package {package} is missing; install it with: pip install "fastvid_kernels[demo]"\n'
    )
    assert list(tmp_path.iterdir()) == []


def test_python_dash_m_is_the_same_program(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "fastvid_kernels.cli", "--help"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "demo" in finished.stdout
