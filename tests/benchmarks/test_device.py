"""The device's clock, tested with events that are as coarse as CUDA's."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from benchmarks.measured import device
from benchmarks.measured.device import EventTimer


class Event:
    """Stands in for `torch.cuda.Event`: recorded at `now` milliseconds, differences in float32."""

    now: ClassVar[float] = 0.0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = Event.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, later: Event) -> float:
        return float(np.float32(later.at - self.at))


def test_the_clock_is_as_fine_after_an_hour_as_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Event, "now", 5.0)
    read = EventTimer()
    Event.now += 3_600_000.0
    start = read()
    Event.now += 0.0743
    assert start == pytest.approx(3600.0)
    assert read() - start == pytest.approx(74.3e-6, rel=1e-4)


def test_a_launch_is_timed_without_waiting_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is busy before each launch, and waited for after it: neither counts."""
    now, done = [0.0], []

    class Clock:
        """Stands in for `time`: launching takes 3 microseconds, all else 1,000."""

        @staticmethod
        def perf_counter() -> float:
            return now[0]

    def takes(seconds: float, name: str) -> Any:
        def act(*_: Any) -> None:
            now[0] += seconds
            done.append(name)

        return act

    monkeypatch.setattr(device, "time", Clock)
    monkeypatch.setattr(torch.cuda, "_sleep", takes(1e-3, "busy"))
    monkeypatch.setattr(device, "wait", takes(1e-3, "waited"))
    monkeypatch.setattr(torch.Tensor, "zero_", takes(3e-6, "launched"))
    assert device.launch_seconds(torch.device("cpu")) == pytest.approx(3e-6)
    assert done == ["launched", *["busy", "launched", "waited"] * device._CALLS]
