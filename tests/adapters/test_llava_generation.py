"""What a pruned llava model generates, against the independent computation."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch

from fastvid_kernels.adapters import apply_fastvid
from tests.adapters import tiny, tiny_llava
from tests.adapters.tiny_llava import IMAGE_TOKEN, LAYOUTS, Prompt, generation_inputs_of, text_prompt, video_prompt

NEW = 5
GREEDY: dict[str, Any] = {
    "max_new_tokens": NEW,
    "do_sample": False,
    "return_dict_in_generate": True,
    "output_logits": True,
}


@pytest.fixture(params=LAYOUTS)
def newline(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def twin(llava: Any, newline: str) -> Any:
    return tiny_llava.llava_qwen(llava, newline)


@pytest.fixture
def patched(llava: Any, newline: str, siglip_directory: Any) -> Any:
    model = tiny_llava.llava_qwen(llava, newline)
    apply_fastvid(model, siglip=siglip_directory, **tiny_llava.HYPERPARAMETERS)
    return model


def check_generated(out: Any, row: int, prompt: Prompt, twin: Any, head: Any) -> None:
    expected, logits = tiny_llava.generated(twin, head, prompt, NEW)
    assert out.sequences[row].tolist() == expected
    found = torch.stack([step[row] for step in out.logits])
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-5 * logits.abs().max().item())


def test_one_row(patched: Any, twin: Any, head: Any) -> None:
    prompt = video_prompt(3)
    check_generated(patched.generate(**generation_inputs_of(prompt), **GREEDY), 0, prompt, twin, head)


@pytest.mark.parametrize("newline", ["no_token"], indirect=True)
def test_rows_that_end_with_a_video(patched: Any, twin: Any, head: Any) -> None:
    """The next token is predicted from the last kept token, not from a dropped one."""

    def ends_with_a_dropped_token(prompt: Prompt) -> bool:
        places, all_places = (
            tiny_llava.embedded(twin, head, prompt, hyperparameters)[1]
            for hyperparameters in (tiny_llava.HYPERPARAMETERS, {"retention_ratio": 1.0})
        )
        return bool(places[-1] < all_places[-1])

    videos = (video_prompt(seed, before=4 + seed, after=0) for seed in range(100))
    first, second = islice(filter(ends_with_a_dropped_token, videos), 2)
    prompts = [first, text_prompt(9, 30), second]
    out = patched.generate(**generation_inputs_of(*prompts), **GREEDY)
    for row, prompt in enumerate(prompts):
        check_generated(out, row, prompt, twin, head)


def test_a_row_without_a_mask(patched: Any, twin: Any, head: Any) -> None:
    prompt = video_prompt(3)
    inputs = generation_inputs_of(prompt)
    del inputs["attention_mask"]
    check_generated(patched.generate(**inputs, **GREEDY), 0, prompt, twin, head)


def test_a_batch_of_videos_and_text(patched: Any, twin: Any, head: Any) -> None:
    prompts = [video_prompt(5), text_prompt(9, 30), video_prompt(6, before=11), text_prompt(1, 200)]
    out = patched.generate(**generation_inputs_of(*prompts), **GREEDY)
    for row, prompt in enumerate(prompts):
        check_generated(out, row, prompt, twin, head)


def test_two_videos_and_an_image(patched: Any, twin: Any, head: Any) -> None:
    ids = [*tiny.words(1, 3), IMAGE_TOKEN, *tiny.words(2, 5), IMAGE_TOKEN, IMAGE_TOKEN, *tiny.words(3, 4)]
    visual = (tiny_llava.film(7), tiny_llava.film(4, 1), tiny_llava.film(8))
    prompt = Prompt(ids, visual, ("video", "image", "video"))
    check_generated(patched.generate(**generation_inputs_of(prompt), **GREEDY), 0, prompt, twin, head)


@pytest.mark.parametrize("newline", ["grid"], indirect=True)
def test_text_alone_is_untouched(patched: Any, twin: Any) -> None:
    inputs = torch.tensor([tiny.words(1, 20), tiny.words(2, 20)])
    ours, theirs = (model.generate(inputs, **GREEDY) for model in (patched, twin))
    assert torch.equal(ours.sequences, theirs.sequences)
    assert torch.equal(torch.stack(ours.logits), torch.stack(theirs.logits))


@pytest.mark.parametrize("newline", ["grid"], indirect=True)
def test_retention_one_gives_the_same_bits(llava: Any, twin: Any, siglip_directory: Any) -> None:
    model = tiny_llava.llava_qwen(llava, "grid")
    apply_fastvid(model, siglip=siglip_directory, retention_ratio=1.0)
    inputs = generation_inputs_of(video_prompt(5), text_prompt(9, 30))
    ours, theirs = (one.generate(**inputs, **GREEDY) for one in (model, twin))
    assert torch.equal(torch.stack(ours.logits), torch.stack(theirs.logits))


def beam_search(model: Any, head: Any, prompt: Prompt, beams: int) -> list[int]:
    """Plain beam search without an end token, by the independent computation."""
    hypotheses: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(NEW):
        candidates = []
        for score, ids in hypotheses:
            row = Prompt(prompt.ids + ids, prompt.visual, prompt.kinds)
            best = tiny_llava.logits(model, head, row)[-1].log_softmax(0).topk(beams)
            candidates += [
                (score + value, [*ids, token])
                for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
        hypotheses = sorted(candidates, reverse=True)[:beams]
    return hypotheses[0][1]


@pytest.mark.parametrize("newline", ["one_token", "grid"], indirect=True)
def test_beams(patched: Any, twin: Any, head: Any) -> None:
    prompts = [video_prompt(5), text_prompt(6, 40)]
    out = patched.generate(**generation_inputs_of(*prompts), max_new_tokens=NEW, num_beams=3, do_sample=False)
    for row, prompt in enumerate(prompts):
        assert out[row].tolist() == beam_search(twin, head, prompt, 3)


@pytest.mark.parametrize("newline", ["one_token", "grid"], indirect=True)
@pytest.mark.parametrize("with_positions", [True, False])
def test_a_loop_of_the_user(patched: Any, twin: Any, head: Any, with_positions: bool) -> None:
    """A loop over `forward` without a mask; positions are given, or left to the model."""
    prompt = video_prompt(3)
    expected, _ = tiny_llava.generated(twin, head, prompt, NEW)
    inputs = tiny_llava.inputs_of(prompt)
    del inputs["attention_mask"]
    out = patched(**inputs, use_cache=True)
    length = out.logits.shape[1]
    found = []
    for step in range(NEW):
        token = out.logits[:, -1:].argmax(-1)
        found.append(token.item())
        positions = {"position_ids": torch.tensor([[length + step]])} if with_positions else {}
        out = patched(input_ids=token, past_key_values=out.past_key_values, use_cache=True, **positions)
    assert found == expected


@pytest.mark.parametrize("newline", ["grid"], indirect=True)
def test_a_cropped_cache_serves_several_endings(patched: Any, twin: Any, head: Any) -> None:
    prompt = video_prompt(3)
    cache = patched(**tiny_llava.inputs_of(prompt), use_cache=True).past_key_values
    for seed in (8, 9):
        ending = tiny.words(seed, 3)
        cache.crop(-3)
        logits = patched(input_ids=torch.tensor([ending]), past_key_values=cache, use_cache=True).logits[0]
        expected = tiny_llava.logits(twin, head, Prompt(prompt.ids[:-3] + ending, prompt.visual, prompt.kinds))[-3:]
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
