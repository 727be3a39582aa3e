"""What the tests of the benchmarks share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let benchmarks that a test starts run outside xdist: under it, pytest-benchmark measures nothing."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
