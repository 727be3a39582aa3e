"""A pytest plugin for tests that run kernels without a GPU.

Tests marked `runs_kernels` run the kernels in the emulator, as Triton compiles them for an NVIDIA GPU. With
TRITON_INTERPRET=1, Triton's interpreter runs the kernels' source instead, for debugging or where there is no C++
compiler. A test fails if the emulator finds an error in it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

import pytest

from tests.emulator.library import Approximation, Options, Order, TensorCores, has_compiler

if TYPE_CHECKING:
    from tests.emulator.emulator import Emulator

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
MARKER = "runs_kernels"
_ARCHITECTURES = {"sm_80": (80, TensorCores.AMPERE), "sm_90": (90, TensorCores.HOPPER)}
# The number of instructions after which another warp runs, if the order of warps is shuffled.
_QUANTUM = 40


def can_emulate() -> bool:
    """Whether this machine can emulate compiled kernels."""
    return not INTERPRETED and has_compiler() and importlib.util.find_spec("triton") is not None


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("emulated kernels")
    group.addoption("--emulate", choices=_ARCHITECTURES, default="sm_80", help="what kernels are compiled for")
    group.addoption("--order", choices=[one.name.lower() for one in Order], default="forward", help="of blocks, warps")
    group.addoption(
        "--approximate",
        choices=[one.name.lower() for one in Approximation],
        default="exact",
        help="what approximate roots and quotients return, within their documented error",
    )
    group.addoption("--rehearse", action="store_true", help="run the tests that need CUDA, as far as emulation can")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if INTERPRETED or can_emulate():
        return
    skip = pytest.mark.skip(reason="needs Triton, and g++ for the emulator or TRITON_INTERPRET=1 for the interpreter")
    for item in items:
        if item.get_closest_marker(MARKER) is not None:
            item.add_marker(skip)


def describe(config: pytest.Config) -> str:
    """The code that tests of the kernels run, in words."""
    if INTERPRETED:
        return "their source, in Triton's interpreter"
    if not can_emulate():
        return "nothing: no g++ or no Triton"
    return f"compiled for {config.option.emulate} and emulated"


def pytest_report_header(config: pytest.Config) -> str:
    return f"kernels: {describe(config)}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    ran = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        if report.when == "call" and MARKER in report.keywords
    ]
    if ran:
        terminalreporter.write_line(f"kernels: {len(ran)} tests ran {describe(config)}")


@cache
def emulator_for(config: pytest.Config) -> Emulator:
    """The session's emulator, which keeps its compiled kernels."""
    from tests.emulator.emulator import Emulator

    arch, tensor_cores = _ARCHITECTURES[config.option.emulate]
    order = Order[config.option.order.upper()]
    options = Options(
        tensor_cores,
        Approximation[config.option.approximate.upper()],
        order,
        quantum=_QUANTUM if order is Order.SHUFFLED else 0,
        seed=1,
    )
    return Emulator(arch, options)


@pytest.fixture(autouse=True)
def emulated(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs the kernels of a marked test in the emulator, and fails the test if that finds an error."""
    if request.node.get_closest_marker(MARKER) is None or not can_emulate():
        yield
        return
    from tests.emulator.guarded import emulated_calls

    emulator = emulator_for(request.config)
    emulator.findings.clear()
    with emulated_calls(emulator):
        yield
    findings = dict(emulator.findings)
    emulator.findings.clear()
    emulator.runs.clear()
    assert not findings, "\n".join(f"{count} times: {finding}" for finding, count in findings.items())
