"""`fastvid run` with a LLaVA-NeXT-Video."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fastvid_kernels.cli.videos.synthetic import synthetic_frames
from tests.adapters import independent, tiny, tiny_next_video
from tests.adapters.independent import Prompt
from tests.cli.clips import pan, write_clip
from tests.cli.test_run import row, run

TEMPLATE = (
    "{% for message in messages %}ask {% for part in message['content'] %}"
    "{{ '<video> ' if part['type'] == 'video' else part['text'] }}{% endfor %} answer{% endfor %}"
)
WORDS = ["[PAD]", "[UNK]", "ask", "answer", "<s>", *(f"w{number}" for number in range(5, tiny.VIDEO))]
WORDS += ["<video>", "<image>"]
IDS = {word: number for number, word in enumerate(WORDS)}
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def write_next_video(directory: Path, template: str = TEMPLATE, *, own_settings: bool = True) -> Path:
    """`tiny_next_video.model()`, with a tokenizer of words that begins a prompt with <s>, as Llama's does."""
    tiny_next_video.model().save_pretrained(directory)
    vocabulary = Tokenizer(models.WordLevel(IDS, unk_token="[UNK]"))
    vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    vocabulary.add_special_tokens([AddedToken(word) for word in ("<s>", "<video>", "<image>")])
    vocabulary.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", IDS["<s>"])])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary, unk_token="[UNK]", pad_token="[PAD]", bos_token="<s>"
    )
    tokenizer.save_pretrained(directory)
    settings = {
        "size": {"shortest_edge": 40},
        "crop_size": {"height": 40, "width": 40},
        "image_mean": MEAN,
        "image_std": STD,
    }
    images = settings if not own_settings else settings | {"size": {"shortest_edge": 60}, "image_mean": [0.1] * 3}
    images |= {"image_processor_type": "LlavaNextImageProcessor"}
    (directory / "preprocessor_config.json").write_text(json.dumps(images))
    if own_settings:
        (directory / "video_preprocessor_config.json").write_text(json.dumps(settings))
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    return directory


def pixels_of(frames: np.ndarray) -> torch.Tensor:
    """Frames resized by their shorter side, and cut to a square in the middle."""
    height, width = frames.shape[1:3]
    short = min(height, width)
    size = (int(40 * width / short), int(40 * height / short))
    resized = np.stack([np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BICUBIC)) for one in frames])
    top, left = (size[1] - 40) // 2, (size[0] - 40) // 2
    pixels = resized[:, top : top + 40, left : left + 40].astype(np.float32) / 255
    return torch.from_numpy(((pixels - MEAN) / STD).astype(np.float32)).permute(0, 3, 1, 2)


def check_answers(output: str, frames: np.ndarray, ids: list[int]) -> None:
    """Both answers are those computed independently for this prompt."""
    twin = tiny_next_video.model()
    prompt = Prompt(ids, (pixels_of(frames),))
    answers = []
    for name, ratio in (("without pruning", 1.0), ("pruned", 0.25)):
        expected, _ = independent.continued(
            twin, *tiny_next_video.embedded(twin, prompt, {"retention_ratio": ratio}), 5
        )
        answers.append(" ".join(WORDS[token] for token in expected))
        assert f"{name}: {answers[-1]}\n" in output
    assert answers[0] != answers[1], "choose a model whose answer depends on the prompt"


ASKED = [IDS[word] for word in ("w17", "w18", "w19", "answer")]


def ask(checkpoint: Path, video: Any, frames: int) -> str:
    result = run("--model", checkpoint, "--video", video, "--frames", frames, "--question", "w17 w18 w19",
                 "--new-tokens", 5, "--repeats", 1, "--retention", 0.25)  # fmt: skip
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("own_settings", [False, True])
def test_a_checkpoint_answers_what_it_should(begins: bool, own_settings: bool, tmp_path: Path) -> None:
    """The prompt begins once with <s>, whether the template writes it or not; videos may have settings of their own."""
    template = f"<s> {TEMPLATE}" if begins else TEMPLATE
    output = ask(write_next_video(tmp_path, template, own_settings=own_settings), "synthetic", 6)
    ids = [IDS["<s>"], IDS["ask"], *tiny_next_video.placeholders(), *ASKED]
    check_answers(output, synthetic_frames(6), ids)
    assert row(output, "video tokens")[:2] == ["150", "36"]


def test_wide_frames_are_cut_to_squares(tmp_path: Path) -> None:
    from fastvid_kernels.cli.videos.video import sample_video

    clip = write_clip(tmp_path / "wide.mp4", pan(2, 20))
    frames = sample_video(clip, 6).frames
    assert frames.shape[1] != frames.shape[2]
    output = ask(write_next_video(tmp_path / "model"), clip, 6)
    check_answers(output, frames, [IDS["<s>"], IDS["ask"], *tiny_next_video.placeholders(), *ASKED])


def test_random_weights() -> None:
    result = run("--random-weights", "llava-next-video", "--video", "synthetic", "--frames", 4, "--repeats", 1,
                 "--new-tokens", 2)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert row(result.output, "video tokens")[:2] == ["576", "56"]
    assert "retention 0.1;" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{{ messages[0]['content'][1]['text'] }}", "has no place for a video (<video>)"),
        ("<video> and <video>", "has several places for a video (<video>)"),
    ],
)
def test_a_template_without_one_place_for_a_video_gets_one_line(template: str, complaint: str, tmp_path: Path) -> None:
    checkpoint = write_next_video(tmp_path, template)
    result = run("--model", checkpoint, "--video", "synthetic")
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
