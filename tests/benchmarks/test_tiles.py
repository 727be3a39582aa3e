"""The variants of the kernels' tiles: each computes what the shipped tiles compute, and the sweep picks the fastest."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.compared import arms
from benchmarks.compiled.offline import record_call
from benchmarks.gpu import tiles
from benchmarks.gpu.tiles import VARIANTS, Variant
from benchmarks.inputs.cases import Case, inputs_of

# Two tiles of 64 tokens in a frame, channels that no tile divides, anchors in every frame.
SMALL = Case(9, 70, retention_ratio=0.3, channels=136)


def ids(variants: Sequence[Variant]) -> list[str]:
    return [str(one) for one in variants]


@pytest.mark.slow
@pytest.mark.runs_kernels
@pytest.mark.parametrize("variant", VARIANTS, ids=ids(VARIANTS))
def test_a_variant_computes_the_same(variant: Variant) -> None:
    (inputs,) = inputs_of(SMALL, 1)
    shipped, found = tiles.run(SMALL, inputs), tiles.run(SMALL, inputs, (variant,))
    assert torch.equal(found[1], shipped[1])
    assert tiles.agrees(found, shipped, SMALL.dtype)


def test_no_variant_is_what_ships() -> None:
    case = tiles.CASES[0]
    tokens = torch.empty(case.frames, case.tokens_per_frame, case.channels, dtype=torch.bfloat16, device="meta")
    for target in ("sm_80", "sm_90"):
        launches = {one.name.removesuffix("_kernel"): one for one in record_call(target, tokens)}
        for variant in VARIANTS:
            for name in launches if variant.stage == tiles.EVERY else [variant.stage]:
                arguments = launches[name].arguments
                assert any(arguments.get(key) != value for key, value in variant.constants), variant


@pytest.mark.runs_kernels
def test_a_variant_that_computes_something_else_is_seen() -> None:
    (inputs,) = inputs_of(SMALL, 1)
    found = tiles.run(SMALL, inputs, (Variant("emit", (("beta", 1),)),))
    assert not tiles.agrees(found, tiles.run(SMALL, inputs), SMALL.dtype)


@pytest.mark.runs_kernels
def test_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, with times that the test makes up: of each stage, the fastest variant joins the last measurement."""
    variants = tuple(Variant(stage, (("num_stages", count),)) for stage in ("gram", "emit") for count in (1, 2))
    made_up = {(): 10.0, variants[:1]: 9.0, variants[1:2]: 8.0, variants[2:3]: 9.5, variants[3:]: 10.5}
    made_up[variants[1:3]] = 7.0

    def captured(runs: Sequence[Any]) -> Callable[[], Any]:
        def replay() -> Any:
            return [run() for run in runs][-1]

        replay.variants = runs[0].args[2]  # type: ignore[attr-defined]
        return replay

    monkeypatch.setattr(tiles, "VARIANTS", variants)
    monkeypatch.setattr(tiles, "CASES", (SMALL,))
    monkeypatch.setattr(tiles, "_DEVICE", torch.device("cpu"))
    monkeypatch.setattr(tiles, "compile_all", lambda: None)
    monkeypatch.setattr(arms, "captured", captured)
    monkeypatch.setattr(tiles, "microseconds", lambda replay, replays: tiles._SETS * made_up[replay.variants])
    rows = tiles.sweep()
    assert [row.get("ratio") for row in rows] == [0.9, 0.8, 0.95, 1.05, 0.7], rows
    assert rows[-1]["variant"] == "gram: num_stages 2; emit: num_stages 1"


def test_the_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tiles, "VARIANTS", VARIANTS[-2:])
    assert tiles.main(["--output", str(tmp_path / "new"), "--dry-run"]) == 0
    rows = json.loads((tmp_path / "new" / "tiles.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == ids(VARIANTS[-2:])
    assert all(row["registers"] > 16 for row in rows)
    assert "needed of an H100" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=ids(VARIANTS))
def test_a_variant_fits_an_h100(variant: Variant) -> None:
    needed = tiles.needs(variant)
    assert needed["spilled_bytes"] == 0
    assert needed["shared_bytes"] <= 227 * 1024


def test_it_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tiles.main(["--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
