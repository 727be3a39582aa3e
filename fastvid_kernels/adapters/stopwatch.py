"""Measure how long pruning takes inside a model, without making it wait for the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch

# Each measures one part, and may wait for the device.
_PARTS: ContextVar[list[Callable[[], float]] | None] = ContextVar("fastvid_parts", default=None)


@contextmanager
def measured_seconds() -> Iterator[list[float]]:
    """Yield a list that holds the seconds of each part of pruning, scoring included, once the block has run.

    On a GPU they are its own time: from when it comes to a part until it has finished that part. If it is faster than
    the host there, they include its waiting for work.
    """
    seconds: list[float] = []
    parts: list[Callable[[], float]] = []
    token = _PARTS.set(parts)
    try:
        yield seconds
    finally:
        _PARTS.reset(token)
        seconds += [part() for part in parts]


def part_of_pruning(device: torch.device) -> AbstractContextManager[None]:
    """Context of a part of pruning on a device; timed if `measured_seconds` is active."""
    parts = _PARTS.get()
    if parts is None:
        return nullcontext()
    return _on_gpu(parts, device) if device.type == "cuda" else _on_host(parts)


@contextmanager
def _on_gpu(parts: list[Callable[[], float]], device: torch.device) -> Iterator[None]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    stream = torch.cuda.current_stream(device)
    start.record(stream)
    yield
    end.record(stream)

    def seconds() -> float:
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    parts.append(seconds)


@contextmanager
def _on_host(parts: list[Callable[[], float]]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    parts.append(lambda: seconds)


def wait(device: torch.device) -> None:
    """Wait until a device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
