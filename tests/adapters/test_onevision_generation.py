"""`generate` of a pruned LLaVA-OneVision, every way there is, against the independent computation."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.adapters import independent, tiny
from tests.adapters.independent import Prompt
from tests.adapters.test_onevision_prefill import inputs_of, video_prompt

NEW = 6
GREEDY = {
    "max_new_tokens": NEW,
    "do_sample": False,
    "output_logits": True,
    "return_dict_in_generate": True,
}


def check_generated(out: Any, row: int, prompt: Prompt, twin: Any, head: Any, count: int = NEW) -> None:
    """Check the tokens exactly, and the logits they were chosen from within a tolerance."""
    ids, logits = independent.generated(twin, head, prompt, tiny.HYPERPARAMETERS, count)
    assert out.sequences[row, -count:].tolist() == ids
    ours = torch.stack([step[row] for step in out.logits])
    torch.testing.assert_close(ours, logits, rtol=0, atol=1e-5 * logits.abs().max().item())


CACHES = {"dynamic": {}, "static": {"cache_implementation": "static"}, "none": {"use_cache": False}}


@pytest.mark.parametrize("cache", CACHES)
def test_one_row(patched: Any, twin: Any, head: Any, cache: str) -> None:
    prompt = video_prompt(3)
    check_generated(patched.generate(**inputs_of(prompt), **GREEDY, **CACHES[cache]), 0, prompt, twin, head)


@pytest.mark.parametrize("cache", CACHES)
def test_left_padded_batch_with_rows_of_text(patched: Any, twin: Any, head: Any, cache: str) -> None:
    text = Prompt(tiny.words(9, 30))
    prompts = [video_prompt(5), video_prompt(6, before=11, after=2), text, Prompt(tiny.words(10, 200))]
    out = patched.generate(**inputs_of(*prompts), **GREEDY, **CACHES[cache])
    for row, prompt in enumerate(prompts):
        check_generated(out, row, prompt, twin, head)


def test_text_decodes_with_masks_of_one_shape(patched: Any, unpatched: Any) -> None:
    """With a static cache, masks have the same shapes as without pruning: a compiled decoder is compiled once."""
    prompts = [Prompt(tiny.words(9, 30)), Prompt(tiny.words(10, 50))]

    def shapes_of(model: Any) -> list[Any]:
        seen = []

        def see(module: Any, args: Any, kwargs: Any) -> None:
            mask = kwargs["attention_mask"]
            seen.append([one.shape for one in (mask.values() if isinstance(mask, dict) else [mask])])

        hook = model.model.language_model.register_forward_pre_hook(see, with_kwargs=True)
        model.generate(**inputs_of(*prompts), **GREEDY, cache_implementation="static")
        hook.remove()
        return seen[1:]

    assert shapes_of(patched) == shapes_of(unpatched)


@pytest.mark.parametrize("cache", CACHES)
def test_rows_of_one_length_that_keep_different_numbers(patched: Any, twin: Any, head: Any, cache: str) -> None:
    """`generate` drops a mask of ones, which would not cover the padding that pruning adds."""
    prompt = video_prompt(5)
    prompts = [prompt, Prompt(tiny.words(4, len(prompt.ids)))]
    out = patched.generate(**inputs_of(*prompts), **GREEDY, **CACHES[cache])
    for row, one in enumerate(prompts):
        check_generated(out, row, one, twin, head)


def test_two_videos_in_a_prompt(patched: Any, twin: Any, head: Any) -> None:
    films = tiny.film(7, videos=2)
    ids = tiny.words(1, 3) + tiny.placeholders() + tiny.words(2, 5) + tiny.placeholders() + tiny.words(3, 4)
    prompt = Prompt(ids, (films[0], films[1]))
    check_generated(patched.generate(**inputs_of(prompt), **GREEDY), 0, prompt, twin, head)


@pytest.mark.parametrize("cache", CACHES)
def test_text_only_is_untouched(patched: Any, unpatched: Any, cache: str) -> None:
    inputs = tiny.batch([tiny.words(1, 20), tiny.words(2, 12)])
    ours, theirs = (one.generate(**inputs, **GREEDY, **CACHES[cache]) for one in (patched, unpatched))
    assert torch.equal(ours.sequences, theirs.sequences)
    assert torch.equal(torch.stack(ours.logits), torch.stack(theirs.logits))


@pytest.mark.skipif(
    not hasattr(tiny.transformers.generation.utils, "_slice_mm_encoder_output"),
    reason="this version of transformers cannot split a prompt with a video into chunks",
)
@pytest.mark.parametrize("chunk", [7, 40])
def test_prefill_in_chunks(patched: Any, twin: Any, head: Any, chunk: int) -> None:
    """Some chunks hold no kept token."""
    prompt = video_prompt(3)
    out = patched.generate(**inputs_of(prompt), **GREEDY, prefill_chunk_size=chunk)
    check_generated(out, 0, prompt, twin, head)


def beam_search(model: Any, head: Any, prompt: Prompt, beams: int, count: int) -> list[int]:
    """Plain beam search without an end token, by the independent computation."""
    hypotheses: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(count):
        candidates = []
        for score, ids in hypotheses:
            row = Prompt(prompt.ids + ids, prompt.videos)
            logits = independent.logits(model, head, row, tiny.HYPERPARAMETERS)[-1]
            best = logits.log_softmax(0).topk(beams)
            candidates += [
                (score + value, [*ids, token])
                for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
        hypotheses = sorted(candidates, reverse=True)[:beams]
    return hypotheses[0][1]


@pytest.mark.parametrize("cache", CACHES)
def test_beams(patched: Any, twin: Any, head: Any, cache: str) -> None:
    prompts = [video_prompt(5), video_prompt(6, before=9)]
    inputs = inputs_of(*prompts)
    out = patched.generate(**inputs, max_new_tokens=4, num_beams=3, do_sample=False, **CACHES[cache])
    for row, prompt in enumerate(prompts):
        assert out[row, -4:].tolist() == beam_search(twin, head, prompt, 3, 4)


def test_several_returned_sequences_are_those_of_one(patched: Any) -> None:
    inputs = inputs_of(video_prompt(5), video_prompt(6))
    torch.manual_seed(0)
    together = patched.generate(**inputs, max_new_tokens=1, do_sample=True, num_return_sequences=3, output_logits=True,
                                return_dict_in_generate=True)  # fmt: skip
    alone = patched.generate(**inputs, **(GREEDY | {"max_new_tokens": 1}))
    torch.testing.assert_close(together.logits[0], alone.logits[0].repeat_interleave(3, 0), rtol=0, atol=2e-5)


def continued(prompt: Prompt, out: Any, more: list[int], videos: tuple[Tensor, ...] = ()) -> Prompt:
    return Prompt(out.sequences[0].tolist() + more, prompt.videos + videos)


@pytest.mark.parametrize("only_new", [False, True], ids=["whole conversation", "new tokens only"])
@pytest.mark.parametrize("mask", [True, False], ids=["mask", "no mask"])
def test_a_second_turn(patched: Any, twin: Any, head: Any, only_new: bool, mask: bool) -> None:
    first = video_prompt(3)
    out = patched.generate(**inputs_of(first), **GREEDY)
    second = continued(first, out, tiny.words(8, 5))
    inputs = tiny.batch([second.ids])
    if only_new:
        if not mask:
            pytest.skip("without the mask, nobody can know how long the conversation is")
        inputs["input_ids"] = inputs["input_ids"][:, out.past_key_values.get_seq_length() :]
    if not mask:
        del inputs["attention_mask"]
    again = patched.generate(**inputs, past_key_values=out.past_key_values, **GREEDY)
    check_generated(again, 0, second, twin, head)


def test_a_second_turn_with_a_new_video(patched: Any, twin: Any, head: Any) -> None:
    first = video_prompt(3)
    out = patched.generate(**inputs_of(first), **GREEDY)
    new = tiny.film(11)[0]
    second = continued(first, out, [*tiny.words(8, 5), *tiny.placeholders(), *tiny.words(9, 3)], (new,))
    again = patched.generate(
        **tiny.batch([second.ids]), pixel_values_videos=new[None], past_key_values=out.past_key_values, **GREEDY
    )
    check_generated(again, 0, second, twin, head)


def test_a_video_after_a_turn_of_text(patched: Any, twin: Any, head: Any) -> None:
    first = Prompt(tiny.words(2, 9))
    out = patched.generate(**inputs_of(first), **GREEDY)
    new = tiny.film(11)[0]
    second = continued(first, out, [*tiny.words(8, 5), *tiny.placeholders(), *tiny.words(9, 3)], (new,))
    again = patched.generate(
        **tiny.batch([second.ids]), pixel_values_videos=new[None], past_key_values=out.past_key_values, **GREEDY
    )
    check_generated(again, 0, second, twin, head)


def test_a_third_turn_of_a_padded_batch(patched: Any, twin: Any, head: Any) -> None:
    prompts = [video_prompt(5), Prompt(tiny.words(10, 120))]
    inputs = inputs_of(*prompts)
    out = patched.generate(**inputs, **GREEDY)
    mask = inputs["attention_mask"]
    for turn in range(2):
        more = torch.tensor([tiny.words(20 + turn, 4), tiny.words(30 + turn, 4)])
        sequences = torch.cat([out.sequences, more], dim=1)
        mask = torch.cat([mask, mask.new_ones(2, sequences.shape[1] - mask.shape[1])], dim=1)
        out = patched.generate(input_ids=sequences, attention_mask=mask, past_key_values=out.past_key_values, **GREEDY)
        for row, prompt in enumerate(prompts):
            ids = sequences[row][mask[row].bool()].tolist()
            check_generated(out, row, Prompt(ids, prompt.videos), twin, head)


def test_second_turns_of_rows_that_kept_different_numbers(patched: Any, twin: Any, head: Any) -> None:
    """Only pruning pads rows here, and the second turn adds a video to each row."""
    first = video_prompt(5)
    prompts = [first, Prompt(tiny.words(4, len(first.ids)))]
    out = patched.generate(**inputs_of(*prompts), **GREEDY)
    new = tiny.film(11, videos=2)
    seconds = [
        Prompt(out.sequences[row].tolist() + tiny.placeholders() + tiny.words(row, 4), (*prompt.videos, new[row]))
        for row, prompt in enumerate(prompts)
    ]
    again = patched.generate(
        **tiny.batch([second.ids for second in seconds]),
        pixel_values_videos=new,
        past_key_values=out.past_key_values,
        **GREEDY,
    )
    for row, second in enumerate(seconds):
        check_generated(again, row, second, twin, head)


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_a_copied_cache_serves_several_questions(patched: Any, twin: Any, head: Any, copy_of: Any) -> None:
    first = video_prompt(3)
    cache = patched(**inputs_of(first), use_cache=True).past_key_values
    for seed in (8, 9):
        question = Prompt(first.ids + tiny.words(seed, 5), first.videos)
        out = patched.generate(**tiny.batch([question.ids]), past_key_values=copy_of(cache), **GREEDY)
        check_generated(out, 0, question, twin, head)


def test_a_cropped_cache_serves_several_questions(patched: Any, twin: Any, head: Any) -> None:
    first = video_prompt(3)
    cache = patched(**inputs_of(first), use_cache=True).past_key_values
    for seed in (8, 9):
        question = Prompt(first.ids[:-3] + tiny.words(seed, 5), first.videos)
        cache.crop(len(first.ids) - 3 - cache.get_seq_length())
        out = patched.generate(**tiny.batch([question.ids]), past_key_values=cache, **GREEDY)
        check_generated(out, 0, question, twin, head)
    with pytest.raises(ValueError, match="crop must not remove a pruned video token"):
        cache.crop(20 - cache.get_seq_length())


def test_a_cache_of_two_videos_can_be_cropped_after_the_second(patched: Any, twin: Any, head: Any) -> None:
    films = tiny.film(7, videos=2)
    first = Prompt(tiny.words(1, 3) + tiny.placeholders() + tiny.words(2, 5), (films[0],))
    cache = patched(**inputs_of(first), use_cache=True).past_key_values
    both = Prompt(first.ids + tiny.placeholders() + tiny.words(3, 9), (films[0], films[1]))
    out = patched.generate(
        **tiny.batch([both.ids]), pixel_values_videos=films[1][None], past_key_values=cache, **GREEDY
    )
    cache = out.past_key_values
    cache.crop(len(both.ids) - 6 - cache.get_seq_length())
    question = Prompt(both.ids[:-6] + tiny.words(8, 5), both.videos)
    out = patched.generate(**tiny.batch([question.ids]), past_key_values=cache, **GREEDY)
    check_generated(out, 0, question, twin, head)


def test_prompt_lookup(patched: Any, twin: Any, head: Any) -> None:
    words = tiny.words(5, 6)
    prompt = Prompt(tiny.placeholders() + words * 3, (tiny.film(3)[0],))
    out = patched.generate(**inputs_of(prompt), prompt_lookup_num_tokens=3, **(GREEDY | {"max_new_tokens": 12}))
    expected, _ = independent.generated(twin, head, prompt, tiny.HYPERPARAMETERS, 12)
    assert out.sequences[0, -12:].tolist() == expected


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("with_positions", [True, False])
def test_a_loop_of_the_user(patched: Any, twin: Any, head: Any, use_cache: bool, with_positions: bool) -> None:
    """A loop over `forward` without a mask; positions are given, or left to the model."""
    prompt = video_prompt(3)
    expected, _ = independent.generated(twin, head, prompt, tiny.HYPERPARAMETERS, NEW)
    ids = torch.tensor([prompt.ids])
    pixels = {"pixel_values_videos": prompt.videos[0][None]}
    out = patched(input_ids=ids, use_cache=use_cache, **pixels)
    found = []
    for step in range(NEW):
        token = out.logits[:, -1:].argmax(-1)
        found.append(token.item())
        if use_cache:
            positions = {"position_ids": torch.tensor([[len(prompt.ids) + step]])} if with_positions else {}
            out = patched(input_ids=token, past_key_values=out.past_key_values, **positions)
        else:
            ids = torch.cat([ids, token], dim=1)
            out = patched(input_ids=ids, use_cache=False, **pixels)
    assert found == expected
