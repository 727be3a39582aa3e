"""How long pruning itself takes inside a model, for whoever asks; nobody waits for a device otherwise."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch

_SECONDS: ContextVar[list[float] | None] = ContextVar("fastvid_seconds", default=None)


@contextmanager
def measured_seconds() -> Iterator[list[float]]:
    """A list to which every part of pruning, scores included, adds its seconds while the block runs."""
    seconds: list[float] = []
    token = _SECONDS.set(seconds)
    try:
        yield seconds
    finally:
        _SECONDS.reset(token)


def part_of_pruning(device: torch.device) -> AbstractContextManager[None]:
    """Around what belongs to pruning, on a device."""
    seconds = _SECONDS.get()
    return nullcontext() if seconds is None else _measured(seconds, device)


@contextmanager
def _measured(seconds: list[float], device: torch.device) -> Iterator[None]:
    wait(device)
    start = time.perf_counter()
    yield
    wait(device)
    seconds.append(time.perf_counter() - start)


def wait(device: torch.device) -> None:
    """Until a device has done all that it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
