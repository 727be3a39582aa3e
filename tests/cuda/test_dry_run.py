"""`benchmarks.gpu` without a GPU: every part but the device itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from benchmarks import gpu

ARMS = [gpu.KERNELS, gpu.GRAPH, "eager backend", "LLaVA-Video form", "OneVision form"]


@pytest.fixture
def no_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "run_tests", lambda: gpu.Tests(status=0, passed=0, skipped=1))


def run(tmp_path: Any) -> tuple[int, dict[str, Any]]:
    output = tmp_path / "gpu.json"
    status = gpu.main(["--dry-run", "--rounds", "2", "--inputs", "2", "--output", str(output)])
    return status, json.loads(output.read_text())


def test_dry_run_takes_every_step(tmp_path: Any, capsys: Any) -> None:
    status, report = run(tmp_path)
    assert status == 0
    assert report["tests"]["skipped"] + report["tests"]["passed"] > 100, "the tests that need CUDA were collected"
    assert [row["arm"] for row in report["rows"]] == 3 * ARMS
    for row in report["rows"]:
        assert 0 < row["milliseconds"]["p20"] <= row["milliseconds"]["p50"] <= row["milliseconds"]["p80"]
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith("all went well")
    assert "dry run" in printed


@pytest.mark.usefixtures("no_tests")
def test_wrong_kernels_are_not_timed(tmp_path: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def last_tokens(machine: Any, video: Any) -> Any:
        indices = gpu.eager(video)[1]
        first = video.tokens[..., 0].numel() - len(indices)
        return video.tokens.flatten(0, 1)[first:], torch.arange(first, first + len(indices))

    monkeypatch.setattr(gpu.Rehearsal, "kernels", last_tokens)
    status, report = run(tmp_path)
    assert status == 1
    assert all(row["milliseconds"] is None for row in report["rows"])
    printed = capsys.readouterr().out
    assert "NOT TIMED" in printed
    assert "SOMETHING FAILED" in printed


@pytest.mark.usefixtures("no_tests")
def test_a_graph_that_differs_is_not_timed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_bits(machine: Any, video: Any) -> Any:
        tokens, indices = machine.kernels(video)
        return lambda: (tokens * 1.01, indices)

    monkeypatch.setattr(gpu.Rehearsal, "captured", other_bits)
    status, report = run(tmp_path)
    assert status == 1
    assert {row["failure"] for row in report["rows"]} == {"a graph's replay differs"}


@pytest.mark.usefixtures("no_tests")
def test_an_arm_that_raises_leaves_the_others_their_figures(
    tmp_path: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(video: Any) -> Any:
        raise RuntimeError("not on this device")

    monkeypatch.setattr(gpu, "published_onevision", broken)
    status, report = run(tmp_path)
    assert status == 1
    assert {row["arm"] for row in report["rows"] if row["milliseconds"] is None} == {"OneVision form"}
    assert len(report["rows"]) == 3 * len(ARMS)
    assert "OneVision form: NOT TIMED, RuntimeError: not on this device" in capsys.readouterr().out


@pytest.mark.usefixtures("no_tests")
def test_kernels_that_raise_leave_a_summary(tmp_path: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(machine: Any, video: Any) -> Any:
        raise RuntimeError("an illegal address")

    monkeypatch.setattr(gpu.Rehearsal, "kernels", broken)
    status, _ = run(tmp_path)
    assert status == 1
    assert "NOT TIMED, RuntimeError: an illegal address" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tests", "device", "fails"),
    [
        (gpu.Tests(status=0, passed=5, skipped=1), "cuda", False),
        (gpu.Tests(status=0, passed=0, skipped=5), "cuda", True),
        (gpu.Tests(status=0, passed=0, skipped=5), "cpu", False),
        (gpu.Tests(status=1, passed=5, skipped=0), "cpu", True),
    ],
)
def test_tests_that_did_not_run_are_no_success(tests: gpu.Tests, device: str, fails: bool) -> None:
    assert (tests.failure(device) is not None) == fails


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a CUDA device")
def test_without_a_device_it_says_so(capsys: Any) -> None:
    assert gpu.main([]) == 2
    assert "--dry-run" in capsys.readouterr().err
