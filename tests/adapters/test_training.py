"""A training step of a pruned model: gradients of all its weights against those of the independent computation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import reference
from fastvid_kernels.adapters import apply_fastvid
from tests.adapters import (
    independent,
    qwen_independent,
    test_onevision_prefill,
    tiny,
    tiny_llava,
    tiny_next_video,
    tiny_qwen,
)
from tests.adapters.qwen_case import Case, case_of
from tests.adapters.test_onevision_prefill import video_prompt
from tests.adapters.tiny_qwen import WIDE
from tests.adapters.training import check_step, labels_of, loss_of, prune_by_the_equations


@pytest.fixture(autouse=True)
def gradients(no_gradients: Any) -> Iterator[None]:
    with torch.enable_grad():
        yield


def positions_of(inputs: dict[str, Any]) -> Tensor:
    """Positions that count each row's own tokens."""
    positions: Tensor = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return positions


def llava_batch() -> list[independent.Prompt]:
    """Rows of video and of text, and one of two videos."""
    films = tiny.film(7, videos=2)
    ids = tiny.words(1, 3) + tiny.placeholders() + tiny.words(2, 5) + tiny.placeholders() + tiny.words(3, 7)
    two_films = independent.Prompt(ids, (films[0], films[1]))
    return [video_prompt(5), video_prompt(6, before=11), independent.Prompt(tiny.words(9, 30)), two_films]


def qwen_batch(case: Case) -> list[Any]:
    """The same, with videos of two resolutions, which are two calls of the operator."""
    wide = tiny_qwen.film(8, WIDE)
    both = case.prompt(tiny_qwen.words(1, 3), tiny_qwen.film(7), tiny_qwen.words(2, 5), wide, tiny_qwen.words(3, 7))
    return [case.video_prompt(5), case.text(9, 30), both]


@pytest.mark.parametrize(
    ("is_batch", "side", "checkpointing"),
    [(False, "left", False), (False, "left", True), (True, "left", False), (True, "right", False)],
    ids=["one row", "one row, checkpointed", "padded left", "padded right"],
)
def test_a_step_of_llava_onevision(
    is_batch: bool, side: str, checkpointing: bool, siglip_directory: Any, head: Any
) -> None:
    model, twin = tiny.llava_onevision(), tiny.llava_onevision()
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable()
    apply_fastvid(model, siglip=siglip_directory, **tiny.HYPERPARAMETERS)
    prompts = llava_batch() if is_batch else [video_prompt(3)]
    rows = [prompt.ids for prompt in prompts]
    inputs = test_onevision_prefill.inputs_of(*prompts, side=side)
    positions = {"position_ids": positions_of(inputs)} if is_batch else {}
    loss = model(**inputs, **positions, labels=labels_of(inputs, rows)).loss

    with mock.patch.object(reference, "prune", prune_by_the_equations):
        kept = [independent.embedded(twin, head, prompt, tiny.HYPERPARAMETERS) for prompt in prompts]
    expected = loss_of([independent.decoded.__wrapped__(twin, *one) for one in kept], rows)
    reached = ("model.vision_tower", "model.multi_modal_projector", "model.language_model")
    check_step(loss, model, expected, twin, *reached)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_of_llava_next_video(checkpointing: bool) -> None:
    model, twin = tiny_next_video.model(), tiny_next_video.model()
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable()
    apply_fastvid(model, **tiny.HYPERPARAMETERS)
    prompts = [
        tiny_next_video.video_prompt(5),
        tiny_next_video.video_prompt(6, before=11),
        independent.Prompt(tiny.words(9, 30)),
    ]
    rows = [prompt.ids for prompt in prompts]
    inputs = tiny_next_video.inputs_of(*prompts)
    loss = model(**inputs, position_ids=positions_of(inputs), labels=labels_of(inputs, rows)).loss

    with mock.patch.object(reference, "prune", prune_by_the_equations):
        kept = [tiny_next_video.embedded(twin, prompt) for prompt in prompts]
    expected = loss_of([independent.decoded.__wrapped__(twin, *one) for one in kept], rows)
    check_step(loss, model, expected, twin, "model.vision_tower", "model.multi_modal_projector", "model.language_model")


@pytest.mark.parametrize("is_batch", [False, True], ids=["one row", "batch"])
@pytest.mark.parametrize("kind", ["qwen2.5", "qwen3"])
def test_a_step_of_qwen(kind: str, is_batch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(kind, "sdpa", monkeypatch)
    prompts = qwen_batch(case) if is_batch else [case.video_prompt(3)]
    rows = [prompt.ids for prompt in prompts]
    inputs = tiny_qwen.inputs_of(*prompts)
    loss = case.model(**inputs, labels=labels_of(inputs, rows)).loss

    with mock.patch.object(reference, "prune", prune_by_the_equations):
        kept = [qwen_independent.embedded(kind, case.twin, prompt, case.hyperparameters) for prompt in prompts]
    expected = loss_of([qwen_independent.decoded.__wrapped__(case.twin, one) for one in kept], rows)
    check_step(
        loss, case.model, expected, case.twin, "model.visual.blocks", "model.visual.merger", "model.language_model"
    )


@pytest.mark.parametrize("newline", tiny_llava.LAYOUTS)
def test_a_step_of_the_llava_package(newline: str, llava: Any, siglip_directory: Any, head: Any) -> None:
    model, twin = (tiny_llava.llava_qwen(llava, newline) for _ in range(2))
    apply_fastvid(model, siglip=siglip_directory, **tiny_llava.HYPERPARAMETERS)
    ids = [*tiny.words(1, 3), tiny_llava.IMAGE_TOKEN, *tiny.words(2, 5), tiny_llava.IMAGE_TOKEN, *tiny.words(3, 7)]
    both = tiny_llava.Prompt(ids, (tiny_llava.film(7), tiny_llava.film(8, frames=5)), ("video", "video"))
    prompts = [tiny_llava.video_prompt(5), tiny_llava.text_prompt(9, 30), both]
    rows = [prompt.ids for prompt in prompts]
    inputs = tiny_llava.inputs_of(*prompts)
    # If any positions are given, llava replaces them with its own.
    positions = torch.arange(inputs["input_ids"].shape[1]).expand(len(prompts), -1)
    loss = model(**inputs, position_ids=positions, labels=labels_of(inputs, rows)).loss

    with mock.patch.object(reference, "prune", prune_by_the_equations):
        logits = [tiny_llava.logits(twin, head, prompt) for prompt in prompts]
    newlines = () if newline == "no_token" else ("model.image_newline",)
    reached = ("model.vision_tower", "model.mm_projector", "model.layers", *newlines)
    check_step(loss, model, loss_of(logits, rows), twin, *reached)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_of_transformers_trainer(checkpointing: bool, siglip_directory: Any, tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = tiny.llava_onevision()
    apply_fastvid(model, siglip=siglip_directory, **tiny.HYPERPARAMETERS)
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    prompt = video_prompt(3)
    inputs = test_onevision_prefill.inputs_of(prompt)
    row = {name: one[0] for name, one in inputs.items()} | {"labels": labels_of(inputs, [prompt.ids])[0]}
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=1,
        learning_rate=0.01,
        gradient_checkpointing=checkpointing,
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    outcome = transformers.Trainer(model, arguments, train_dataset=[row]).train()
    assert 0 < outcome.training_loss < 100
    changed = {name.split(".")[1] for name, one in model.named_parameters() if not torch.equal(one, before[name])}
    assert {"vision_tower", "multi_modal_projector", "language_model"} <= changed
