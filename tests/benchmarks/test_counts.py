"""The model of the kernels' time against what their compiled code does, counted in emulation.

Matrix operations must be equal. For each stage that moves megabytes, the distinct bytes that it touches must be within
10 % of the model's, and the bytes that it requests between the model's and twice as many, since padding requests rows
again. What the model leaves out, tables of a few bytes a token, must be less than a twentieth of a call.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.inputs.videos import preset_video
from benchmarks.model import counts
from benchmarks.model.counts import StageCount, count_call
from fastvid_kernels import PruneConfig
from fastvid_kernels.kernels import pipeline
from tests.emulator import Emulator, Options, TensorCores
from tests.emulator.guarded import emulated_calls
from tests.emulator.lane import can_emulate

pytestmark = pytest.mark.skipif(not can_emulate(), reason="needs g++, and kernels that are compiled")

HEAVY = ("gram", "density", "delta", "assign", "emit", "gradient")
CASES = [
    pytest.param("sm_80", 8, 6, id="sm_80, many segments"),
    pytest.param("sm_80", 8, 1, id="sm_80, one segment"),
    pytest.param("sm_90", 8, 1, id="sm_90, one segment"),
    pytest.param("sm_80", 20, 1, id="sm_80, a group of anchor frames and one"),
]


def counted(target: str, frames: int, segments: int) -> dict[str, StageCount]:
    """The stages of a call, and the last stage of its backward pass."""
    size = (frames, 196, 1024)
    call = count_call(size, min_segments=segments, target=target)
    last = count_call(size, min_segments=segments, target=target, backward=True)[-1]
    return {one.work.stage: one for one in (*call, last)}


@pytest.mark.parametrize(("target", "frames", "segments"), CASES)
def test_the_model_is_of_the_code_that_ships(target: str, frames: int, segments: int) -> None:
    stages = counted(target, frames, segments)
    for name in HEAVY:
        one = stages[name]
        assert one.flops == one.work.matrix_flops, name
        assert one.distinct_bytes == pytest.approx(one.modelled_distinct_bytes, rel=0.1), name
        assert one.work.requested_bytes <= one.asked_bytes <= 2 * one.work.requested_bytes, name
    light = sum(one.asked_bytes for name, one in stages.items() if name not in HEAVY)
    assert stages["gradient"].flops == 0
    assert light < sum(one.asked_bytes for one in stages.values()) / 20
    assert stages["gram"].bank_conflicts == 0
    # Rows beyond a frame are asked for too. With a diagonal that asks for its rows twice, it would be 1.6.
    assert stages["gram"].asked_bytes < 1.4 * stages["gram"].work.requested_bytes


def test_a_model_of_other_code_is_noticed() -> None:
    """Counts and model of a video with other cuts differ from those of this video."""
    here, elsewhere = counted("sm_80", 8, 1), counted("sm_80", 8, 6)
    assert here["gram"].asked_bytes * 1.2 < elsewhere["gram"].asked_bytes
    assert here["gram"].work.requested_bytes * 1.2 < elsewhere["gram"].work.requested_bytes
    assert here["assign"].flops > 1.2 * elsewhere["assign"].flops
    assert here["assign"].work.matrix_flops > 1.2 * elsewhere["assign"].work.matrix_flops


def long_segment(anchor_frames_a_launch: int | None) -> dict[str, tuple[int, int]]:
    """Bytes that `assign` and `emit` load, and their operations, for 32 frames in one segment: eight anchor frames."""
    video = preset_video("one static shot", 32, 196, 128, seed=0, dtype=torch.bfloat16)
    emulator = Emulator(80, Options(TensorCores.AMPERE, races=False))
    with emulated_calls(emulator):
        config = PruneConfig(min_segments=1)
        call = pipeline.prepare(*video, None, config, ordinals_per_chunk=anchor_frames_a_launch)
        pipeline.launch(call)
    assert not emulator.findings
    loaded = {"assign": 0, "emit": 0}
    flops = dict(loaded)
    for run in emulator.runs:
        stage = run.kernel.removesuffix("_kernel")
        if stage in loaded:
            loaded[stage] += sum(one.loaded_bytes for one in run.traffic.values())
            flops[stage] += 2 * run.totals.multiply_adds
    return {stage: (loaded[stage], flops[stage]) for stage in loaded}


def test_four_anchor_frames_share_what_is_read() -> None:
    """Launches of one anchor frame each share nothing. `assign` makes as many products there, but for the last tile;
    `emit` twice as many, since its product has rows for two anchor frames.
    """
    together, apart = long_segment(None), long_segment(1)
    for stage in together:
        assert apart[stage][0] > 2.25 * together[stage][0], stage
    assert together["assign"][1] == pytest.approx(apart["assign"][1], rel=0.01)
    assert 2 * together["emit"][1] == pytest.approx(apart["emit"][1], rel=0.01)


def test_the_table_has_a_row_for_each_stage() -> None:
    stages = counted("sm_80", 8, 6)
    assert counts.as_table("counted", list(stages.values())).row_count == 9
