"""`fastvid run` with a Qwen-Omni."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adapters import tiny_qwen
from tests.adapters.tiny import transformers
from tests.adapters.tiny_qwen import AUDIO, END, IMAGE, START, VIDEO, VOCABULARY
from tests.cli.clips import pan, write_clip
from tests.cli.test_run import row, run
from tests.cli.test_run_qwen import ask, check_answers, write_processors

pytestmark = pytest.mark.skipif(not tiny_qwen.HAS_OMNI, reason="the parts of these models lie elsewhere here")

MARKS = {
    "qwen2.5-omni": ("<|vision_bos|>", "<|vision_eos|>", "<|VIDEO|>", "<|IMAGE|>", "<|AUDIO|>"),
    "qwen3-omni": ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>", "<|image_pad|>", "<|audio_pad|>"),
}
WHOLE = {"qwen2.5-omni": "Qwen2_5Omni", "qwen3-omni": "Qwen3OmniMoe"}
# The largest multiple of a token's 8 pixels with at most 768 tokens.
SIDE = 216


def words_of(kind: str) -> list[str]:
    words = ["[PAD]", "[UNK]", "ask", "answer", *(f"w{number}" for number in range(4, VOCABULARY))]
    for place, mark in zip((START, END, VIDEO, IMAGE, AUDIO), MARKS[kind], strict=True):
        words[place] = mark
    return words


def write_omni(kind: str, directory: Path, whole: bool) -> Path:
    """A checkpoint of the whole model but for the talker, or of its thinker alone."""
    thinker = tiny_qwen.talkative(kind)
    saved = thinker
    if whole:
        config = getattr(transformers, f"{WHOLE[kind]}Config")(
            thinker_config=thinker.config.to_dict(), enable_audio_output=False
        )
        saved = getattr(transformers, f"{WHOLE[kind]}ForConditionalGeneration")(config)
        saved.thinker = thinker
    saved.save_pretrained(directory)
    start, end, video, *_ = MARKS[kind]
    template = (
        "{% for message in messages %}ask {% for part in message['content'] %}"
        "{{ '" + start + video + end + "' if part['type'] == 'video' else part['text'] }}"
        "{% endfor %} answer{% endfor %}"
    )
    return write_processors(kind, directory, words_of(kind), MARKS[kind], template, "Qwen2VLImageProcessor")


@pytest.mark.parametrize("kind", MARKS)
@pytest.mark.parametrize(("whole", "frames"), [(True, 6), (False, 5)])
def test_a_checkpoint_answers_what_it_should(kind: str, whole: bool, frames: int, tmp_path: Path) -> None:
    """The model gets the right words, pixels and positions: both answers are the independent ones.

    Two frames a second, so that a second passes between two pairs of frames.
    """
    output, clip = ask(write_omni(kind, tmp_path, whole), frames, SIDE)
    words = words_of(kind)
    said = [words.index(word) for word in ("w17", "w18", "w19", "answer")]
    ids = [words.index("ask"), START, *[VIDEO] * (3 * clip.tokens_per_frame), END, *said]
    check_answers(output, kind, ids, VIDEO, clip, words, frame_seconds=1.0)


@pytest.mark.parametrize("kind", MARKS)
def test_a_question_that_holds_a_placeholder_gets_one_line(kind: str, tmp_path: Path) -> None:
    checkpoint = write_omni(kind, tmp_path, whole=False)
    for mark in MARKS[kind][2:]:
        result = run("--model", checkpoint, "--video", "synthetic", "--frames", 2, "--question", f"hear {mark}")
        assert result.exit_code == 2
        assert f"--question must not contain {mark}" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_small_frames_are_enlarged(tmp_path: Path) -> None:
    """A square of 128 tokens or more has 12 to a side."""
    clip = write_clip(tmp_path / "small.mp4", [frame[:48, :48] for frame in pan(1, 4)])
    checkpoint = write_omni("qwen3-omni", tmp_path / "model", whole=False)
    result = run("--model", checkpoint, "--video", clip, "--frames", 4, "--new-tokens", 1, "--repeats", 1)
    assert result.exit_code == 0, result.output
    assert row(result.output, "video tokens")[0] == "288"


def test_an_older_transformers_gets_one_line_before_weights_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_omni("qwen3-omni", tmp_path, whole=True)
    monkeypatch.setattr("transformers.__version__", "5.22.0")
    result = run("--model", checkpoint, "--video", "synthetic", "--frames", 2)
    assert result.exit_code == 2
    assert "cannot be loaded: transformers must be at least 5.23" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
