"""The static figures of every kernel: what they are, and that none is worse than the committed report says."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

import triton

from benchmarks.compiled.figures import Figures, Report, Row, worse
from benchmarks.compiled.offline import Launch, compile_for
from benchmarks.compiled.report import as_table, describe, merge
from benchmarks.compiled.situations import CORE, SITUATIONS, Situation
from benchmarks.compiled.targets import TARGETS, Occupancy, Resources

REPORT = Report.read()
REFRESH = "if that is intended, `make kernel-report` writes a new baseline"
same_triton = pytest.mark.skipif(
    triton.__version__ != REPORT.triton,
    reason=f"the report was made with Triton {REPORT.triton}; other versions compile otherwise",
)
# Half precision with given features, and float32 with mean features: two calls whose kernels differ the most.
QUICK = (CORE[0], CORE[2])
EVERY = [*QUICK, *(pytest.param(one, marks=pytest.mark.slow) for one in SITUATIONS if one not in QUICK)]


def losses(launch: Launch, situation: Situation, target: str) -> list[str]:
    """How the kernel, compiled now, is worse than the report says."""
    before = REPORT.find(launch.name, str(situation), target)
    assert before is not None, f"{launch.name} in {situation} is not in the report: `make kernel-report`"
    return worse(Figures.of(compile_for(launch, target), target), before)


@same_triton
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("situation", EVERY, ids=str)
def test_no_kernel_is_worse_than_the_report_says(situation: Situation, target: str) -> None:
    found = {launch.name: losses(launch, situation, target) for launch in situation.launches(target)}
    assert not {kernel: lost for kernel, lost in found.items() if lost}, REFRESH


def test_the_report_covers_every_situation_and_no_spill() -> None:
    spills = {}
    for situation in SITUATIONS:
        for target in TARGETS:
            for launch in situation.launches(target):
                found = REPORT.find(launch.name, str(situation), target)
                assert found is not None, f"{launch.name} in {situation}: `make kernel-report`"
                if found.resources.spilled_bytes:
                    spills[launch.name, str(situation), target] = found.resources.spilled_bytes
    assert not spills


@same_triton
@pytest.mark.parametrize(
    ("kernel", "change", "expected"),
    [
        ("gram_kernel", {"BLOCK": 256}, {"spills", "resident warps", "shared memory"}),
        ("gram_kernel", {"num_stages": 8}, {"resident warps", "shared memory"}),
        ("gram_kernel", {"num_warps": 1}, {"spills", "resident warps", "no longer uses HGMMA"}),
        ("assign_kernel", {"stride_t": 196 * 3583, "stride_n": 3583}, {"16-byte loads"}),
    ],
)
def test_a_kernel_made_worse_is_noticed(kernel: str, change: dict[str, int], expected: set[str]) -> None:
    situation = Situation(32, 196)
    (launch,) = (one for one in situation.launches("sm_90") if one.name == kernel)
    assert losses(launch, situation, "sm_90") == []
    found = losses(Launch(launch.kernel, launch.grid, {**launch.arguments, **change}), situation, "sm_90")
    assert {phrase for phrase in expected if any(one.startswith(phrase) for one in found)} == expected


FIGURES = Figures(Resources(96, 0, 32768, 4), Occupancy(5, 20, "registers"), {"HMMA": 32}, 12, 20)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (FIGURES, []),
        (replace(FIGURES, matrix={"HGMMA": 2, "HMMA": 4}, wide_loads=6, narrow_loads=10), []),
        (replace(FIGURES, resources=Resources(90, 0, 1024, 4), occupancy=Occupancy(8, 32, "blocks")), []),
        (replace(FIGURES, resources=Resources(104, 0, 32768, 4)), []),
        (replace(FIGURES, resources=Resources(96, 8, 32768, 4)), ["spills 8 bytes a thread"]),
        (replace(FIGURES, resources=Resources(96, 0, 32784, 4)), ["shared memory 32768 -> 32784 bytes"]),
        (
            replace(FIGURES, resources=Resources(128, 0, 32768, 4), occupancy=Occupancy(4, 16, "registers")),
            ["resident warps 20 -> 16 (bound by registers; registers 96 -> 128)"],
        ),
        (replace(FIGURES, matrix={"FFMA": 9}), ["no longer uses HMMA"]),
        (replace(FIGURES, wide_loads=0, narrow_loads=4), ["16-byte loads 12 -> 0, narrower ones 20 -> 4"]),
        (replace(FIGURES, wide_loads=8, narrow_loads=52), ["16-byte loads 12 -> 8, narrower ones 20 -> 52"]),
    ],
)
def test_what_counts_as_worse(now: Figures, expected: list[str]) -> None:
    assert worse(now, FIGURES) == expected


@pytest.mark.parametrize(
    ("target", "resources", "blocks", "bound_by"),
    [
        # From NVIDIA's occupancy calculator.
        ("sm_80", Resources(32, 0, 0, 32), 2, "registers"),
        ("sm_80", Resources(255, 0, 0, 8), 1, "registers"),
        ("sm_80", Resources(16, 0, 0, 1), 32, "blocks"),
        ("sm_80", Resources(32, 0, 163 * 1024, 8), 1, "shared memory"),
        ("sm_89", Resources(40, 0, 0, 8), 6, "registers"),
        ("sm_89", Resources(32, 0, 48 * 1024, 8), 2, "shared memory"),
        ("sm_90", Resources(168, 0, 0, 12), 1, "registers"),
        ("sm_90", Resources(64, 0, 227 * 1024, 4), 1, "shared memory"),
        ("sm_100", Resources(64, 0, 1024, 4, tensor_columns=256), 2, "tensor memory"),
        # AMD's table of waves by VGPRs for CDNA: 64 give 8, 72 give 7, 80 give 6, 96 give 5, 128 give 4, 168 give 3.
        *(
            ("gfx942", Resources(registers, 0, 0, 4), waves, "registers")
            for registers, waves in ((64, 8), (72, 7), (80, 6), (96, 5), (128, 4), (168, 3), (256, 2), (512, 1))
        ),
        ("gfx942", Resources(24, 0, 32 * 1024, 4), 2, "shared memory"),
    ],
)
def test_occupancy(target: str, resources: Resources, blocks: int, bound_by: str) -> None:
    expected = Occupancy(blocks, blocks * resources.warps, bound_by)
    assert TARGETS[target].occupancy(resources) == expected


def test_a_report_is_read_as_it_was_written(tmp_path) -> None:
    row = Row("gram_kernel", ("32x196x3584-bf16-R=0.1",), {"sm_80": FIGURES, "sm_90": replace(FIGURES, matrix={})})
    report = Report("3.0", {"sm_80": "12"}, [row])
    report.write(tmp_path / "report.json")
    assert Report.read(tmp_path / "report.json") == report
    assert report.find("gram_kernel", "32x196x3584-bf16-R=0.1", "sm_80") == FIGURES
    assert report.find("emit_kernel", "32x196x3584-bf16-R=0.1", "sm_80") is None


def test_situations_share_a_row_where_no_target_tells_them_apart() -> None:
    one, other, third = SITUATIONS[:3]
    spilling = replace(FIGURES, resources=Resources(255, 8, 0, 4))
    found = {
        "sm_80": {("gram_kernel", one): FIGURES, ("gram_kernel", other): FIGURES, ("gram_kernel", third): FIGURES},
        "sm_90": {("gram_kernel", one): FIGURES, ("gram_kernel", other): spilling, ("gram_kernel", third): FIGURES},
    }
    assert [row.situations for row in merge(found)] == [(str(one), str(third)), (str(other),)]


def test_a_row_says_what_its_situations_have_in_common() -> None:
    half = [one for one in SITUATIONS if one.dtype == "bf16"]
    assert describe(SITUATIONS, SITUATIONS) == "all"
    assert describe(half, SITUATIONS) == "bf16"
    assert describe([one for one in SITUATIONS if one.videos], SITUATIONS) == "ragged"
    assert describe([one for one in SITUATIONS if one.tokens_per_frame == 1024], SITUATIONS) == "8x1024"


def test_the_table_has_a_row_for_each_of_the_report() -> None:
    assert len(as_table(REPORT).rows) == len(REPORT.rows)
