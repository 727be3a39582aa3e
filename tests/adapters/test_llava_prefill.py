"""One forward pass of a pruned llava model, against the independent computation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastvid_kernels.adapters import apply_fastvid, pruner
from tests.adapters import tiny, tiny_llava
from tests.adapters.tiny_llava import IMAGE_TOKEN, LAYOUTS, Prompt, inputs_of, text_prompt, video_prompt

TOLERANCE = 1e-5


@pytest.fixture
def pruned_and_twin(llava: Any, siglip_directory: Any) -> Any:
    """A pruning model and an unpatched one of the same weights."""

    def make(newline: str, hyperparameters: Any = tiny_llava.HYPERPARAMETERS, **settings: Any) -> tuple[Any, Any]:
        model, twin = (tiny_llava.llava_qwen(llava, newline, **settings) for _ in range(2))
        apply_fastvid(model, siglip=siglip_directory, **hyperparameters)
        return model, twin

    return make


def check_row(logits: Tensor, prompt: Prompt, twin: Any, head: Any) -> None:
    """Check that `logits [T, V]` of a row without padding are the independent ones at kept tokens."""
    _, places = tiny_llava.embedded(twin, head, prompt, tiny_llava.HYPERPARAMETERS)
    expected = tiny_llava.logits(twin, head, prompt)
    torch.testing.assert_close(logits[places], expected, rtol=0, atol=TOLERANCE * expected.abs().max().item())


def check_batch(model: Any, twin: Any, head: Any, *prompts: Prompt) -> None:
    """Check every row of a left-padded batch; given any positions, llava counts each row's own tokens."""
    inputs = inputs_of(*prompts)
    inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1]).expand(len(prompts), -1)
    lengths = [unpatched_length(twin, prompt) for prompt in prompts]
    logits = model(**inputs).logits
    assert logits.shape[1] == max(lengths), "logits keep the shape that they have without pruning"
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        check_row(logits[row, -length:], prompt, twin, head)


def unpatched_length(twin: Any, prompt: Prompt) -> int:
    return int(twin(**inputs_of(prompt)).logits.shape[1])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("newline", LAYOUTS)
def test_one_row(pruned_and_twin: Any, head: Any, newline: str, attention: str) -> None:
    model, twin = pruned_and_twin(newline, attention=attention)
    prompt = video_prompt(3)
    for use_cache in (True, False):
        check_row(model(**inputs_of(prompt), use_cache=use_cache).logits[0], prompt, twin, head)


@pytest.mark.parametrize(("newline", "row"), [("grid", 5), ("frame", 17)])
def test_some_newlines_are_dropped(llava: Any, head: Any, newline: str, row: int) -> None:
    """The video of the other tests has both: rows of the grid, or frames, with kept tokens, and others without any."""
    twin = tiny_llava.llava_qwen(llava, newline)
    stream = tiny_llava.pruned_video(twin, head, tiny_llava.film(3), tiny_llava.HYPERPARAMETERS)
    assert {newline is None for newline in stream[row - 1 :: row]} == {True, False}


@pytest.mark.parametrize("newline", LAYOUTS)
def test_a_batch_of_videos_and_text(pruned_and_twin: Any, head: Any, newline: str) -> None:
    model, twin = pruned_and_twin(newline)
    check_batch(model, twin, head, video_prompt(5), text_prompt(9, 30), video_prompt(6, before=11), text_prompt(1, 200))


@pytest.mark.parametrize("newline", LAYOUTS)
def test_two_videos_of_different_lengths_in_a_prompt(pruned_and_twin: Any, head: Any, newline: str) -> None:
    model, twin = pruned_and_twin(newline)
    ids = [*tiny.words(1, 3), IMAGE_TOKEN, *tiny.words(2, 5), IMAGE_TOKEN, *tiny.words(3, 4)]
    prompt = Prompt(ids, (tiny_llava.film(7), tiny_llava.film(8, frames=5)), ("video", "video"))
    check_row(model(**inputs_of(prompt)).logits[0], prompt, twin, head)


@pytest.mark.parametrize("crops", [1, 5], ids=["one crop", "base and four crops"])
@pytest.mark.parametrize("newline", ["one_token", "grid"])
def test_images_around_a_video(pruned_and_twin: Any, head: Any, newline: str, crops: int) -> None:
    model, twin = pruned_and_twin(newline)
    image = tiny_llava.film(4, crops)
    ids = [*tiny.words(1, 3), IMAGE_TOKEN, *tiny.words(2, 5), IMAGE_TOKEN, IMAGE_TOKEN, *tiny.words(3, 4)]
    prompt = Prompt(ids, (image, tiny_llava.film(8), image), ("image", "video", "image"))
    sizes = [(tiny_llava.PIXELS, tiny_llava.PIXELS)] * 3
    check_row(model(**inputs_of(prompt), image_sizes=sizes).logits[0], prompt, twin, head)


@pytest.mark.parametrize("newline", LAYOUTS)
def test_images_and_text_are_untouched(pruned_and_twin: Any, newline: str) -> None:
    model, twin = pruned_and_twin(newline)
    image = Prompt([*tiny.words(1, 3), IMAGE_TOKEN, *tiny.words(2, 5)], (tiny_llava.film(4, 1),), ("image",))
    inputs = inputs_of(image, text_prompt(3, 20))
    assert torch.equal(model(**inputs).logits, twin(**inputs).logits)


def test_text_alone_is_untouched(pruned_and_twin: Any) -> None:
    model, twin = pruned_and_twin("grid")
    inputs = tiny.batch([tiny.words(1, 20), tiny.words(2, 12)])
    assert torch.equal(model(**inputs).logits, twin(**inputs).logits)


@pytest.mark.parametrize("newline", LAYOUTS)
def test_retention_one_gives_the_same_bits(pruned_and_twin: Any, newline: str) -> None:
    model, twin = pruned_and_twin(newline, {"retention_ratio": 1.0})
    inputs = inputs_of(video_prompt(1), video_prompt(2, before=9), text_prompt(3, 17))
    assert torch.equal(model(**inputs).logits, twin(**inputs).logits)


def test_features_without_newlines(pruned_and_twin: Any, head: Any) -> None:
    """`mm_patch_merge_type="flat"` adds no newlines."""
    model, twin = pruned_and_twin("no_token", mm_patch_merge_type="flat")
    prompt = video_prompt(3)
    check_row(model(**inputs_of(prompt)).logits[0], prompt, twin, head)


def test_a_prompt_that_is_cut_off(pruned_and_twin: Any, head: Any) -> None:
    """llava cuts where it would without pruning, here within the second video; the last kept token gives the answer."""
    model, twin = pruned_and_twin("grid")
    ids = [*tiny.words(1, 3), IMAGE_TOKEN, *tiny.words(2, 5), IMAGE_TOKEN, *tiny.words(3, 4)]
    prompt = Prompt(ids, (tiny_llava.film(7), tiny_llava.film(8)), ("video", "video"))
    whole = model(**inputs_of(prompt)).logits[0]
    _, places = tiny_llava.embedded(twin, head, prompt, tiny_llava.HYPERPARAMETERS)
    dropped = sorted({*range(len(whole))} - {*places.tolist()})
    # Half of the dropped tokens are the second video's. This one is in its middle, and becomes the last of the prompt.
    last = dropped[len(dropped) * 3 // 4]
    model.config.tokenizer_model_max_length = last + 1
    cut = model(**inputs_of(prompt)).logits[0]
    assert len(cut) == last + 1
    survivors = places[places < last]
    expected = whole[: last + 1].index_copy(0, torch.tensor([last]), whole[survivors[-1:]])
    torch.testing.assert_close(cut, expected, rtol=0, atol=TOLERANCE * whole.abs().max().item())


def test_labels_give_the_loss_of_the_kept_text(pruned_and_twin: Any, head: Any) -> None:
    model, twin = pruned_and_twin("grid")
    prompt = video_prompt(8, after=12)
    inputs = inputs_of(prompt)
    labels = inputs["input_ids"].clone()
    labels[:, :-10] = -100
    loss = model(**inputs, labels=labels).loss
    expected = tiny_llava.logits(twin, head, prompt)[-11:-1]
    expected = torch.nn.functional.cross_entropy(expected, labels[0, -10:])
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


def test_a_tuple_instead_of_named_outputs(pruned_and_twin: Any, head: Any) -> None:
    model, twin = pruned_and_twin("one_token")
    prompt = video_prompt(8)
    check_row(model(**inputs_of(prompt), return_dict=False)[0][0], prompt, twin, head)


def test_every_video_takes_one_call_of_the_operator(pruned_and_twin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = pruned_and_twin("grid")
    calls: list[Any] = []
    original = pruner.prune
    monkeypatch.setattr(pruner, "prune", lambda *args, **kwargs: calls.append(args) or original(*args, **kwargs))
    model(**inputs_of(video_prompt(1), text_prompt(2, 9), video_prompt(3)))
    assert [len(tokens) for tokens, *_ in calls] == [tiny_llava.FRAMES] * 2
