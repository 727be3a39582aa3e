"""`fastvid run` from the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

from fastvid_kernels.cli.app import app
from fastvid_kernels.cli.common.errors import CommandError
from fastvid_kernels.cli.models import answer, measure
from fastvid_kernels.cli.models.request import Request
from fastvid_kernels.cli.videos.synthetic import synthetic_frames
from tests.adapters import independent, tiny
from tests.adapters.independent import Prompt
from tests.cli import checkpoints
from tests.cli.clips import pan, static, write_clip


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["run", *map(str, arguments)], env={"COLUMNS": "200"})


def row(output: str, name: str) -> list[str]:
    """The cells beside `name` in the table."""
    found = re.search(rf"│ {name} +│ (.*?) *│\n", output)
    assert found, f"no {name} in {output}"
    return [cell.strip() for cell in found[1].split("│")]


SMALL = ("--random-weights", "small", "--repeats", 2, "--new-tokens", 4)


def test_random_weights_and_a_synthetic_video() -> None:
    result = run(*SMALL, "--video", "synthetic", "--frames", 4)
    assert result.exit_code == 0, result.output
    assert row(result.output, "video tokens") == ["785", "77", "10.2x"]
    for name in ("prefill", "pixels to first token"):
        plain, pruned, ratio = row(result.output, name)
        assert re.fullmatch(r"[\d,.]+ ms", plain)
        assert re.fullmatch(r"[\d,.]+ ms", pruned)
        assert re.fullmatch(r"\d+\.\dx", ratio)
    assert re.fullmatch(r"[\d,.]+ ms", row(result.output, "the pruning itself")[1])
    assert re.fullmatch(r"\d+\.\d\d GiB", row(result.output, "peak memory")[1])
    assert "the words mean nothing" in result.output
    assert re.search(r"without pruning: .+\n", result.output)
    assert re.search(r"pruned: .+\n", result.output)


def test_a_real_clip(tmp_path: Path) -> None:
    shots = [static(1, 20), pan(2, 20), static(3, 20)]
    clip = write_clip(tmp_path / "shots.mp4", [frame for shot in shots for frame in shot])
    result = run(*SMALL, "--video", clip, "--frames", 8, "--retention", 0.25)
    assert result.exit_code == 0, result.output
    assert row(result.output, "video tokens")[:2] == ["1,569", "393"]
    assert "8 of 60 frames" in " ".join(result.output.split())


def test_prefill_includes_the_pruning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the first number that a user sees would leave out what its saving costs."""

    @contextmanager
    def slow() -> Iterator[list[float]]:
        yield [30.0, 12.0]

    monkeypatch.setattr(measure, "measured_seconds", slow)
    result = run(*SMALL, "--video", "synthetic", "--frames", 2)
    assert result.exit_code == 0, result.output
    assert row(result.output, "the pruning itself")[1] == "42,000 ms"
    assert row(result.output, "prefill")[1].startswith("42,0")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write_siglip(tmp_path_factory.mktemp("siglip"))


def test_a_checkpoint_answers_what_it_should(llava: Path, siglip: Path) -> None:
    """The model gets the right words, pixels and positions: both answers are the independent computation's."""
    result = run("--model", llava, "--siglip", siglip, "--video", "synthetic", "--frames", 6, "--retention", 0.25,
                 "--question", "w7 w8 w9", "--new-tokens", 5, "--repeats", 1)  # fmt: skip
    assert result.exit_code == 0, result.output
    words = {word: number for number, word in enumerate(checkpoints.WORDS)}
    ids = [words["ask"], *tiny.placeholders(), *(words[word] for word in ("w7", "w8", "w9", "answer"))]
    frames = [Image.fromarray(frame).resize((40, 40), Image.Resampling.BICUBIC) for frame in synthetic_frames(6)]
    pixels = np.stack([np.asarray(frame) for frame in frames]).astype(np.float32) / 255
    pixels = (pixels - [0.5, 0.4, 0.3]) / [0.2, 0.25, 0.3]
    video = torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2)
    model, head = checkpoints.llava(), tiny.siglip()
    answers = []
    for name, ratio in (("without pruning", 1.0), ("pruned", 0.25)):
        expected, _ = independent.generated(model, head, Prompt(ids, (video,)), {"retention_ratio": ratio}, 5)
        answers.append(" ".join(checkpoints.WORDS[token] for token in expected))
        assert f"{name}: {answers[-1]}\n" in result.output
    assert answers[0] != answers[1], "choose a model whose answer depends on the prompt"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "give either --model, or --random-weights with one of small, 7b"),
        (["--model", "x", "--random-weights", "small"], "give either --model, or --random-weights with one of small"),
        (["--random-weights", "small", "--retention", "0"], "--retention must be above 0 and at most 1, got 0"),
        (["--random-weights", "small", "--video", "synthetic", "--retention", "0.005"], "use 0.005103 or more"),
        (["--random-weights", "small", "--frames", "0"], "--frames must be from 1 to 256, got 0"),
        (["--random-weights", "small", "--new-tokens", "0"], "--new-tokens must be from 1 to 4096, got 0"),
        (["--random-weights", "small", "--repeats", "0"], "--repeats must be from 1 to 1000, got 0"),
        (["--random-weights", "small", "--video", "missing.mp4"], "there is no file missing.mp4"),
        (["--random-weights", "small", "--device", "abacus"], "--device abacus cannot be used"),
        (["--model", "empty", "--siglip", "siglip", "--video", "synthetic"], "--model empty cannot be loaded"),
        (["--model", "other", "--siglip", "siglip", "--video", "synthetic"], "--model other is of type qwen2"),
        (["--model", "qwen", "--siglip", "siglip", "--video", "synthetic"], "--siglip must be left out"),
        (["--random-weights", "small", "--siglip", "siglip", "--video", "synthetic"], "--siglip must be left out"),
    ],
)
def test_mistakes_get_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoints.write_siglip(tmp_path / "siglip")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    (tmp_path / "qwen").mkdir()
    (tmp_path / "qwen" / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    result = run(*arguments)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.output


def test_a_siglip_without_a_head_gets_one_line(llava: Path, tmp_path: Path) -> None:
    result = run("--model", llava, "--siglip", tmp_path, "--video", "synthetic")
    assert result.exit_code == 2
    assert f"--siglip {tmp_path} cannot be used" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_siglip_that_does_not_fit_gets_one_line_before_any_work(
    llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.write_siglip(tmp_path, hidden_size=48)
    monkeypatch.setattr(answer, "_generated", lambda *_: pytest.fail("answered with a model that cannot be pruned"))
    result = run("--model", llava, "--siglip", tmp_path, "--video", "synthetic")
    assert result.exit_code == 2
    assert "channels, got one with 48" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_head_of_nonsense_gets_one_line(llava: Path, tmp_path: Path) -> None:
    checkpoints.write_siglip(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["hidden_size"] = "many"
    path.write_text(json.dumps(config))
    result = run("--model", llava, "--siglip", tmp_path, "--video", "synthetic")
    assert result.exit_code == 2
    assert f"--siglip {tmp_path} cannot be used" in result.stderr


def test_a_version_that_is_not_supported_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.__version__", "4.51.3")
    result = run(*SMALL, "--video", "synthetic")
    assert result.exit_code == 2
    assert "4.51.3" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_script_is_told_of_its_mistakes_too() -> None:
    with pytest.raises(CommandError, match=r"--random-weights must be one of small, 7b, .*got medium"):
        answer.answer(Request(random_weights="medium"), Console())


def test_a_template_without_a_video_gets_one_line(siglip: Path, tmp_path: Path) -> None:
    llava = checkpoints.write_llava(tmp_path, chat_template="{{ messages[0]['content'][1]['text'] }}")
    result = run("--model", llava, "--siglip", siglip, "--video", "synthetic")
    assert result.exit_code == 2
    assert "has no place for a video" in result.stderr


def test_synthetic_frames_have_shots_that_move() -> None:
    frames = synthetic_frames(16).astype(np.float32)
    assert frames.shape == (16, 384, 384, 3)
    change = np.abs(np.diff(frames, axis=0)).mean((1, 2, 3))
    cuts = np.sort(change)
    assert cuts[-4] > 2 * cuts[-5], "four cuts among fifteen transitions"
    assert change.min() > 0
    assert len(synthetic_frames(1)) == 1
