"""A pruned model of a family, its unpatched twin, and checks of its answers against the twin's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from fastvid_kernels.adapters import FastVidHandle, apply_fastvid
from tests.adapters import flash, qwen_independent, tiny_qwen
from tests.adapters.tiny_qwen import Prompt

TOLERANCE = 1e-5
NEW = 6
GREEDY: dict[str, Any] = {
    "max_new_tokens": NEW,
    "do_sample": False,
    "output_logits": True,
    "return_dict_in_generate": True,
}
# Families that run every test, one for each way in which language models attend; the others are `KIN`.
MAIN = ("qwen2.5", "qwen3", "qwen3.5")
PATHS = ("sdpa", "eager", "flash")
KIN = tuple(kind for kind in tiny_qwen.KINDS if kind not in MAIN)


@dataclass
class Case:
    """A family's pruned model and its twin.

    Attributes:
        kind: one of `tiny_qwen.KINDS`.
        model: the pruned model.
        twin: a model of the same weights, never patched, that takes explicit masks.
        handle: what `apply_fastvid` returned.
        hyperparameters: what `apply_fastvid` was given.
    """

    kind: str
    model: Any
    twin: Any
    handle: FastVidHandle
    hyperparameters: dict[str, Any] = field(default_factory=dict)

    def prompt(self, *parts: Any) -> Prompt:
        return tiny_qwen.prompt(self.kind, *parts)

    def video_prompt(self, seed: int, before: int = 4, after: int = 7, **film: Any) -> Prompt:
        parts = (tiny_qwen.words(seed, before), tiny_qwen.film(seed, **film), tiny_qwen.words(seed + 1, after))
        return self.prompt(*parts)

    def text(self, seed: int, count: int) -> Prompt:
        return self.prompt(tiny_qwen.words(seed, count))

    def check_row(self, logits: Tensor, prompt: Prompt) -> None:
        """Check that `logits [T, V]` of a row without padding are the independent ones at kept tokens."""
        row = qwen_independent.embedded(self.kind, self.twin, prompt, self.hyperparameters)
        self.check(logits[row.places], qwen_independent.decoded(self.twin, row))

    def check_generated(self, out: Any, row: int, prompt: Prompt, count: int = NEW) -> None:
        """Check the tokens exactly, and the logits they were chosen from within a tolerance."""
        ids, logits = qwen_independent.generated(self.kind, self.twin, prompt, self.hyperparameters, count)
        self.check(torch.stack([step[row] for step in out.logits]), logits)
        assert out.sequences[row, -count:].tolist() == ids

    def check(self, ours: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(ours, expected, rtol=0, atol=TOLERANCE * expected.abs().max().item())


def case_of(kind: str, path: str, monkeypatch: pytest.MonkeyPatch, **hyperparameters: Any) -> Case:
    explicit = "sdpa" if path == "flash" else path
    model, twin = (tiny_qwen.model(kind, attention=explicit) for _ in range(2))
    if path == "flash":
        flash.stand_in(monkeypatch, model)
    hyperparameters = tiny_qwen.HYPERPARAMETERS | hyperparameters
    return Case(kind, model, twin, apply_fastvid(model, **hyperparameters), hyperparameters)


def main_cases() -> list[Any]:
    """Parameters of the `case` fixture: every path of the families that have every test."""
    return [pytest.param((kind, path), id=f"{kind}-{path}") for kind in MAIN for path in PATHS]


def all_cases() -> list[Any]:
    """Those of `main_cases`, and one path of every other family."""
    return main_cases() + [pytest.param((kind, "sdpa"), id=f"{kind}-sdpa") for kind in KIN]
