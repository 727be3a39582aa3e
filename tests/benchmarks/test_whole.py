"""`make gpu` without a GPU: its summary is right."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import whole
from benchmarks.gpu.whole import Part


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


GOOD = Part("good", (python("print('first')"), python("print('second')")), 60)
BAD = Part("bad", (python("print('before'); raise SystemExit(3)"), python("print('nonetheless')")), 60)
SLOW = Part("slow", (python("import time; print('begun', flush=True); time.sleep(60)"),), 2)
TOOLLESS = Part("toolless", (python("print('ran')"),), 60, tool="a-tool-that-nobody-has")


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *parts: Part, only: tuple[str, ...] = ()) -> tuple[int, Any]:
    monkeypatch.setattr(whole, "parts", lambda folder, dry_run: list(parts))
    arguments = ["--dry-run", "--output", str(tmp_path)]
    status = whole.main(arguments + (["--only", *only] if only else []))
    return status, json.loads((tmp_path / "summary.json").read_text())["parts"]


def test_every_outcome_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    status, outcomes = run(tmp_path, monkeypatch, GOOD, BAD, SLOW, TOOLLESS)
    assert status == 1
    assert {one["part"]: one["result"] for one in outcomes} == {
        "good": "passed",
        "bad": "failed",
        "slow": "cut off",
        "toolless": "not shown",
    }
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith("SOMETHING FAILED")
    assert "a-tool-that-nobody-has is not on this machine" in printed
    for shown in ("first", "second", "before", "nonetheless", "begun"):
        assert f"\n{shown}\n" in printed
    assert "\nran" not in printed


def test_what_is_cut_off_leaves_nothing_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that it started end too: they would disturb the times of the next part."""
    mark = tmp_path / "mark"
    grandchild = f"import time; time.sleep(4); open({str(mark)!r}, 'w')"
    starts = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {grandchild!r}]); time.sleep(60)"
    run(tmp_path, monkeypatch, Part("parent", (python(starts),), 2))
    time.sleep(4)
    assert not mark.exists()


def test_a_part_has_variables_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    says = python("import os; print('it is', os.environ.get('OF_ONE_PART'))")
    run(tmp_path, monkeypatch, Part("one", (says,), 60, environment={"OF_ONE_PART": "here"}), Part("two", (says,), 60))
    printed = capsys.readouterr().out
    assert "it is here" in printed
    assert "it is None" in printed


def test_what_could_not_be_shown_is_no_failure_and_no_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    status, outcomes = run(tmp_path, monkeypatch, GOOD, TOOLLESS)
    assert status == 0
    assert [one["result"] for one in outcomes] == ["passed", "not shown"]
    assert capsys.readouterr().out.rstrip().endswith("all that could be shown passed")


def test_one_part_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, outcomes = run(tmp_path, monkeypatch, GOOD, BAD, only=("good",))
    assert (status, [one["part"] for one in outcomes]) == (0, ["good"])


def test_all_parts_fit_into_ten_minutes() -> None:
    for dry_run in (True, False):
        # Half a minute is left for what is done between parts.
        assert sum(part.limit_seconds for part in whole.parts(Path("out"), dry_run)) <= 9.5 * 60


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a CUDA device")
def test_without_a_device_it_says_so(tmp_path: Path, capsys: Any) -> None:
    assert whole.main(["--output", str(tmp_path / "out")]) == 2
    assert "--dry-run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_dry_run_exercises_every_part(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Time limits are not what a dry run tests.
    monkeypatch.setattr(whole, "run", lambda part, folder, run=whole.run: run(replace(part, limit_seconds=900), folder))
    assert whole.main(["--dry-run", "--output", str(tmp_path)]) == 0, capsys.readouterr().out
    outcomes = json.loads((tmp_path / "summary.json").read_text())["parts"]
    assert [one["result"] for one in outcomes] == ["passed"] * len(whole.parts(tmp_path, dry_run=True))
    for name in ("bench.json", "bench.txt", "compiled.json", "llava.json"):
        assert (tmp_path / name).stat().st_size > 0
