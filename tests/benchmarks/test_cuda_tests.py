"""`benchmarks.gpu.cuda_tests` without a GPU: what counts as success."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.gpu import cuda_tests
from benchmarks.gpu.cuda_tests import Outcome


def test_a_dry_run_collects_them(capsys: Any) -> None:
    pytest.importorskip("triton")
    assert cuda_tests.main(["--dry-run"]) == 0
    summary = capsys.readouterr().out.splitlines()[-1].split()
    assert int(summary[1]) + int(summary[3]) > 100, "the tests that need CUDA were collected"


@pytest.mark.parametrize(
    ("outcome", "dry_run", "fails"),
    [
        (Outcome(status=0, passed=5, skipped=1), False, False),
        (Outcome(status=0, passed=0, skipped=5), False, True),
        (Outcome(status=0, passed=0, skipped=5), True, False),
        (Outcome(status=0, passed=0, skipped=0), True, True),
        (Outcome(status=1, passed=5, skipped=0), True, True),
        (Outcome(status=1, passed=5, skipped=0), False, True),
    ],
)
def test_tests_that_did_not_run_are_no_success(outcome: Outcome, dry_run: bool, fails: bool) -> None:
    assert (outcome.failure(dry_run=dry_run) is not None) == fails


@pytest.mark.parametrize("dry_run", [True, False])
def test_the_exit_status_tells(dry_run: bool, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda_tests, "run", lambda: Outcome(status=1, passed=5, skipped=0))
    assert cuda_tests.main(["--dry-run"] if dry_run else []) == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a CUDA device")
def test_without_a_device_it_says_so(capsys: Any) -> None:
    assert cuda_tests.main([]) == 2
    assert "--dry-run" in capsys.readouterr().err
