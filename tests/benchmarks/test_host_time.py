"""The program that times the host: only what it prints, since its figures are for people to read."""

from __future__ import annotations

import os
from typing import Any

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

from benchmarks.measured import host_time


def test_parts_are_parts_of_the_whole() -> None:
    times = host_time.host_times(calls=30, rounds=5)
    parts = [time for name, time in times.items() if name.startswith("of it")]
    assert len(parts) == 3
    assert all(0 < time < 2 * times[host_time.OPERATOR] for time in parts)
    assert times[host_time.ADD] < times[host_time.OPERATOR]


@pytest.mark.slow
def test_it_prints_every_part_and_what_compiling_takes(capsys: Any) -> None:
    assert host_time.main(["--rounds", "2", "--calls", "5", "--compile", "sm_90", "--channels", "16"]) == 0
    printed = capsys.readouterr().out
    assert host_time.ADD in printed
    assert "kernels for sm_90" in printed
