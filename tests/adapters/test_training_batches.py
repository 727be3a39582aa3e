"""Training steps of whole batches: rows of video and of text, two videos in a prompt, padding; the llava package's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import reference
from fastvid_kernels.adapters import apply_fastvid
from tests.adapters import independent, qwen_independent, test_onevision_prefill, tiny, tiny_llava, tiny_qwen
from tests.adapters.qwen_case import case_of
from tests.adapters.test_training import ANSWER, check_gradients, prune_by_the_equations
from tests.adapters.tiny_qwen import WIDE


@pytest.fixture(autouse=True)
def gradients(no_gradients: Any) -> Iterator[None]:
    with torch.enable_grad():
        yield


def labels_of(inputs: dict[str, Any], rows: Sequence[Sequence[int]]) -> Tensor:
    """The last words of each row are what the model has to learn, wherever its padding is."""
    labels = torch.full_like(inputs["input_ids"], -100)
    for label, ids, mask in zip(labels, rows, inputs["attention_mask"], strict=True):
        end = int(mask.nonzero().max()) + 1
        label[end - ANSWER : end] = torch.tensor(ids[-ANSWER:])
    return labels


def loss_of(logits: Sequence[Tensor], rows: Sequence[Sequence[int]]) -> Tensor:
    """Of the last words of all rows, from each row's logits of its kept tokens."""
    words = torch.tensor([ids[-ANSWER:] for ids in rows]).flatten()
    return functional.cross_entropy(torch.cat([row[-ANSWER - 1 : -1] for row in logits]), words)


def positions_of(inputs: dict[str, Any]) -> Tensor:
    """Of each row's own tokens."""
    positions: Tensor = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return positions


def two_films() -> independent.Prompt:
    films = tiny.film(7, videos=2)
    ids = tiny.words(1, 3) + tiny.placeholders() + tiny.words(2, 5) + tiny.placeholders() + tiny.words(3, 7)
    return independent.Prompt(ids, (films[0], films[1]))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_step_of_llava_onevision(side: str, siglip_directory: Any, head: Any) -> None:
    model, twin = tiny.llava_onevision(), tiny.llava_onevision()
    apply_fastvid(model, siglip=siglip_directory, **tiny.HYPERPARAMETERS)
    video_prompt = test_onevision_prefill.video_prompt
    prompts = [video_prompt(5), video_prompt(6, before=11), independent.Prompt(tiny.words(9, 30)), two_films()]
    rows = [prompt.ids for prompt in prompts]
    inputs = test_onevision_prefill.inputs_of(*prompts, side=side)
    loss = model(**inputs, position_ids=positions_of(inputs), labels=labels_of(inputs, rows)).loss
    loss.backward()

    with mock.patch.object(reference, "prune", prune_by_the_equations):
        kept = [independent.embedded(twin, head, prompt, tiny.HYPERPARAMETERS) for prompt in prompts]
    expected = loss_of([independent.decoded.__wrapped__(twin, *one) for one in kept], rows)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    check_gradients(model, twin, "model.vision_tower", "model.multi_modal_projector", "model.language_model")


@pytest.mark.parametrize("kind", ["qwen2.5", "qwen3"])
def test_a_step_of_qwen(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With videos of two resolutions, which are two calls of the operator."""
    case = case_of(kind, "sdpa", monkeypatch)
    wide = tiny_qwen.film(8, WIDE)
    both = case.prompt(tiny_qwen.words(1, 3), tiny_qwen.film(7), tiny_qwen.words(2, 5), wide, tiny_qwen.words(3, 7))
    prompts = [case.video_prompt(5), case.text(9, 30), both]
    rows = [prompt.ids for prompt in prompts]
    inputs = tiny_qwen.inputs_of(*prompts)
    loss = case.model(**inputs, labels=labels_of(inputs, rows)).loss
    loss.backward()

    with mock.patch.object(reference, "prune", prune_by_the_equations):
        kept = [qwen_independent.embedded(kind, case.twin, prompt, case.hyperparameters) for prompt in prompts]
    expected = loss_of([qwen_independent.decoded.__wrapped__(case.twin, one) for one in kept], rows)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    check_gradients(case.model, case.twin, "model.visual.blocks", "model.visual.merger", "model.language_model")


@pytest.mark.parametrize("newline", tiny_llava.LAYOUTS)
def test_a_step_of_the_llava_package(newline: str, llava: Any, siglip_directory: Any, head: Any) -> None:
    model, twin = (tiny_llava.llava_qwen(llava, newline) for _ in range(2))
    apply_fastvid(model, siglip=siglip_directory, **tiny_llava.HYPERPARAMETERS)
    ids = [*tiny.words(1, 3), tiny_llava.IMAGE_TOKEN, *tiny.words(2, 5), tiny_llava.IMAGE_TOKEN, *tiny.words(3, 7)]
    both = tiny_llava.Prompt(ids, (tiny_llava.film(7), tiny_llava.film(8, frames=5)), ("video", "video"))
    prompts = [tiny_llava.video_prompt(5), tiny_llava.text_prompt(9, 30), both]
    rows = [prompt.ids for prompt in prompts]
    inputs = tiny_llava.inputs_of(*prompts)
    # llava makes positions of its own where it is given any.
    positions = torch.arange(inputs["input_ids"].shape[1]).expand(len(prompts), -1)
    loss = model(**inputs, position_ids=positions, labels=labels_of(inputs, rows)).loss
    loss.backward()

    with mock.patch.object(reference, "prune", prune_by_the_equations):
        logits = [tiny_llava.logits(twin, head, prompt) for prompt in prompts]
    expected = loss_of(logits, rows)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    newlines = () if newline == "no_token" else ("model.image_newline",)
    check_gradients(model, twin, "model.vision_tower", "model.mm_projector", "model.layers", *newlines)
