"""`fastvid compare`: a table and a picture of what each method keeps."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from fastvid_kernels import methods, prune
from fastvid_kernels.cli.app import app
from fastvid_kernels.cli.common.clip import described_clip
from fastvid_kernels.cli.common.console import console
from fastvid_kernels.cli.common.descriptors import GRID
from fastvid_kernels.cli.drawing.picture import SALIENT
from fastvid_kernels.cli.drawing.sheet import Row, draw_sheet
from tests.cli.clips import pan, scenery, static, write_clip

FRAMES = 8


def compare(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)], env={"COLUMNS": "160"})


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shots = [static(1, 12), pan(2, 12), static(3, 12)]
    return write_clip(tmp_path_factory.mktemp("clip") / "shots.mp4", [frame for shot in shots for frame in shot])


def rows_of(output: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines() if "│" in line]
    return {row[0]: row[1:] for row in rows if len(row) == 5}


def test_every_method_has_its_row_and_says_what_it_kept(clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "all.png"
    result = compare("--video", clip, "--frames", FRAMES, "--retention", 0.2, "--output", output)
    assert result.exit_code == 0, result.output
    rows = rows_of(result.output)
    assert list(rows) == list(methods.names())
    inputs = described_clip(clip, FRAMES, torch.device("cpu"), console()).inputs
    fastvid = {*prune(*inputs, retention_ratio=0.2).indices.tolist()}
    for name, (kept, share, milliseconds, overlap) in rows.items():
        method = methods.get(name)
        indices = method(*inputs, retention_ratio=0.2).indices.tolist()
        assert kept == f"{len(indices):,}{'' if method.static else '*'}"
        assert share == f"{len(indices) / (FRAMES * GRID**2):.1%}"
        assert float(milliseconds) > 0
        assert overlap == f"{len(fastvid.intersection(indices)) / len(indices):.0%}"
    assert rows["fastvid"][-1] == "100%"
    assert "no vision model ran" in result.output
    assert "Rows marked * depend on the video" in result.output
    assert Image.open(output).width >= 2400


def test_some_methods_with_options(clip: Path, tmp_path: Path) -> None:
    chosen = "fastvid:segmentation=fixed:merging=uniform, random:seed=3,prunevid:threshold=0.5"
    result = compare("--video", clip, "--frames", FRAMES, "--methods", chosen, "--output", tmp_path / "some.png")
    assert result.exit_code == 0, result.output
    assert list(rows_of(result.output)) == [one.strip() for one in chosen.split(",")]


def outlined(frames: np.ndarray, *rows: list[int]) -> np.ndarray:
    """Where a sheet of frames 0 and 2 has the outline's colour."""
    sheet = draw_sheet(frames, [0, 2], ["a", "b"], [Row("one", ("x",), kept) for kept in rows], GRID, "t", "n")
    return (np.asarray(sheet) == SALIENT).all(-1)


def test_the_picture_shows_what_is_kept() -> None:
    frames = np.stack([scenery(seed, 280, 140) for seed in range(3)])
    last = GRID**2 - 1
    assert not outlined(frames, [], [GRID**2]).any(), "frame 1 is not shown"
    first_row, both = outlined(frames, [0], []), outlined(frames, [0], [2 * GRID**2 + last])
    added = both & ~first_row
    assert added[: first_row.nonzero()[0].max()].sum() == 0, "the second row lies below the first"
    assert added.nonzero()[1].min() > first_row.nonzero()[1].max(), "frame 2 has the second column"
    areas = [outlined(frames, kept).sum() for kept in ([0], [0, last], [0, 5, last])]
    assert areas == [areas[0], 2 * areas[0], 3 * areas[0]], "an outline for each token"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "uniform,visionzipp"), "--methods: method must be one of .*, got 'visionzipp'"),
        (("--methods", ""), "--methods: method must be one of .*, got ''"),
        (("--methods", "fastvid:merging=mean"), "--methods: merging must be one of .*, got 'mean'"),
        (("--methods", "evs:seed=1"), r"--methods: evs must be given only options that it has \(none\), got seed"),
        (("--frames", "0"), "--frames must be from 1 to 256, got 0"),
        (("--retention", "0.001"), "--retention 0.001 is too small"),
        (("--output", "sheet.jpg"), "sheet.jpg"),
        (("--video", "/no/such/film.mp4"), "film.mp4"),
    ],
)
def test_what_the_user_can_mend_is_one_line(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    output = () if "--output" in arguments else ("--output", tmp_path / "sheet.png")
    result = compare(*arguments, *output)
    assert result.exit_code == 2
    error = result.stderr.strip()
    assert "\n" not in error
    assert re.search(message, error), error
    assert not (tmp_path / "sheet.png").exists()
