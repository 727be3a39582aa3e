"""Options of the benchmarks, the device they run on, and the description of it that is recorded."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from benchmarks.measured.device import clock, copy_rate, launch_seconds
from benchmarks.measured.machine import describe_gpu, describe_machine


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastvid")
    group.addoption("--bench-device", default="auto", help="auto, cpu or cuda; auto prefers cuda")
    group.addoption("--budget", type=float, metavar="SECONDS", help="no case is begun later than this; it is skipped")
    group.addoption("--tiny", action="store_true", help="small sizes, to rehearse: the figures mean nothing")


def chosen_device(config: pytest.Config) -> torch.device:
    name = config.getoption("--bench-device")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    timer = clock(chosen_device(config))
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=timer))


_start = time.monotonic()
_machine = describe_machine()


def pytest_runtest_setup(item: pytest.Item) -> None:
    budget = item.config.getoption("--budget")
    if budget is not None and time.monotonic() - _start > budget:
        pytest.skip(f"not begun within {budget:.0f} s")


@pytest.hookimpl
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.clear()
    device = chosen_device(config)
    machine_info.update(_machine, device=device.type)
    machine_info["clock"] = "CUDA events, device idle before" if device.type == "cuda" else "host, perf_counter"
    if device.type == "cuda":
        machine_info.update(describe_gpu(), cpu_microseconds_of_a_fill=round(1e6 * launch_seconds(device), 1))


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    return chosen_device(pytestconfig)


@pytest.fixture(scope="session")
def measured_copy_rate(device: torch.device) -> float:
    return copy_rate(device)
