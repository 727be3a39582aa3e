"""Measure how long pruning takes inside a model. The code waits for the device only while this is measured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch

_SECONDS: ContextVar[list[float] | None] = ContextVar("fastvid_seconds", default=None)


@contextmanager
def measured_seconds() -> Iterator[list[float]]:
    """Yield a list to which each part of pruning, scoring included, appends its seconds while the block runs."""
    seconds: list[float] = []
    token = _SECONDS.set(seconds)
    try:
        yield seconds
    finally:
        _SECONDS.reset(token)


def part_of_pruning(device: torch.device) -> AbstractContextManager[None]:
    """Context of a part of pruning on a device; timed if `measured_seconds` is active."""
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
    """Wait until a device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
