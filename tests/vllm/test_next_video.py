"""LLaVA-NeXT-Video served: what only it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastvid_kernels.vision import ATTENTION_SUBSTITUTES
from fastvid_kernels.vllm import processing
from tests.adapters import tiny, tiny_next_video
from tests.adapters.tiny import VIDEO
from tests.vllm import engine
from tests.vllm.engine import Engine, Request
from tests.vllm.llava import KEPT_A_FRAME, video, words
from tests.vllm.next_video import NextVideo

here = pytest.mark.parametrize("family", ["next-video"], indirect=True)


@here
def test_the_prompt_holds_the_kept_tokens(family: NextVideo, served: Engine) -> None:
    request = family.requests()["long"]
    (answer,) = served.answer(request)
    assert answer.prompt == len(request.ids) - 1 + 32 * KEPT_A_FRAME


@here
def test_a_video_needs_text_behind_it(family: NextVideo, served: Engine) -> None:
    with pytest.raises(ValueError, match="must be followed by text"):
        served.answer(Request([*words(1, 3), VIDEO], (video(1),)))


@here
def test_positions_that_bfloat16_does_not_have(family: NextVideo) -> None:
    request = Request([*words(20, 9), VIDEO, *words(21, 10)], (video(22, frames=64),))
    with engine.running(family.checkpoint, **family.settings(), dtype="bfloat16") as running:
        kept, given = running.watch()
        (answer,) = running.answer(request, new=1)
    assert answer.prompt == 9 + 64 * KEPT_A_FRAME + 10
    after = 9 + 64 * tiny.TOKENS_PER_FRAME
    expected = torch.cat([torch.arange(9), 9 + kept[0], torch.arange(after, after + 10)])
    assert torch.equal(given[0][:, : answer.prompt], expected.expand(3, -1))


@here
def test_what_vllm_warms_up_with_has_positions(family: NextVideo, monkeypatch: pytest.MonkeyPatch) -> None:
    """512 tokens would be 85 frames, whose dropped tokens need more positions than the rotary table has.

    vLLM refuses what takes more tokens than its warm-up, if that is more than it takes at once.
    """
    short = {"hf_overrides": {"text_config": {"max_position_embeddings": 512}}, "max_model_len": 512}
    short["max_num_batched_tokens"] = 400
    warnings: list[tuple[Any, ...]] = []
    monkeypatch.setattr(processing.logger, "warning_once", lambda *what: warnings.append(what))
    with engine.running(family.checkpoint, **family.settings(), **short) as running:
        processor = running.llm.llm_engine.renderer.mm_processor
        (made,) = processor.get_dummy_mm_inputs({"video": 1})["mm_placeholders"]["video"]
        # There are 4 times 512 positions, of which 512 are for a prompt's own tokens. A frame drops 19 tokens.
        assert made.length == 80 * KEPT_A_FRAME
        family.check(request := family.short(1), *running.answer(request))
        assert not warnings
        request = Request([VIDEO, *words(1, 3)], (video(1, frames=80),))
        family.check(request, *running.answer(request))
        assert [one[1] for one in warnings] == [512]
        with pytest.raises(ValueError, match="got 1539 positions of dropped tokens: lower --max-model-len"):
            running.answer(Request([VIDEO, *words(1, 3)], (video(1, frames=81),)))


@pytest.mark.parametrize(
    "settings",
    [
        {"vision_feature_layer": -1},
        {"vision_feature_layer": 2},
        {"spatial_pool_mode": "max"},
    ],
    ids=str,
)
def test_other_settings_of_the_model(settings: dict[str, Any], tmp_path: Path) -> None:
    family = NextVideo(tmp_path, **settings)
    with engine.running(family.checkpoint, **family.settings()) as running:
        for request in (family.requests()["video"], family.short(3)):
            family.check(request, *running.answer(request))


def test_a_mistral_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM compiles a class of its own for it."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    family = NextVideo(tmp_path / "model", text={"model_type": "mistral", "sliding_window": None})
    with engine.running(family.checkpoint, **family.settings(), enforce_eager=False) as running:
        assert type(running.model.language_model).__name__ == "MistralForCausalLM"
        family.check(request := family.requests()["video"], *running.answer(request))


@here
@pytest.mark.parametrize("name", ["uniform", "norm"])
def test_a_substitute_chosen_by_name(family: NextVideo, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def substitute(twin: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
        states = twin.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        return ATTENTION_SUBSTITUTES[name](states[twin.config.vision_feature_layer][:, 1:]), None

    monkeypatch.setattr(tiny_next_video, "attention_and_features", substitute)
    with engine.running(family.checkpoint, **family.settings(attention=name)) as running:
        family.check(request := family.requests()["video"], *running.answer(request))


@here
@pytest.mark.parametrize(
    ("own", "asked", "message"),
    [
        ({}, {"video_pruning_rate": 0.99}, "K = 0"),
        ({"siglip": "somewhere"}, {}, "siglip cannot be used with LlavaNextVideoForConditionalGeneration"),
        ({"attention": "mean-key"}, {}, "attention must be one of 'cls', .* got 'mean-key'"),
        ({}, {"hf_overrides": {"vision_feature_select_strategy": "full"}}, "must be 'default', got 'full'"),
        ({}, {"hf_overrides": {"vision_feature_layer": [-1, -2]}}, "vision_feature_layer of the model must be"),
        (
            {},
            {"hf_overrides": {"text_config": {"model_type": "mistral", "sliding_window": 64}}},
            "must have no sliding window with fastvid, .* got sliding_window 64",
        ),
    ],
)
def test_what_cannot_work_is_refused_at_start_up(
    family: NextVideo, own: dict[str, Any], asked: dict[str, Any], message: str
) -> None:
    family.check_refused(message, own, asked)
