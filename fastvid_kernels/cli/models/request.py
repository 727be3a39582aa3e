"""The options of `fastvid run`, and their defaults."""

from __future__ import annotations

from dataclasses import dataclass

SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class Request:
    """The options of `fastvid run`, by name; None means what was published for the model's family."""

    model: str | None = None
    random_weights: str | None = None
    video: str | None = None
    question: str = "What happens in this video?"
    retention: float | None = None
    siglip: str | None = None
    frames: int = 32
    new_tokens: int = 48
    repeats: int = 5
    device: str = "auto"
