"""Runs of our classes and of lmms-eval's own through its Python API, with the inputs that the model got."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.evaluation.lane import tasks


@dataclass
class Run:
    """The results of a run.

    Attributes:
        answers: of each document, in its order.
        contexts: the question of each, as the task asked it.
        metrics: what was logged about speed and pruning.
        given: arguments of each `generate`, in the order of the calls.
    """

    answers: list[str] = field(default_factory=list)
    contexts: list[str] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    given: list[dict[str, Any]] = field(default_factory=list)

    def counts(self) -> dict[str, float]:
        found = {name: value for name, value in self.metrics.items() if "fastvid" in name}
        return {name.removeprefix("avg_fastvid_"): value for name, value in found.items()}

    def placeholders(self, token: int) -> list[int]:
        """How many places a video takes in each prompt."""
        return [int((one["input_ids"] == token).sum()) for one in self.given]


def evaluate(folder: Path, model: str, arguments: dict[str, Any], *, simple: bool, recorded: Any) -> Run:
    """Evaluate a task folder with the class that lmms-eval has for the model's name.

    Args:
        recorded: the class whose `generate` is watched.
    """
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    run = Run()
    with watched(recorded, run.given):
        results = simple_evaluate(
            model,
            ",".join(f"{name}={value}" for name, value in arguments.items()),
            tasks=[tasks.NAME],
            device="cpu",
            batch_size=1,
            force_simple=simple,
            task_manager=TaskManager("ERROR", str(folder), include_defaults=False, model_name=model),
        )
    samples = sorted(results["samples"][tasks.NAME], key=lambda sample: sample["doc_id"])
    run.answers = [sample["resps"][0][0] for sample in samples]
    run.contexts = [sample["arguments"][0] for sample in samples]
    run.metrics = results.get("throughput", {})
    return run


@contextmanager
def watched(cls: Any, given: list[dict[str, Any]]) -> Iterator[None]:
    """Record the tensors that `generate` of a class gets."""
    original = cls.generate

    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        given.append({name: value.clone() for name, value in kwargs.items() if isinstance(value, Tensor)})
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(cls, "generate", generate)
        yield


@contextmanager
def upstream(path: str) -> Iterator[None]:
    """Make lmms-eval use its own class at `path`, for any name."""
    import lmms_eval.models

    module, name = path.rsplit(".", 1)
    cls = getattr(import_module(f"lmms_eval.models.{module}"), name)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(lmms_eval.models, "get_model", lambda *args: cls)
        yield


def same_inputs(one: Run, other: Run) -> bool:
    """Whether `generate` got the same prompts and pixels."""
    return len(one.given) == len(other.given) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(one.given, other.given, strict=True)
    )
