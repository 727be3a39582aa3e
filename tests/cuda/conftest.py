"""Where the tests that need CUDA run: on a device, or, with `--rehearse`, emulated on CPU tensors.

A rehearsal runs the tests unchanged, but with fewer frames where these are as wide as a model's, and with fewer
repeats.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from unittest import mock

import pytest
import torch

from fastvid_kernels import ops
from tests.cuda import on_device
from tests.emulator.lane import INTERPRETED, MARKER, can_emulate

REHEARSED = {"DEVICE": "cpu", "FILM_FRAMES": 2, "FULL_WIDTH_FRAMES": 2, "REPEATS": 1}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("cuda") is None:
            continue
        if config.option.rehearse:
            if item.get_closest_marker("device_only") is not None:
                item.add_marker(pytest.mark.skip(reason="needs a device's streams, graphs or counters"))
            else:
                item.add_marker(MARKER)
        elif not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        elif INTERPRETED:
            item.add_marker(pytest.mark.skip(reason="the interpreter replaces the compiler"))


@pytest.fixture(autouse=True)
def rehearsal(request: pytest.FixtureRequest) -> Iterator[None]:
    """With `--rehearse`, make the CPU the device, and let the operator use the kernels there."""
    if not request.config.option.rehearse or not can_emulate():
        yield
        return
    with ExitStack() as changed:
        for module in (request.module, on_device):
            rehearsed = {name: value for name, value in REHEARSED.items() if hasattr(module, name)}
            changed.enter_context(mock.patch.multiple(module, **rehearsed))
        changed.enter_context(mock.patch.object(ops, "backend_for", return_value="triton"))
        yield
