"""`fastvid run` with a Qwen-VL."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fastvid_kernels.cli.videos.synthetic import synthetic_frames
from tests.adapters import qwen_independent, tiny_qwen
from tests.adapters.tiny_qwen import END, FRAMES_A_PATCH, IMAGE, MERGE, PATCH, START, VIDEO, VOCABULARY, Clip
from tests.cli.test_run import row, run

TEMPLATE = (
    "{% for message in messages %}ask {% for part in message['content'] %}"
    "{{ '<|vision_start|><|video_pad|><|vision_end|>' if part['type'] == 'video' else part['text'] }}"
    "{% endfor %} answer{% endfor %}"
)
MARKS = {START: "<|vision_start|>", END: "<|vision_end|>", VIDEO: "<|video_pad|>", IMAGE: "<|image_pad|>"}
SAID = ["ask", "answer", "<0.2", "<1.2", "<2.0", "<2.2", "seconds>"]
WORDS = ["[PAD]", "[UNK]", *SAID, *(f"w{number}" for number in range(2 + len(SAID), VOCABULARY))]
for place, mark in MARKS.items():
    WORDS[place] = mark
IDS = {word: number for number, word in enumerate(WORDS)}
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
SIDE = 24


def write_checkpoint(
    kind: str, directory: Path, words: list[str], special: Iterable[str], template: str, processor: str
) -> Path:
    """`tiny_qwen.talkative(kind)`, with a tokenizer of words."""
    tiny_qwen.talkative(kind).save_pretrained(directory)
    return write_processors(kind, directory, words, special, template, processor)


def write_processors(
    kind: str, directory: Path, words: list[str], special: Iterable[str], template: str, processor: str
) -> Path:
    """What a checkpoint holds beside the model, with a tokenizer of words."""
    ids = {word: number for number, word in enumerate(words)}
    vocabulary = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    vocabulary.add_special_tokens([AddedToken(mark) for mark in special])
    if kind.startswith("qwen3.5"):
        # transformers takes its own class here, which would split words into bytes, but added ones never.
        vocabulary.add_tokens([AddedToken(word) for word in words])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary, unk_token="[UNK]", pad_token="[PAD]")
    tokenizer.save_pretrained(directory)
    preprocessor = {
        "image_processor_type": processor,
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": FRAMES_A_PATCH,
        "size": {"shortest_edge": 64, "longest_edge": 640},
        "image_mean": MEAN,
        "image_std": STD,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    return directory


def write_qwen(kind: str, directory: Path) -> Path:
    return write_checkpoint(kind, directory, WORDS, MARKS.values(), TEMPLATE, "Qwen2VLImageProcessor")


def patches_of(frames: np.ndarray, side: int = SIDE) -> torch.Tensor:
    """Patches of frames of `side` x `side` pixels.

    Patches that merge are adjacent; values in a patch are ordered by channel, then frame, row and column.
    """
    resized = [Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC) for frame in frames]
    pixels = np.stack([np.asarray(frame) for frame in resized]).astype(np.float32) / 255
    pixels = torch.from_numpy(((pixels - MEAN) / STD).astype(np.float32))
    cells = side // PATCH // MERGE
    patches = []
    for first in range(0, len(frames), FRAMES_A_PATCH):
        for cell in range(cells**2):
            for inner in range(MERGE**2):
                top = PATCH * (cell // cells * MERGE + inner // MERGE)
                left = PATCH * (cell % cells * MERGE + inner % MERGE)
                both = pixels[first : first + FRAMES_A_PATCH, top : top + PATCH, left : left + PATCH]
                patches.append(both.permute(3, 0, 1, 2).flatten())
    return torch.stack(patches)


def ask(checkpoint: Path, frames: int, side: int = SIDE) -> tuple[str, Clip]:
    """What `fastvid run` prints of a synthetic video of `frames` frames, and the video that the model should see.

    `side` is that of a frame in the model, in pixels.
    """
    result = run("--model", checkpoint, "--video", "synthetic", "--frames", frames, "--question", " w17 w18 w19",
                 "--new-tokens", 5, "--repeats", 1)  # fmt: skip
    assert result.exit_code == 0, result.output
    pictures = synthetic_frames(frames)
    if frames % 2:
        pictures = np.concatenate([pictures, pictures[-1:]])
    cells = side // PATCH
    return result.output, Clip(patches_of(pictures, side), (len(pictures) // 2, cells, cells))


def check_answers(
    output: str,
    kind: str,
    ids: list[int],
    placeholder: int,
    clip: Clip,
    words: list[str],
    frame_seconds: float | None = None,
) -> None:
    """Both answers, and the numbers of video tokens, are those computed independently for this prompt."""
    prompt = tiny_qwen.Prompt(ids, [2 * (token == placeholder) for token in ids], (clip,), frame_seconds=frame_seconds)
    model = tiny_qwen.talkative(kind)
    answers = []
    for name, ratio in (("without pruning", 1.0), ("pruned", 0.27)):
        expected, _ = qwen_independent.generated(kind, model, prompt, {"retention_ratio": ratio}, 5)
        answer = output.partition(f"\n{name}: ")[2].partition("\n")[0]
        # Whether a tokenizer puts spaces between words is its own affair.
        answers.append("".join(words[token] for token in expected if not words[token].startswith("<|")))
        assert answer.replace(" ", "") == answers[-1]
    assert answers[0] != answers[1], "choose a model whose answer depends on the prompt"
    n = clip.tokens_per_frame
    assert row(output, "video tokens")[:2] == [f"{3 * n:,}", f"{3 * int(n * 0.27):,}"]


@pytest.mark.parametrize("kind", ["qwen2", "qwen2.5", "qwen3", "qwen3-moe", "qwen3.5", "qwen3.5-moe"])
@pytest.mark.parametrize("frames", [6, 5])
def test_a_checkpoint_answers_what_it_should(kind: str, frames: int, tmp_path: Path) -> None:
    """The model gets the right words, timestamps, pixels and positions: both answers are the independent ones."""
    output, clip = ask(write_qwen(kind, tmp_path), frames)
    n = clip.tokens_per_frame
    # Two frames a second: each time is the middle of a pair of frames, to a tenth; an odd last frame is repeated.
    times = ["<0.2", "<1.2", "<2.0" if frames == 5 else "<2.2"]
    if tiny_qwen.KINDS[kind].timestamps:
        video = [token for time in times for token in (IDS[time], IDS["seconds>"], START, *[VIDEO] * n, END)]
    else:
        video = [VIDEO] * (3 * n)
    ids = [IDS["ask"], START, *video, END, *(IDS[word] for word in ("w17", "w18", "w19", "answer"))]
    check_answers(output, kind, ids, VIDEO, clip, WORDS)


@pytest.mark.parametrize(("architecture", "tokens"), [("qwen2.5-vl", "392"), ("qwen3-vl", "288")])
def test_random_weights(architecture: str, tokens: str) -> None:
    result = run(
        "--random-weights", architecture, "--video", "synthetic", "--frames", 4, "--repeats", 1, "--new-tokens", 2
    )
    assert result.exit_code == 0, result.output
    assert row(result.output, "video tokens")[0] == tokens
    assert "retention 0.27" in result.output
    assert "the words mean nothing" in result.output


def test_a_question_that_holds_a_placeholder_gets_one_line(tmp_path: Path) -> None:
    for name, words in (("qwen3-vl", "what is <|video_pad|>"), ("small", "what is <video>?")):
        result = run("--random-weights", name, "--video", "synthetic", "--frames", 2, "--question", words)
        assert result.exit_code == 2
        assert "--question must not contain <" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_a_retention_that_keeps_nothing_of_a_small_frame_gets_one_line(tmp_path: Path) -> None:
    checkpoint = write_qwen("qwen3", tmp_path)
    result = run("--model", checkpoint, "--video", "synthetic", "--frames", 4, "--retention", 0.1)
    assert result.exit_code == 2
    assert "--retention 0.1 is too small" in result.stderr
