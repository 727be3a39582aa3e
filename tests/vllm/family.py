"""What tests need to know of each served model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from tests.vllm import engine
from tests.vllm.engine import Answer, Request

BEHIND = 40


class Family(ABC):
    """A model to serve, what it is asked, and what it should answer.

    Attributes:
        hyperparameters: of pruning, as the oracle takes them.
        chunk: tokens in a chunk of prefill; a video takes more than three chunks.
        has_state: whether some layers have a state, as linear attention does.
        engine_settings: of every engine that serves the model.
        limits: how many videos and images a prompt may have.
        model: the model in transformers.
        processor: its processor in transformers.
        checkpoint: directory of both.
    """

    hyperparameters: ClassVar[dict[str, Any]]
    chunk: ClassVar[int]
    has_state = False
    engine_settings: ClassVar[dict[str, Any]] = {}
    limits: ClassVar[dict[str, int]] = {"video": 4, "image": 4}
    model: Any
    processor: Any
    checkpoint: Path

    @abstractmethod
    def requests(self) -> dict[str, Request]:
        """Every kind of prompt. "long" ends with a video and `BEHIND` words."""

    @abstractmethod
    def short(self, seed: int) -> Request:
        """A video of a few frames between words."""

    @abstractmethod
    def expected(self, request: Request, new: int = engine.NEW) -> tuple[list[int], torch.Tensor]:
        """Greedy ids, and the logits `[new, V]` they were chosen from, of the independent computation."""

    def settings(self, **own: Any) -> dict[str, Any]:
        """Settings of an engine that prunes; `own` goes into the additional configuration."""
        fastvid = {name: value for name, value in self.hyperparameters.items() if name != "retention_ratio"}
        return self.engine_settings | {
            "video_pruning_rate": 1 - self.hyperparameters["retention_ratio"],
            "video_pruning_method": "fastvid",
            "additional_config": {"fastvid": fastvid | own},
            "limit_mm_per_prompt": self.limits,
        }

    def check_refused(self, message: str, own: dict[str, Any], asked: dict[str, Any]) -> None:
        """Check that an engine with such settings does not start, for the reason in the message."""
        with (
            pytest.raises(Exception, match=message),
            engine.running(self.checkpoint, **(self.settings(**own) | asked)),
        ):
            pass

    def check(self, request: Request, answer: Answer) -> float:
        """Check that the answer is as expected; returns the worst difference of log-probabilities."""
        worst = answer.worst(*self.expected(request))
        assert worst <= engine.TOLERANCE
        return worst
