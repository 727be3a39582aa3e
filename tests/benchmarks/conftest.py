"""What the tests of the benchmarks share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark that a test starts is a run of its own: pytest-benchmark would measure nothing beside xdist."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
