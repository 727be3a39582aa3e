"""LLaVA-OneVision served: what only it has."""

from __future__ import annotations

import pytest
import torch

from tests.adapters import tiny
from tests.adapters.tiny import VIDEO
from tests.vllm import engine
from tests.vllm.engine import Engine, Request
from tests.vllm.family import BEHIND
from tests.vllm.llava import KEPT_A_FRAME, Llava, video, words

pytestmark = pytest.mark.parametrize("family", ["llava"], indirect=True)


def test_the_prompt_holds_the_kept_tokens(family: Llava, served: Engine) -> None:
    request = family.requests()["long"]
    (answer,) = served.answer(request)
    assert answer.prompt == len(request.ids) - 1 + 32 * KEPT_A_FRAME + 1
    assert request.ids.index(VIDEO) == len(request.ids) - 1 - BEHIND


def test_the_tower_sees_a_long_video_in_parts(family: Llava, served: Engine) -> None:
    given: list[int] = []
    handle = served.model.vision_tower.register_forward_pre_hook(lambda _, args: given.append(len(args[0])))
    served.forget()
    family.check(request := Request([*words(1, 3), VIDEO, *words(2, 4)], (video(42, 70),)), *served.answer(request))
    handle.remove()
    assert given == [32, 32, 6]


def test_a_placeholder_in_the_text_before_a_video_is_refused(family: Llava, served: Engine) -> None:
    """It would be taken for the video's. The same video can be asked about in another way."""
    with pytest.raises(ValueError, match=r"must not contain a placeholder of its own .*, got token 121 at 3"):
        served.answer(Request([*words(1, 3), tiny.IMAGE, VIDEO, *words(2, 4)], (video(41),)))
    request = Request([*words(1, 3), VIDEO, *words(2, 4)], (video(41),))
    family.check(request, *served.answer(request))


def test_a_placeholder_in_the_text_behind_a_video(family: Llava, served: Engine) -> None:
    (answer,) = served.answer(Request([*words(1, 3), VIDEO, *words(2, 4), tiny.IMAGE, 5], (video(1),)))
    assert answer.prompt == 3 + tiny.FRAMES * KEPT_A_FRAME + 1 + 6


def test_a_video_s_embeddings_are_refused(family: Llava, served: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM allows them wherever a connector for caches may need them."""
    multimodal = served.llm.llm_engine.model_config.multimodal_config
    monkeypatch.setattr(multimodal, "enable_mm_embeds", True)
    with pytest.raises(ValueError, match="a video must be given as frames"):
        served.answer(Request([VIDEO, *words(1, 3)], (torch.zeros(12, 128),)))


def test_a_video_that_needs_more_positions_than_there_are(family: Llava) -> None:
    short = {"hf_overrides": {"text_config": {"max_position_embeddings": 512}}, "max_model_len": 512}
    with engine.running(family.checkpoint, **family.settings(), **short) as running:
        # 80 frames leave 16 of 4 times 512 positions, beside the 512 of the prompt's own tokens.
        request = Request([VIDEO, *words(1, 3)], (video(1, frames=80),))
        family.check(request, *running.answer(request))
        with pytest.raises(ValueError, match="got 1539 positions of dropped tokens: lower --max-model-len"):
            running.answer(Request([VIDEO, *words(1, 3)], (video(1, frames=81),)))


def test_positions_that_bfloat16_does_not_have(family: Llava) -> None:
    """Pruning leaves 404 of the prompt's 1,619 entries, in an engine that takes 1,024."""
    request = Request([*words(20, 9), VIDEO, *words(21, 10)], (video(22, frames=64),))
    with engine.running(family.checkpoint, **family.settings(), dtype="bfloat16") as running:
        kept, given = running.watch()
        (answer,) = running.answer(request, new=1)
    assert answer.prompt == 404
    tokens = 64 * tiny.TOKENS_PER_FRAME
    after = 9 + tokens + 1
    expected = torch.cat([torch.arange(9), 9 + kept[0], torch.arange(9 + tokens, after + 10)])
    assert torch.equal(given[0][:, :404], expected.expand(3, -1))
    # bfloat16 itself was seen to cost 6e-3.
    assert answer.worst(*family.expected(request, new=1)) <= 0.05
