"""What `fastvid run` needs of a model, whichever it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from fastvid_kernels.adapters import FastVidHandle

RANDOM_WEIGHTS_NOTE = "The weights are random: the words mean nothing, the figures are those of the architecture."
# Ids of the printable characters of ASCII in a tokenizer of bytes, which counts from 3.
ASCII = range(3 + ord("!"), 3 + ord("~") + 1)


@dataclass(frozen=True)
class Film:
    """Frames to ask about.

    Attributes:
        frames: `[F, H, W, 3]`, uint8.
        source_indices: which of the source's frames each one is, ascending, counted from 0.
        source_frames: how many the source has.
        frames_per_second: of the source; None where it does not say.
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
        """One that `apply_fastvid` takes."""

    @property
    def placeholders(self) -> tuple[str, ...]:
        """Words that stand for pictures in its prompts, which a question cannot hold."""

    @property
    def generation(self) -> dict[str, Any]:
        """Arguments that `generate` needs for its words to be text."""

    @property
    def note(self) -> str:
        """What must be said of its answers, or \"\"."""

    @property
    def default_retention(self) -> float:
        """Published for its family."""

    def patch(self, retention: float) -> FastVidHandle:
        """Make the model prune."""

    def inputs(self, question: str, film: Film) -> dict[str, Tensor]:
        """Arguments of `generate`."""

    def tokens_per_frame(self, inputs: dict[str, Tensor]) -> int:
        """N of the film in these inputs."""

    def frames(self, inputs: dict[str, Tensor]) -> int:
        """F of the film in these inputs, as the model counts frames."""

    def text(self, ids: Tensor) -> str:
        """What was generated, as text."""
