"""A training step of a pruned model: gradients of all its weights against those of the independent computation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import reference
from fastvid_kernels.adapters import apply_fastvid
from tests.adapters import independent, qwen_independent, tiny, tiny_qwen
from tests.adapters.qwen_case import case_of
from tests.adapters.test_onevision_prefill import inputs_of, video_prompt

TOLERANCE = 1e-5
"""Of a weight's gradient, relative to its largest element."""
ANSWER = 5


@pytest.fixture(autouse=True)
def gradients(no_gradients: Any) -> Iterator[None]:
    with torch.enable_grad():
        yield


def prune_by_the_equations(tokens: Tensor, *others: Any, **hyperparameters: Any) -> reference.PruneResult:
    """The oracle's choices, and its merge in differentiable float64 operations."""
    constants = [one.detach() if isinstance(one, Tensor) else one for one in (tokens, *others)]
    oracle = original_prune(*constants, **hyperparameters)
    n = tokens.shape[1]
    flat = tokens.flatten(0, 1).double()
    rows = {index: flat[index] for index in oracle.indices.tolist()}
    for record in oracle.anchor_frames:
        for slot, anchor in enumerate((record.frame * n + record.anchors).tolist()):
            joined = record.pool[record.assignment == slot]
            weight = max(hyperparameters.get("beta", 0.6), 1 / (len(joined) + 1))
            if weight < 1:
                rows[anchor] = weight * flat[anchor] + (1 - weight) * flat[joined].mean(0)
    merged = torch.stack([rows[index] for index in oracle.indices.tolist()])
    torch.testing.assert_close(merged.detach(), oracle.tokens, rtol=0, atol=1e-12)
    return dataclasses.replace(oracle, tokens=merged)


original_prune = reference.prune


def labels_of(ids: Tensor) -> Tensor:
    """The prompt's last words are what the model has to learn."""
    labels = ids.clone()
    labels[:, :-ANSWER] = -100
    return labels


def loss_of(logits: Tensor, ids: list[int]) -> Tensor:
    """Of the last words, from the logits of a row's kept tokens."""
    return functional.cross_entropy(logits[-ANSWER - 1 : -1], torch.tensor(ids[-ANSWER:]))


def check_gradients(model: Any, twin: Any, *reached: str) -> float:
    """All weights; those whose names start with `reached` must have a gradient. Returns the worst relative error."""
    theirs = dict(twin.named_parameters())
    largest_of_all = max(one.grad.abs().max().item() for one in theirs.values() if one.grad is not None)
    worst, found = 0.0, set()
    for name, ours in model.named_parameters():
        expected = theirs[name].grad
        largest = 0.0 if expected is None else expected.abs().max().item()
        if largest == 0:
            assert ours.grad is None or not ours.grad.any(), name
            continue
        assert ours.grad is not None, name
        if name.endswith("k_proj.bias") and "vision_tower" in name:
            # It shifts all scores of a query alike, which softmax does not see: its gradient is rounding.
            assert max(largest, ours.grad.abs().max().item()) < 1e-6 * largest_of_all
            continue
        worst = max(worst, ((ours.grad - expected).abs().max() / largest).item())
        found |= {prefix for prefix in reached if name.startswith(prefix)}
    assert found == set(reached)
    assert worst <= TOLERANCE
    return worst


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_of_llava_onevision(checkpointing: bool, siglip_directory: Any, head: Any) -> None:
    model, twin = tiny.llava_onevision(), tiny.llava_onevision()
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable()
    apply_fastvid(model, siglip=siglip_directory, **tiny.HYPERPARAMETERS)
    prompt = video_prompt(3)
    inputs = inputs_of(prompt)
    loss = model(**inputs, labels=labels_of(inputs["input_ids"])).loss
    loss.backward()

    with mock.patch.object(reference, "prune", prune_by_the_equations):
        embeds, positions = independent.embedded(twin, head, prompt, tiny.HYPERPARAMETERS)
    expected = loss_of(independent.decoded.__wrapped__(twin, embeds, positions), prompt.ids)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    check_gradients(model, twin, "model.vision_tower", "model.multi_modal_projector", "model.language_model")


@pytest.mark.parametrize("kind", ["qwen2.5", "qwen3"])
def test_a_step_of_qwen(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(kind, "sdpa", monkeypatch)
    prompt = case.video_prompt(3)
    inputs = tiny_qwen.inputs_of(prompt)
    loss = case.model(**inputs, labels=labels_of(inputs["input_ids"])).loss
    loss.backward()

    with mock.patch.object(reference, "prune", prune_by_the_equations):
        row = qwen_independent.embedded(kind, case.twin, prompt, case.hyperparameters)
    expected = loss_of(qwen_independent.decoded.__wrapped__(case.twin, row), prompt.ids)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    check_gradients(case.model, case.twin, "model.visual.blocks", "model.visual.merger", "model.language_model")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_of_transformers_trainer(checkpointing: bool, siglip_directory: Any, tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = tiny.llava_onevision()
    apply_fastvid(model, siglip=siglip_directory, **tiny.HYPERPARAMETERS)
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    inputs = inputs_of(video_prompt(3))
    row = {name: one[0] for name, one in inputs.items()} | {"labels": labels_of(inputs["input_ids"])[0]}
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
