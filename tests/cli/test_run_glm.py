"""`fastvid run` with a GLM-V."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.adapters.tiny_qwen import END, IMAGE, START, VIDEO, VOCABULARY
from tests.cli.test_run import row, run
from tests.cli.test_run_qwen import ask, check_answers, write_checkpoint

TEMPLATE = (
    "{% for message in messages %}ask {% for part in message['content'] %}"
    "{{ '<|begin_of_video|><|video|><|end_of_video|>' if part['type'] == 'video' else part['text'] }}"
    "{% endfor %} answer{% endfor %}"
)
MARKS = {START: "<|begin_of_video|>", END: "<|end_of_video|>", VIDEO: "<|video|>", IMAGE: "<|image|>"}
AROUND_FRAMES = ["<|begin_of_image|>", "<|end_of_image|>"]
SAID = ["ask", "answer", "seconds", *"012", "0.0", "1.0", "2.0"]
WORDS = ["[PAD]", "[UNK]", *SAID, *AROUND_FRAMES]
WORDS += [f"w{number}" for number in range(len(WORDS), VOCABULARY)]
for place, mark in MARKS.items():
    WORDS[place] = mark
IDS = {word: number for number, word in enumerate(WORDS)}


def write_glm(kind: str, directory: Path, longest_edge: int) -> Path:
    """A checkpoint whose videos have at most `longest_edge` pixels, all frames together; its images may have 640."""
    special = [*MARKS.values(), *AROUND_FRAMES]
    write_checkpoint(kind, directory, WORDS, special, TEMPLATE, "Glm4vImageProcessor")
    size = {"size": {"shortest_edge": 64, "longest_edge": longest_edge}}
    (directory / "video_preprocessor_config.json").write_text(json.dumps(size))
    return directory


@pytest.mark.parametrize(
    ("kind", "times"),
    [
        ("glm4.1", [["0"], ["1"], ["2"]]),
        ("glm4.5-moe", [["0"], ["1"], ["2"]]),
        ("glm4.6", [["0.0", "seconds"], ["1.0", "seconds"], ["2.0", "seconds"]]),
    ],
)
@pytest.mark.parametrize("frames", [6, 5])
def test_a_checkpoint_answers_what_it_should(kind: str, times: list[list[str]], frames: int, tmp_path: Path) -> None:
    """The model gets the right words, times, pixels and positions: both answers are the independent ones.

    The size of frames follows from that of videos: 6 frames, an odd last one repeated, have 640 pixels each.
    """
    output, clip = ask(write_glm(kind, tmp_path, 6 * 640), frames)
    n = clip.tokens_per_frame
    begin, end = (IDS[mark] for mark in AROUND_FRAMES)
    video = [token for time in times for token in (begin, *[IMAGE] * n, end, *(IDS[word] for word in time))]
    ids = [IDS["ask"], START, *video, END, *(IDS[word] for word in ("w17", "w18", "w19", "answer"))]
    check_answers(output, kind, ids, IMAGE, clip, WORDS)


def test_more_frames_are_smaller(tmp_path: Path) -> None:
    """12 frames have 320 pixels each: 16 x 16, four tokens a frame."""
    checkpoint = write_glm("glm4.1", tmp_path, 6 * 640)
    result = run("--model", checkpoint, "--video", "synthetic", "--frames", 12, "--repeats", 1, "--new-tokens", 1)
    assert result.exit_code == 0, result.output
    assert row(result.output, "video tokens")[:2] == ["24", "6"]


def test_random_weights() -> None:
    result = run("--random-weights", "glm-4.1v", "--video", "synthetic", "--frames", 4, "--repeats", 1,
                 "--new-tokens", 2)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert row(result.output, "video tokens")[:2] == ["392", "104"]
    assert "retention 0.27" in result.output


@pytest.mark.parametrize("mark", ["<|video|>", "<|image|>"])
def test_a_question_that_holds_a_placeholder_gets_one_line(mark: str) -> None:
    result = run("--random-weights", "glm-4.1v", "--video", "synthetic", "--frames", 2, "--question", f"see {mark}")
    assert result.exit_code == 2
    assert f"--question must not contain {mark}" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
