"""What tests of training share: an independent, differentiable pruning, and the comparison of all gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import reference

TOLERANCE = 1e-5
"""Tolerance of a weight's gradient, relative to its largest element."""
ANSWER = 5
"""Number of words at the end of each row that the model has to learn."""

_original_prune = reference.prune


def prune_by_the_equations(tokens: Tensor, *others: Any, **hyperparameters: Any) -> reference.PruneResult:
    """The oracle's choices, and its merge in differentiable float64 operations."""
    constants = [one.detach() if isinstance(one, Tensor) else one for one in (tokens, *others)]
    oracle = _original_prune(*constants, **hyperparameters)
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


def labels_of(inputs: dict[str, Any], rows: Sequence[Sequence[int]]) -> Tensor:
    """Labels for the last words of each row, on whichever side its padding is."""
    labels = torch.full_like(inputs["input_ids"], -100)
    for label, ids, mask in zip(labels, rows, inputs["attention_mask"], strict=True):
        end = int(mask.nonzero().max()) + 1
        label[end - ANSWER : end] = torch.tensor(ids[-ANSWER:])
    return labels


def loss_of(logits: Sequence[Tensor], rows: Sequence[Sequence[int]]) -> Tensor:
    """Cross-entropy of the last words of all rows, from each row's logits of its kept tokens."""
    words = torch.tensor([ids[-ANSWER:] for ids in rows]).flatten()
    return functional.cross_entropy(torch.cat([row[-ANSWER - 1 : -1] for row in logits]), words)


def check_step(loss: Tensor, model: Any, expected: Tensor, twin: Any, *reached: str) -> None:
    """A step's loss, and the gradients of all weights, against those of an unpatched twin; see `check_gradients`."""
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    check_gradients(model, twin, *reached)


def check_gradients(model: Any, twin: Any, *reached: str) -> None:
    """The gradients of all weights against those of an unpatched twin.

    Weights whose names start with one of `reached` must have a gradient.
    """
    theirs = dict(twin.named_parameters())
    largest_of_all = max(one.grad.abs().max().item() for one in theirs.values() if one.grad is not None)
    found = set()
    for name, ours in model.named_parameters():
        gradient = theirs[name].grad
        largest = 0.0 if gradient is None else gradient.abs().max().item()
        if largest == 0:
            assert ours.grad is None or not ours.grad.any(), name
            continue
        assert ours.grad is not None, name
        if name.endswith("k_proj.bias") and "vision_tower" in name:
            # This bias adds the same to all scores of a query, which softmax cancels: its gradient is rounding error.
            assert max(largest, ours.grad.abs().max().item()) < 1e-6 * largest_of_all
            continue
        assert (ours.grad - gradient).abs().max() <= TOLERANCE * largest, name
        found |= {prefix for prefix in reached if name.startswith(prefix)}
    assert found == set(reached)
