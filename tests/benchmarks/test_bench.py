"""The microbenchmarks: what they count, what they refuse to time, and what their report says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import fastvid_kernels
from benchmarks.compared import arms
from benchmarks.inputs.cases import LLAVA_VIDEO, LONG, ONEVISION, RAGGED, TYPICAL, Case, inputs_of
from benchmarks.measured import bench_prune, bench_report

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def test_least_bytes_are_the_tokens_and_the_output() -> None:
    for case in (*TYPICAL, *RAGGED, Case(5, 40, retention_ratio=0.29, channels=24, dtype="float32", videos=3)):
        tokens = torch.empty(
            case.videos * case.frames,
            case.tokens_per_frame,
            case.channels,
            dtype=getattr(torch, case.dtype),
            device="meta",
        )
        attn = tokens.new_empty(tokens.shape[:2])
        kept, _ = fastvid_kernels.prune(tokens, attn, config=case.config)
        assert case.least_bytes == tokens.nbytes + kept.nbytes


def test_the_floors_of_the_two_models() -> None:
    """16 and 28 microseconds at 3.0 TB/s."""
    floors = [Case(*size).least_bytes / 3.0e12 for size in (ONEVISION, LLAVA_VIDEO)]
    assert floors == pytest.approx([16e-6, 28e-6], rel=0.05)


def test_inputs_differ_and_are_no_zeros() -> None:
    case = Case(6, 20, channels=16, videos=2)
    first, second = inputs_of(case, 2)
    assert not torch.equal(first.tokens, second.tokens)
    assert first.tokens.abs().min() >= 0
    assert (first.tokens != 0).float().mean() > 0.99
    assert first.cu_frames.tolist() == [0, 6, 12]
    assert len(first.tokens) == 12


@pytest.mark.parametrize("make", [arms.eager, arms.published_llava_video, arms.reference])
def test_a_batch_is_its_videos(make: Any) -> None:
    case, alone = Case(12, 36, channels=32, videos=3), Case(12, 36, channels=32)
    (batch,) = inputs_of(case, 1)
    run = (lambda one: arms.reference(case, one, CPU)) if make is arms.reference else make(case)
    run_one = (lambda one: arms.reference(alone, one, CPU)) if make is arms.reference else make(alone)
    tokens, indices = run(batch)
    for number, video in enumerate(inputs_of(alone, 3)):
        own, own_indices = run_one(video)
        rows = slice(number * len(own), (number + 1) * len(own))
        assert torch.equal(indices[rows] - number * 12 * 36, own_indices)
        torch.testing.assert_close(tokens[rows], own)


def test_matrix_products_are_those_of_the_eager_backend() -> None:
    case = Case(12, 36, channels=32)
    (inputs,) = inputs_of(case, 1)
    expected = arms.eager(case)(inputs)
    calls: list[tuple[torch.Size, torch.Size]] = []
    real = arms.products.inner_products

    def count(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        calls.append((x.shape, y.shape))
        return real(x, y)

    with (
        mock.patch.object(arms.products, "inner_products", count),
        mock.patch.object(arms.merge, "inner_products", count),
    ):
        arms.eager(case)(inputs)
        whole = calls.copy()
        run = arms.matrix_products(case)
        run(inputs)
        calls.clear()
        again = run(inputs)
    assert calls == whole
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again, expected, strict=True))


def test_a_wrong_result_is_not_timed() -> None:
    case = Case(12, 36, channels=32)
    (inputs,) = inputs_of(case, 1)
    tokens, indices = arms.eager(case)(inputs)
    assert bench_prune.check(case, arms.EAGER, [lambda: (tokens, indices)], CPU) >= 0.995
    with pytest.raises(AssertionError, match="of rows are close"):
        bench_prune.check(case, arms.EAGER, [lambda: (tokens * 1.1, indices)], CPU)
    with pytest.raises(AssertionError, match="of the reference's tokens"):
        bench_prune.check(case, arms.EAGER, [lambda: (tokens, torch.arange(len(indices)))], CPU)


def record(case: Case, arm: str, milliseconds: float, stage: str | None = None) -> dict[str, Any]:
    # Two calls are timed together.
    info: dict[str, Any] = {"case": asdict(case), "arm": arm, "calls": 2}
    info |= {"stage": stage} if stage else {"least_bytes": case.least_bytes, "copy_rate": 1e10, "overlap": 1.0}
    data = [2e-3 * milliseconds * factor for factor in (0.9, 1.0, 1.1)]
    return {"extra_info": info, "stats": {"data": data, "rounds": 3}}


def test_report(tmp_path: Path, capsys: Any) -> None:
    one, long = Case(*ONEVISION), LONG[1]
    records = [record(one, arms.EAGER, 30.0), record(one, arms.LLAVA_VIDEO_FORM, 60.0), record(long, arms.EAGER, 900.0)]
    records.append(record(one, arms.PRODUCTS, 20.0))
    records += [record(one, arms.EAGER, 20.0, "merge"), record(one, arms.EAGER, 10.0, "density peaks")]
    raw = tmp_path / "raw.json"
    raw.write_text(json.dumps({"machine_info": {"cpu": "an abacus"}, "benchmarks": records}))
    assert bench_report.main([str(raw), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "an abacus" in printed
    row = next(line for line in (tmp_path / "out.txt").read_text().splitlines() if arms.LLAVA_VIDEO_FORM in line)
    assert "60.000" in row
    assert "2.00" in row
    assert "3.00" in row, "times its matrix products"
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert rows[0]["gigabytes_per_second"] == pytest.approx(one.least_bytes / 0.030 / 1e9)
    assert rows[0]["share_of_copy_rate"] == pytest.approx(one.least_bytes / 0.030 / 1e10)
    for name in ("out-frames.png", "out-stages.png"):
        assert (tmp_path / name).stat().st_size > 5_000


def test_a_report_of_nothing_says_so(tmp_path: Path, capsys: Any) -> None:
    raw = tmp_path / "raw.json"
    raw.write_text(json.dumps({"machine_info": {}, "benchmarks": []}))
    assert bench_report.main([str(raw), "--output", str(tmp_path / "out")]) == 1
    assert "holds no measurement" in capsys.readouterr().err


@pytest.mark.slow
def test_rehearsal(tmp_path: Path) -> None:
    """Every arm and stage that a CPU has, on tiny sizes, from the command line to the report."""
    raw = tmp_path / "raw.json"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "benchmarks/measured/bench_stages.py",
        "benchmarks/measured/bench_prune.py",
        "-o",
        "addopts=",
    ]
    command += ["-q", "--tiny", "--bench-device=cpu", f"--benchmark-json={raw}", "--benchmark-save-data"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": "."}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert bench_report.main([str(raw), "--output", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert {row["arm"] for row in rows} == {
        arms.EAGER,
        arms.PRODUCTS,
        arms.COMPILED,
        arms.LLAVA_VIDEO_FORM,
        arms.ONEVISION_FORM,
    }
    assert len([row for row in rows if row["stage"]]) == 4
