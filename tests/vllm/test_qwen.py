"""Qwen and GLM served: what only they have."""

from __future__ import annotations

import pytest

from tests.adapters.tiny_qwen import END, START, VIDEO, words
from tests.vllm.engine import Engine, Request
from tests.vllm.qwen import CLIP, Qwen, video

QWEN = ["qwen2", "qwen2.5", "qwen3", "qwen3-moe", "qwen3.5"]
every = pytest.mark.parametrize("family", [*QWEN, "glm4.1", "glm4.6"], indirect=True)


@pytest.mark.parametrize("family", QWEN, indirect=True)
def test_a_video_needs_text_behind_it(family: Qwen, served: Engine) -> None:
    """A video's last token places what follows, but may be dropped; Qwen3-VL ends videos with a word of its own."""
    bare = Request([*words(1, 2), START, VIDEO], (video(1),))
    adjacent = Request([START, VIDEO, VIDEO, END], (video(1), video(2)))
    for request in (bare, adjacent):
        if family.kind.startswith("qwen3"):
            family.check(request, *served.answer(request))
        else:
            with pytest.raises(ValueError, match="must be followed by text"):
                served.answer(request)


@every
def test_a_video_of_too_small_frames(family: Qwen, served: Engine) -> None:
    with pytest.raises(ValueError, match="K = 0"):
        served.answer(Request(CLIP, (video(1, 8, (8, 16)),)))


@every
def test_what_vllm_warms_up_with_is_processed(family: Qwen, served: Engine) -> None:
    """vLLM itself reports only that its warm-up failed, not why."""
    processor = served.llm.llm_engine.renderer.mm_processor
    counts = {"image": 1, "video": 1 if family.is_glm else 2}
    made = processor.get_dummy_mm_inputs(counts)["mm_placeholders"]
    assert {name: len(ranges) for name, ranges in made.items()} == counts
