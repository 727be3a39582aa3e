"""Measurements on a device: a clock, the copy rate, and what a call requires besides time."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

_COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}
_COPIES = 15
_CALLS = 15


def wait(device: torch.device) -> None:
    """Wait until the device has finished all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class EventTimer:
    """A clock for pytest-benchmark that measures on the device: seconds between CUDA events.

    A reading waits for the device, so work between two readings starts on an idle device. CUDA gives the time between
    events in float32, whose resolution one minute after the first event would be 4 microseconds. So each reading is
    relative to the previous one, and the sum is kept in float64.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._last = torch.cuda.Event(enable_timing=True)
        self._last.record()

    def __call__(self) -> float:
        """Seconds since the clock was made."""
        now = torch.cuda.Event(enable_timing=True)
        now.record()
        now.synchronize()
        self._seconds += float(self._last.elapsed_time(now)) / 1e3
        self._last = now
        return self._seconds


def clock(device: torch.device) -> Callable[[], float]:
    """The clock for a device."""
    return EventTimer() if device.type == "cuda" else time.perf_counter


def copy_rate(device: torch.device) -> float:
    """Bytes moved a second (read and written) by a copy far larger than any cache: the median of several."""
    source = torch.ones(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    read = clock(device)
    seconds = []
    for _ in range(_COPIES + 2):
        start = read()
        target.copy_(source)
        seconds.append(read() - start)
    return 2 * source.numel() / statistics.median(seconds[2:])


def launch_seconds(device: torch.device) -> float:
    """Time in which this host's CPU launches the smallest kernel of torch: the yardstick for a call's CPU time."""
    number = torch.zeros(1, device=device)
    number.zero_()
    return _cpu_seconds(number.zero_, device)


@dataclass(frozen=True)
class Demands:
    """What one call requires; None where the device gives no figure.

    Attributes:
        extra_bytes: peak memory that the call allocates, output included.
        kernels: operations on the device: kernels, copies, fills.
        host_waits: operations for which the host waited.
        cpu_seconds: time until the call returns while the device is busy with other work, if the call does not wait
            for the device; median of several.
    """

    extra_bytes: int | None = None
    kernels: int | None = None
    host_waits: int | None = None
    cpu_seconds: float | None = None


def demands(run: Callable[[], object], device: torch.device) -> Demands:
    """Measure calls after warm-up."""
    if device.type != "cuda":
        return Demands()
    wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = run()
    wait(device)
    extra = torch.cuda.max_memory_allocated(device) - before
    del result
    waits = _host_waits(run, device)
    return Demands(extra, _kernels(run, device), waits, _cpu_seconds(run, device) if waits == 0 else None)


def _kernels(run: Callable[[], object], device: torch.device) -> int:
    # The first profile of a process may miss its first events.
    for _ in range(2):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            run()
            wait(device)
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def _host_waits(run: Callable[[], object], device: torch.device) -> int:
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    wait(device)
    # The mode also warns about itself, and that warning mentions synchronizing too.
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


def _cpu_seconds(run: Callable[[], object], device: torch.device) -> float:
    seconds = []
    for _ in range(_CALLS):
        # A kernel that spins keeps the device busy meanwhile.
        torch.cuda._sleep(20_000_000)
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
        wait(device)
    return statistics.median(seconds)
