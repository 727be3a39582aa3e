"""The interface that `fastvid run` needs from every model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from fastvid_kernels.adapters import FastVidHandle

RANDOM_WEIGHTS_NOTE = "The weights are random: the words mean nothing, the figures are those of the architecture."
# Ids of the printable ASCII characters in a byte tokenizer, which gives byte 0 the id 3.
ASCII = range(3 + ord("!"), 3 + ord("~") + 1)


@dataclass(frozen=True)
class Film:
    """Frames to ask about.

    Attributes:
        frames: `[F, H, W, 3]`, uint8.
        source_indices: which of the source's frames each one is, ascending, counted from 0.
        source_frames: how many the source has.
        frames_per_second: of the source; None if unknown.
        description: what it is, for people.
    """

    frames: np.ndarray
    source_indices: tuple[int, ...]
    source_frames: int
    frames_per_second: float | None
    description: str


class Chat(Protocol):
    """A model, and how to talk to it."""

    @property
    def name(self) -> str:
        """What it is, for people."""

    @property
    def model(self) -> Any:
        """A model that `apply_fastvid` accepts."""

    @property
    def placeholders(self) -> tuple[str, ...]:
        """Words that stand for images and videos in its prompts; a question must not contain them."""

    @property
    def placeholder_id(self) -> int:
        """The id that stands for a token of a video in its inputs."""

    @property
    def generation(self) -> dict[str, Any]:
        """Arguments of `generate` that make its output readable text."""

    @property
    def note(self) -> str:
        """A remark to print about its answers, or \"\"."""

    @property
    def default_retention(self) -> float:
        """The retention ratio published for its family."""

    def patch(self, retention: float) -> FastVidHandle:
        """Make the model prune."""

    def inputs(self, question: str, film: Film) -> dict[str, Tensor]:
        """Arguments of `generate`."""

    def tokens_per_frame(self, inputs: dict[str, Tensor]) -> int:
        """N of the film in these inputs."""

    def frames(self, inputs: dict[str, Tensor]) -> int:
        """F of the film in these inputs, as the model counts frames."""

    def text(self, ids: Tensor) -> str:
        """The generated ids as text."""
