"""The model's counts against the oracle's own run, tile by tile, and what must hold of any of its predictions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import product

import pytest
import torch

pytest.importorskip("triton")

import reference
from benchmarks.compared import arms
from benchmarks.inputs.cases import Case
from benchmarks.inputs.videos import PRESETS, preset_video
from benchmarks.measured import bench_report
from benchmarks.measured.spread import Spread
from benchmarks.model.devices import COPY_SHARE, DEVICES
from benchmarks.model.prediction import EAGER, GRAPH, Model, compare, equal_segments, segments_of
from benchmarks.model.report import main
from benchmarks.model.scenario import Scenario
from benchmarks.model.stages import works
from benchmarks.model.work import Access, Work
from fastvid_kernels import PruneConfig, prune

H100 = Model(DEVICES["h100"])
ONEVISION = Scenario(196, 3584, equal_segments(32, 8))
LLAVA_VIDEO = Scenario(169, 3584, equal_segments(64, 8))
EVERYTHING = 1e18


def by_stage(scenario: Scenario) -> dict[str, Work]:
    return {work.stage: work for work in works(scenario)}


@pytest.fixture(scope="module")
def oracle_run() -> tuple[reference.PruneResult, Scenario]:
    """A video with one- and two-anchor-frame segments, more anchors than a tile holds, and ragged tiles everywhere."""
    config = PruneConfig(retention_ratio=0.5, min_segments=3)
    video = preset_video("few cuts", 16, 150, 72, seed=2)
    oracle = reference.prune(*video, **asdict(config))
    lengths = tuple(end - start for start, end in oracle.segments)
    assert len({-(-length // 4) for length in lengths}) > 1
    assert max(len(record.anchors) for record in oracle.anchor_frames) > 32
    return oracle, Scenario(150, 72, lengths, dtype="float32", config=config)


@pytest.mark.parametrize(("dtype", "depth"), [("float32", 32), ("bfloat16", 64)])
def test_gram_work_is_that_of_the_oracles_anchor_frames(oracle_run, dtype: str, depth: int) -> None:
    oracle, scenario = oracle_run
    scenario = replace(scenario, dtype=dtype)
    rows, flops, tiles = 0, 0, 0
    for _ in oracle.anchor_frames:
        for i, j in product(range(0, 150, 64), repeat=2):
            if j >= i:
                tiles += 1
                rows += min(64, 150 - i)
                if j > i or dtype == "float32":
                    rows += min(64, 150 - j)
                flops += sum(2 * 64 * 64 * depth for _ in range(0, 72, depth))
    work = by_stage(scenario)["gram"]
    tokens, matrices = work.accesses
    assert (work.blocks, work.matrix_flops) == (tiles, flops)
    assert tokens.requested == rows * scenario.row_bytes
    assert tokens.distinct == len(oracle.anchor_frames) * 150 * scenario.row_bytes
    assert matrices.distinct == len(oracle.anchor_frames) * 150 * 150 * 4


def passes_over(oracle: reference.PruneResult, parts_of_a_group: int = 1) -> Iterator[tuple[int, int, list[int]]]:
    """For each pass over a segment's tokens: start and end of the segment, and numbers of anchors of its anchor frames.

    A pass serves four anchor frames, counted from the last, then two, if all have equally many tiles of 32 anchors.
    Those that have not are served one by one, or four of them in parts of `parts_of_a_group` that have.
    """
    for number, (start, end) in enumerate(oracle.segments):
        records = [record for record in oracle.anchor_frames if record.segment == number]
        anchors = [len(record.anchors) for record in sorted(records, key=lambda record: -record.frame)]
        while anchors:
            size = next(size for size in (4, 2, 1) if size <= len(anchors))
            for some in _in_passes(anchors[:size], parts_of_a_group):
                yield start, end, some
            del anchors[:size]


def _in_passes(anchors: list[int], part: int) -> Iterator[list[int]]:
    if len({-(-count // 32) for count in anchors}) == 1:
        yield anchors
    else:
        smaller = min(part, len(anchors) // 2)
        for first in range(0, len(anchors), smaller):
            yield from _in_passes(anchors[first : first + smaller], part)


def test_assignment_work_is_that_of_the_oracles_pairs(oracle_run) -> None:
    """A pass takes 64 tokens of 72 channels (three tiles of 32 in float32, or six of 16 for a group) at a time."""
    oracle, scenario = oracle_run
    token_rows, anchor_rows, flops = 0, 0, 0
    for start, end, anchors in passes_over(oracle):
        tokens = (end - start) * 150
        for i, slot in product(range(0, tokens, 64), range(0, max(anchors), 32)):
            token_rows += min(64, tokens - i)
            anchor_rows += sum(min(32, count - slot) for count in anchors)
            channels = sum(16 for _ in range(0, 72, 16)) if len(anchors) == 4 else sum(32 for _ in range(0, 72, 32))
            flops += 2 * 64 * 32 * len(anchors) * channels
    work = by_stage(scenario)["assign"]
    first_tokens, other_tokens, anchors, nearest = work.accesses
    assert work.matrix_flops == flops
    assert first_tokens.requested + other_tokens.requested == token_rows * 72 * 4
    assert first_tokens.distinct == scenario.token_bytes
    assert anchors.requested == anchor_rows * 72 * 4
    assert anchors.distinct == sum(len(record.anchors) for record in oracle.anchor_frames) * 72 * 4
    lengths = [end - start for record in oracle.anchor_frames for start, end in [oracle.segments[record.segment]]]
    assert nearest.requested == sum(lengths) * 150 * 2


def test_merging_reads_a_segment_once_for_every_tile_of_anchors(oracle_run) -> None:
    """In float32, 32 tokens at a time, of 32 channels for a group, or of 64 for a pair or one alone."""
    oracle, scenario = oracle_run
    rows, flops, blocks, slots = 0, 0, 0, 0
    for start, end, anchors in passes_over(oracle, parts_of_a_group=2):
        tokens = (end - start) * 150
        width = 32 if len(anchors) == 4 else 64
        ranges = len(range(0, 72, width))
        for _ in range(0, max(anchors), 32):
            rows += tokens
            blocks += ranges
            slots += ranges * tokens * len(anchors)
            flops += 2 * 32 * max(2, len(anchors)) * ranges * width * sum(32 for _ in range(0, tokens, 32))
    copies, output, pools, joined = (work := by_stage(scenario)["emit"]).accesses
    assert copies.requested == len(oracle.indices) * 72 * 4
    assert output.requested == oracle.source.nbytes
    assert pools.requested == rows * 72 * 4
    assert pools.distinct == scenario.token_bytes
    assert copies.distinct == 0, "all segments are merged"
    assert joined.requested == slots * 2
    assert (work.blocks, work.matrix_flops) == (blocks, flops)


def test_a_gradient_reads_a_row_for_each_of_the_oracles_pairs(oracle_run) -> None:
    oracle, scenario = oracle_run
    rows = len(oracle.indices) + sum(len(record.pool) for record in oracle.anchor_frames)
    grad, written, waiting, _ = by_stage(replace(scenario, backward=True))["gradient"].accesses
    assert grad.requested == rows * 72 * 4
    assert grad.distinct == len(oracle.indices) * 72 * 4
    assert written.requested == written.distinct == scenario.token_bytes
    assert waiting.requested == 0, "it is one launch"


@pytest.mark.parametrize("feature_channels", [1152, None])
@pytest.mark.parametrize(
    "scenario",
    [ONEVISION, LLAVA_VIDEO, replace(ONEVISION, dtype="float32"), replace(ONEVISION, backward=True)],
)
def test_with_a_cache_for_everything_memory_moves_the_floor(scenario: Scenario, feature_channels: int | None) -> None:
    """Beside the floor, only features and indices move: each token is fetched once, by the first stage to read it."""
    scenario = replace(scenario, feature_channels=feature_channels)
    moved = sum(work.memory_bytes(EVERYTHING) for work in works(scenario))
    itemsize = scenario.row_bytes // scenario.channels
    features = scenario.frames * (feature_channels or 0) * itemsize
    assert moved == scenario.floor_bytes + features + scenario.frames * scenario.kept * 8


def test_the_floor_is_the_size_of_the_tensors() -> None:
    config = PruneConfig(retention_ratio=0.25)
    tokens = torch.randn(8, 12, 16).bfloat16()
    result = prune(tokens, torch.rand(8, 12), config=config)
    scenario = Scenario(12, 16, equal_segments(8, 8), config=config)
    assert scenario.floor_bytes == tokens.nbytes + result.tokens.nbytes


@pytest.mark.parametrize(("scenario", "microseconds"), [(ONEVISION, 16), (LLAVA_VIDEO, 28)])
def test_the_floor_at_three_terabytes_a_second(scenario: Scenario, microseconds: float) -> None:
    assert Model(DEVICES["h100"], copy_tb_s=3.0).floor_us(scenario) == pytest.approx(microseconds, abs=0.5)


@pytest.mark.parametrize("scenario", [ONEVISION, LLAVA_VIDEO])
def test_products_of_the_models_in_use(scenario: Scenario) -> None:
    """Not fewer than the budgets require, and not many more, which padded tiles cause."""
    works = by_stage(scenario)
    anchor_frames = sum(-(-length // 4) for length in scenario.segment_lengths)
    assert 2e9 < works["gram"].matrix_flops < 4e9
    assert works["gram"].matrix_flops > anchor_frames * scenario.tokens_per_frame**2 * scenario.channels
    context = scenario.kept * scenario.frames * 2 // 5
    length = scenario.segment_lengths[0]
    useful = 2 * length * scenario.tokens_per_frame * context * scenario.channels
    assert 0.98 * useful < works["assign"].matrix_flops < 1.6 * useful


def test_a_long_video_of_few_segments_is_limited_by_its_products() -> None:
    """Four anchor frames share a pass over the tokens, so that repeated reads cost less than the products."""
    prediction = H100.predict(Scenario(196, 3584, equal_segments(1024, 8)))
    products = sum(stage.microseconds["matrix"] for stage in prediction.stages)
    assert 5e3 < products < 7e3
    assert products < prediction.graph_us < 1.2 * products
    requested = sum(stage.work.requested_bytes for stage in prediction.stages if stage.work.stage in ("assign", "emit"))
    # With a pass for each anchor frame, and tiles of a frame each, 118.5 GB were requested.
    assert requested < 118.5e9 / 3.3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_more_work_takes_no_less_time(device: str, dtype: str) -> None:
    def predicted(n: int, channels: int, lengths: tuple[int, ...]) -> float:
        return Model(DEVICES[device]).predict(Scenario(n, channels, lengths, dtype=dtype)).graph_us

    for sizes in [
        [(196, 3584, equal_segments(frames, 8)) for frames in (16, 32, 64, 256, 1024)],
        [(n, 3584, equal_segments(32, 8)) for n in (49, 100, 196, 256)],
        [(196, channels, equal_segments(32, 8)) for channels in (1024, 2048, 3584, 8192)],
        [(196, 3584, equal_segments(128, count)) for count in (16, 8, 2, 1)],
    ]:
        times = [predicted(*size) for size in sizes]
        assert times == sorted(times)


def test_a_better_device_is_no_slower() -> None:
    long_video = Scenario(196, 3584, equal_segments(512, 8))
    for scenario in (ONEVISION, LLAVA_VIDEO, long_video):
        assert Model(DEVICES["h200"]).predict(scenario).graph_us <= H100.predict(scenario).graph_us
    slower = Model(DEVICES["h100"], copy_tb_s=1.0)
    assert slower.predict(long_video).graph_us > H100.predict(long_video).graph_us
    assert Model(DEVICES["h100"], copy_tb_s=COPY_SHARE * 3.35).predict(ONEVISION) == H100.predict(ONEVISION)


def test_a_stage_takes_its_longest_bound() -> None:
    """3 GB at 3 TB/s are a millisecond; 495 GF at half of 989 TF/s are another."""
    work = Work("x", 1, blocks=132, accesses=(Access(3e9, 3e9),), trips=0, matrix_flops=989e9)
    stage = Model(DEVICES["h100"], copy_tb_s=3.0).stage(work, "bfloat16")
    assert stage.microseconds["memory"] == pytest.approx(1e3)
    assert stage.microseconds["matrix"] == pytest.approx(2e3)
    assert (stage.bound, stage.total_us) == ("matrix", pytest.approx(2002))
    half_idle = Model(DEVICES["h100"]).stage(replace(work, blocks=66), "bfloat16")
    assert half_idle.microseconds["matrix"] == pytest.approx(4e3)


def test_what_a_cache_serves() -> None:
    access = Access(distinct=100, requested=400, seen=40, age=200, span=150)
    assert access.from_memory(0) == 400
    assert access.from_memory(EVERYTHING) == 60
    # The cache serves half of what was seen before, and a third of the repeats.
    assert access.from_memory(100) == pytest.approx(60 + 20 + 100)


@pytest.mark.parametrize("kind", PRESETS)
def test_segments_of_a_kind_of_video(kind: str) -> None:
    config = PruneConfig()
    lengths = segments_of(kind, 64, config, seed=5)
    assert sum(lengths) == 64
    assert len(lengths) == max(8, PRESETS[kind].shots)
    video = preset_video(kind, 64, 4, 8, seed=5)
    segments = reference.prune(*video, **asdict(config.replace(retention_ratio=0.25))).segments
    assert lengths == tuple(end - start for start, end in segments)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--dtype", "float32", "--feature-channels", "0", "--device", "mi300x"],
        ["--lengths", "1", "9", "6", "--beta", "1"],
        ["--frames", "4", "--tokens", "8", "--channels", "16", "--retention-ratio", "0.5", "--dtm-ratio", "0"],
    ],
)
def test_the_command_says_that_it_predicts(options: list[str], capsys) -> None:
    assert main(options) == 0
    printed = capsys.readouterr().out
    assert "PREDICTED for" in printed
    assert "Predictions, not measurements." in printed


def gpu_report(**machine: str) -> dict:
    case, batch = Case(32, 196), Case(32, 196, videos=4)
    rows = [
        bench_report.Row(case, EAGER, None, Spread(0.1, 0.2, 0.3), rounds=9),
        bench_report.Row(case, GRAPH, None, Spread(0.05, 0.1, 0.2), rounds=9),
        bench_report.Row(case, arms.EAGER, None, Spread(1, 2, 3), rounds=9),
        bench_report.Row(batch, GRAPH, None, Spread(1, 2, 3), rounds=9),
        bench_report.Row(case, EAGER, "gram", Spread(0.01, 0.02, 0.03), rounds=9),
    ]
    return {"machine": {"copy_gigabytes_per_second": 2500.0, **machine}, "rows": [asdict(row) for row in rows]}


def test_the_names_of_the_kernels_arms() -> None:
    assert (EAGER, GRAPH) == (arms.KERNELS, arms.GRAPH)


def test_a_measurement_stands_beside_its_prediction(tmp_path, capsys) -> None:
    report = gpu_report(gpu="NVIDIA H100 80GB HBM3")
    rows = compare(H100, report)
    assert [(row.part, row.measured) for row in rows] == [(EAGER, 200), (GRAPH, 100), ("gram", 20)]
    assert all(row.ratio == row.measured / row.predicted for row in rows)
    scenarios = [
        replace(ONEVISION, segment_lengths=segments_of("few cuts", 32, PruneConfig(), seed)) for seed in range(4)
    ]
    predictions = [H100.predict(scenario) for scenario in scenarios]
    assert rows[1].predicted == pytest.approx(sum(one.graph_us for one in predictions) / 4)
    gram = [stage for one in predictions for stage in one.stages if stage.work.stage == "gram"]
    assert rows[2].predicted == pytest.approx(sum(stage.total_us for stage in gram) / 4)
    assert rows[2].bound == gram[0].bound
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(report))
    assert main(["--measured", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "measured on NVIDIA H100" in printed
    assert "Copy bandwidth 2.50 TB/s (measured)" in printed
    for name, predicted_for in {"NVIDIA H200": "H200 SXM", "an abacus": "H100 SXM"}.items():
        path.write_text(json.dumps(gpu_report(gpu=name)))
        assert main(["--measured", str(path)]) == 0
        assert f"predicted for {predicted_for}, measured on {name}" in capsys.readouterr().out


def test_figures_of_a_cpu_are_no_measurement(tmp_path, capsys) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(gpu_report(cpu="an abacus")))
    assert main(["--measured", str(path)]) == 2
    assert "not a GPU's" in capsys.readouterr().err
