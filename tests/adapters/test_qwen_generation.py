"""`generate` of a pruned Qwen-VL or one of its kin, every way there is, against the independent computation."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from tests.adapters import qwen_case, qwen_independent, tiny, tiny_qwen
from tests.adapters.qwen_case import GREEDY, NEW, Case, case_of
from tests.adapters.tiny_qwen import WIDE, Prompt, film, inputs_of, words

# So many words after a film that the text's positions exceed the film's. Otherwise `generate` and a loop over `forward`
# count the next position differently (`test_qwen_upstream`).
LONG = 24


@pytest.fixture(params=qwen_case.main_cases())
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Case:
    return case_of(*request.param, monkeypatch)


CACHES = {"dynamic": {}, "static": {"cache_implementation": "static"}, "none": {"use_cache": False}}


@pytest.mark.parametrize("cache", CACHES)
def test_one_row(case: Case, cache: str) -> None:
    prompt = case.video_prompt(3)
    case.check_generated(case.model.generate(**inputs_of(prompt), **GREEDY, **CACHES[cache]), 0, prompt)


@pytest.mark.parametrize("kind", qwen_case.KIN)
def test_one_row_of_their_kin(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(kind, "sdpa", monkeypatch)
    prompts = [case.video_prompt(3), case.video_prompt(6, before=11, after=2, grid=WIDE), case.text(9, 30)]
    for cache in CACHES.values():
        out = case.model.generate(**inputs_of(*prompts), **GREEDY, **cache)
        for row, prompt in enumerate(prompts):
            case.check_generated(out, row, prompt)


@pytest.mark.parametrize("cache", CACHES)
def test_left_padded_batch_with_rows_of_text(case: Case, cache: str) -> None:
    prompts = [
        case.video_prompt(5),
        case.video_prompt(6, before=11, after=2, grid=WIDE),
        case.text(9, 30),
        case.text(10, 250),
    ]
    out = case.model.generate(**inputs_of(*prompts), **GREEDY, **CACHES[cache])
    for row, prompt in enumerate(prompts):
        case.check_generated(out, row, prompt)


@pytest.mark.parametrize("cache", CACHES)
def test_rows_of_one_length_that_keep_different_numbers(case: Case, cache: str) -> None:
    """`generate` drops a mask of ones, which would not cover the padding that pruning adds."""
    prompt = case.video_prompt(5)
    prompts = [prompt, case.text(4, len(prompt.ids))]
    out = case.model.generate(**inputs_of(*prompts), **GREEDY, **CACHES[cache])
    for row, one in enumerate(prompts):
        case.check_generated(out, row, one)


def test_two_videos_of_two_resolutions_in_a_prompt(case: Case) -> None:
    prompt = case.prompt(words(1, 3), film(7), words(2, 5), film(8, WIDE), words(3, 4))
    case.check_generated(case.model.generate(**inputs_of(prompt), **GREEDY), 0, prompt)


def test_image_and_video(case: Case) -> None:
    prompt = case.prompt(words(1, 3), film(20, (1, 4, 6)), words(2, 2), film(4), words(3, 6))
    case.check_generated(case.model.generate(**inputs_of(prompt), **GREEDY), 0, prompt)


@pytest.mark.parametrize("cache", CACHES)
def test_text_only_is_untouched(case: Case, cache: str) -> None:
    if case.model.config._attn_implementation.startswith("flash"):
        pytest.skip("the twin takes explicit masks")
    inputs = inputs_of(case.text(1, 20), case.text(2, 12))
    ours, theirs = (one.generate(**inputs, **GREEDY, **CACHES[cache]) for one in (case.model, case.twin))
    assert torch.equal(ours.sequences, theirs.sequences)
    assert torch.equal(torch.stack(ours.logits), torch.stack(theirs.logits))


@pytest.mark.skipif(
    not hasattr(tiny.transformers.generation.utils, "_slice_mm_encoder_output"),
    reason="this version of transformers cannot split a prompt with a video into chunks",
)
@pytest.mark.parametrize("chunk", [13, 40])
def test_prefill_in_chunks(case: Case, chunk: int) -> None:
    """Some chunks hold no kept token."""
    prompt = case.video_prompt(3)

    def run() -> Any:
        return case.model.generate(**inputs_of(prompt), **GREEDY, prefill_chunk_size=chunk)

    case.check_generated(run(), 0, prompt)


def beam_search(case: Case, prompt: Prompt, beams: int, count: int) -> list[int]:
    """Plain beam search without an end token, by the independent computation."""
    start = qwen_independent.embedded(case.kind, case.twin, prompt, case.hyperparameters)
    hypotheses: list[tuple[float, list[int], Any]] = [(0.0, [], start)]
    for _ in range(count):
        candidates = []
        for score, ids, row in hypotheses:
            best = qwen_independent.decoded(case.twin, row)[-1].log_softmax(0).topk(beams)
            candidates += [
                (score + value, [*ids, token], row)
                for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
        best_of_all = sorted(candidates, key=lambda one: one[0], reverse=True)[:beams]
        hypotheses = [
            (score, ids, qwen_independent.extended(case.twin, row, torch.tensor(ids[-1])))
            for score, ids, row in best_of_all
        ]
    return hypotheses[0][1]


@pytest.mark.parametrize("cache", CACHES)
def test_beams(case: Case, cache: str) -> None:
    prompts = [case.video_prompt(5), case.video_prompt(6, before=9, grid=WIDE)]
    out = case.model.generate(**inputs_of(*prompts), max_new_tokens=4, num_beams=3, do_sample=False, **CACHES[cache])
    for row, prompt in enumerate(prompts):
        assert out[row, -4:].tolist() == beam_search(case, prompt, 3, 4)


def test_several_returned_sequences_are_those_of_one(case: Case) -> None:
    inputs = inputs_of(case.video_prompt(5), case.video_prompt(6, grid=WIDE))
    torch.manual_seed(0)
    options = GREEDY | {"max_new_tokens": 1}
    together = case.model.generate(**inputs, **(options | {"do_sample": True, "num_return_sequences": 3}))
    alone = case.model.generate(**inputs, **options)
    case.check(together.logits[0], alone.logits[0].repeat_interleave(3, 0))


def continued(case: Case, prompt: Prompt, out: Any, *parts: Any) -> Prompt:
    new = out.sequences[0, len(prompt.ids) :].tolist()
    return prompt.then(new, *parts, kind=case.kind)


@pytest.mark.parametrize("only_new", [False, True], ids=["whole conversation", "new tokens only"])
def test_a_second_turn(case: Case, only_new: bool) -> None:
    first = case.video_prompt(3, after=LONG)
    out = case.model.generate(**inputs_of(first), **GREEDY)
    second = continued(case, first, out, words(8, 5))
    inputs = {key: value for key, value in inputs_of(second).items() if "pixel" not in key and "grid" not in key}
    if only_new:
        seen = out.past_key_values.get_seq_length()
        inputs = {key: value if key == "attention_mask" else value[:, seen:] for key, value in inputs.items()}
    again = case.model.generate(**inputs, past_key_values=out.past_key_values, **GREEDY)
    case.check_generated(again, 0, second)


def test_a_third_turn_of_a_padded_batch(case: Case) -> None:
    prompts = [case.video_prompt(5, after=LONG), case.text(10, 120)]
    inputs = inputs_of(*prompts)
    out = case.model.generate(**inputs, **GREEDY)
    mask = inputs["attention_mask"]
    for turn in range(2):
        more = torch.tensor([words(20 + turn, 4), words(30 + turn, 4)])
        sequences = torch.cat([out.sequences, more], dim=1)
        mask = torch.cat([mask, mask.new_ones(2, sequences.shape[1] - mask.shape[1])], dim=1)
        out = case.model.generate(
            input_ids=sequences, attention_mask=mask, past_key_values=out.past_key_values, **GREEDY
        )
        for row, prompt in enumerate(prompts):
            new = sequences[row][mask[row].bool()].tolist()[len(prompt.ids) :]
            case.check_generated(out, row, prompt.then(new, kind=case.kind))


def test_a_second_turn_with_a_new_video(case: Case) -> None:
    """The caller gives positions: no version of transformers counts them right by itself (`test_qwen_upstream`)."""
    first = case.video_prompt(3, after=LONG)
    cache = case.model(**inputs_of(first), use_cache=True).past_key_values
    second = first.then(words(8, 5), film(11, WIDE), words(9, 3), kind=case.kind)
    new = inputs_of(second.only_after(first))
    positions = qwen_independent.positions(tiny_qwen.KINDS[case.kind], second)
    new.pop("attention_mask")
    logits = case.model(**new, past_key_values=cache, position_ids=positions[:, None, len(first.ids) :]).logits[0]
    row = qwen_independent.embedded(case.kind, case.twin, second, case.hyperparameters)
    is_new = row.places >= len(first.ids)
    ours = logits[row.places[is_new] - len(first.ids)]
    case.check(ours, qwen_independent.decoded(case.twin, row)[is_new])


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_a_copied_cache_serves_several_questions(case: Case, copy_of: Any) -> None:
    first = case.video_prompt(3, after=LONG)
    cache = case.model(**inputs_of(first), use_cache=True).past_key_values
    for seed in (8, 9):
        question = first.then(words(seed, 5), kind=case.kind)
        inputs = inputs_of(question)
        out = case.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            past_key_values=copy_of(cache),
            **GREEDY,
        )
        case.check_generated(out, 0, question)


def test_a_cropped_cache_serves_several_questions(case: Case) -> None:
    if case.kind == "qwen3.5":
        pytest.skip("transformers cannot crop a state")
    first = case.video_prompt(3, after=LONG)
    cache = case.model(**inputs_of(first), use_cache=True).past_key_values
    for seed in (8, 9):
        question = first.without_last(3).then(words(seed, 5), kind=case.kind)
        cache.crop(len(first.ids) - 3 - cache.get_seq_length())
        inputs = inputs_of(question)
        out = case.model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], past_key_values=cache, **GREEDY
        )
        case.check_generated(out, 0, question)
    with pytest.raises(ValueError, match="crop must not remove a pruned video token"):
        cache.crop(20 - cache.get_seq_length())


def test_prompt_lookup(case: Case) -> None:
    if case.kind == "qwen3.5":
        pytest.skip("transformers cannot crop a state")
    some = words(5, 6)
    prompt = case.prompt(film(3), some * 4)
    out = case.model.generate(**inputs_of(prompt), prompt_lookup_num_tokens=3, **(GREEDY | {"max_new_tokens": 12}))
    expected, _ = qwen_independent.generated(case.kind, case.twin, prompt, case.hyperparameters, 12)
    assert out.sequences[0, -12:].tolist() == expected


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_loop_of_the_user(case: Case, use_cache: bool) -> None:
    """A loop over `forward` without a mask; positions are left to the model."""
    prompt = case.video_prompt(3, after=LONG)
    expected, _ = qwen_independent.generated(case.kind, case.twin, prompt, case.hyperparameters, NEW)
    inputs = inputs_of(prompt)
    del inputs["attention_mask"]
    out = case.model(**inputs, use_cache=use_cache)
    found = []
    for _ in range(NEW):
        token = out.logits[:, -1:].argmax(-1)
        found.append(token.item())
        if use_cache:
            out = case.model(input_ids=token, past_key_values=out.past_key_values)
        else:
            inputs["input_ids"] = torch.cat([inputs["input_ids"], token], dim=1)
            inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 1))
            out = case.model(**inputs, use_cache=False)
    assert found == expected
