"""How precise products are, whatever the process has set for its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fastvid_kernels.eager.products import full_precision

SETTINGS: Any = {"cpu": torch.backends.mkldnn, "cuda": torch.backends.cuda}


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A kind of device; the settings can be read and set without one."""
    matmul = SETTINGS[request.param].matmul
    before = matmul.fp32_precision
    yield request.param
    matmul.fp32_precision = before


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
@pytest.mark.parametrize("chosen", ["none", "ieee", "tf32"])
def test_the_setting_is_back_once_the_last_thread_has_left(device: str, chosen: str) -> None:
    """Threads come and go in any order, and may be inside twice."""
    matmul = SETTINGS[device].matmul
    matmul.fp32_precision = chosen
    entered, may_leave, seen = threading.Event(), threading.Event(), []

    def other() -> None:
        with full_precision(device), full_precision(device):
            entered.set()
            assert may_leave.wait(60)
            seen.append(matmul.fp32_precision)

    thread = threading.Thread(target=other)
    with full_precision(device):
        thread.start()
        assert entered.wait(60)
        seen.append(matmul.fp32_precision)
    seen.append(matmul.fp32_precision)
    may_leave.set()
    thread.join()
    assert seen == ["ieee"] * 3
    assert matmul.fp32_precision == chosen


def test_what_was_inherited_is_inherited_again() -> None:
    backends: Any = torch.backends
    matmul = backends.mkldnn.matmul
    before, chosen = backends.fp32_precision, matmul.fp32_precision
    try:
        matmul.fp32_precision = "none"
        backends.fp32_precision = "bf16"
        with full_precision("cpu"):
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "bf16"
        backends.fp32_precision = "tf32"
        assert matmul.fp32_precision == "tf32"
    finally:
        backends.fp32_precision = before
        matmul.fp32_precision = chosen
