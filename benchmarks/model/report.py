"""Predicts how long a call takes on a GPU, stage by stage, from the bytes it moves and the operations it does.

    python -m benchmarks.model --device h100 --frames 32 --tokens 196 --channels 3584
    python -m benchmarks.model --device h100 --measured benchmarks/results/gpu/bench.json

These are predictions, not measurements. A stage takes the longest of these times: bytes from memory at the bandwidth of
a copy, bytes from the cache, operations of each kind, and the dependent loads of its longest block. `stages.py` counts
the work; `devices.py` holds data sheets and assumptions. `--measured` compares predictions with a report that
`benchmarks.measured.bench_report` wrote on a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.inputs.videos import PRESETS
from benchmarks.model.devices import DEVICES, GAP_US, HOST_US, TRIP_US
from benchmarks.model.prediction import (
    EAGER,
    GRAPH,
    Comparison,
    Model,
    Prediction,
    compare,
    equal_segments,
    predict_kind,
    whole_us,
)
from benchmarks.model.scenario import DTYPES, Scenario
from fastvid_kernels import PruneConfig


def stages_table(model: Model, scenario: Scenario, prediction: Prediction) -> Table:
    """By stage: bytes from memory and from the cache, matrix operations, blocks, the bound and its time."""
    lengths = scenario.segment_lengths
    shape = f"{scenario.frames}x{scenario.tokens_per_frame}x{scenario.channels}, {scenario.dtype}"
    what = f"{shape}, {len(lengths)} segments of up to {max(lengths)}" + ", backward" * scenario.backward
    table = Table(title=f"PREDICTED for {model.device.name}: {what}")
    table.add_column("stage", no_wrap=True)
    for heading in ("MB", "MB asked", "GF", "blocks", "bound by", "µs"):
        table.add_column(heading, justify="right")
    for stage in prediction.stages:
        work = stage.work
        name = work.stage if work.launches == 1 else f"{work.stage} x{work.launches}"
        table.add_row(
            name,
            f"{stage.memory_bytes / 1e6:.2f}",
            f"{work.requested_bytes / 1e6:.1f}",
            f"{work.matrix_flops / 1e9:.2f}" if work.matrix_flops else "-",
            str(work.blocks),
            stage.bound,
            f"{stage.total_us:.1f}",
        )
    table.add_section()
    memory = sum(stage.memory_bytes for stage in prediction.stages)
    requested = sum(stage.work.requested_bytes for stage in prediction.stages)
    matrix = sum(stage.work.matrix_flops for stage in prediction.stages)
    totals = (f"{memory / 1e6:.2f}", f"{requested / 1e6:.1f}", f"{matrix / 1e9:.2f}")
    table.add_row("graph replay", *totals, "", "", f"{prediction.graph_us:.1f}")
    table.add_row("eager launch", "", "", "", "", "", f"{prediction.eager_us:.1f}")
    table.add_row("floor", f"{scenario.floor_bytes / 1e6:.2f}", *[""] * 4, f"{prediction.floor_us:.1f}")
    return table


def kinds_table(model: Model, scenario: Scenario) -> Table:
    """The whole call by kind of video, since its cuts decide which tokens are merged."""
    table = Table(title="PREDICTED by kind of video")
    table.add_column("video")
    for heading in ("graph replay, µs", "eager launch, µs"):
        table.add_column(heading, justify="right")
    size = (scenario.frames, scenario.tokens_per_frame, scenario.channels)
    for kind in PRESETS:
        predicted = whole_us(predict_kind(model, kind, size, scenario.dtype, scenario.config))
        table.add_row(kind, f"{predicted[GRAPH]:.1f}", f"{predicted[EAGER]:.1f}")
    return table


def comparison_table(model: Model, gpu: str, rows: Sequence[Comparison]) -> Table:
    """Predictions beside measurements."""
    table = Table(title=f"predicted for {model.device.name}, measured on {gpu}")
    for heading in ("case", "arm or stage", "bound by"):
        table.add_column(heading)
    for heading in ("predicted µs", "measured µs", "measured / predicted"):
        table.add_column(heading, justify="right")
    for row in rows:
        figures = (f"{row.predicted:.1f}", f"{row.measured:.1f}", f"{row.ratio:.2f}")
        table.add_row(str(row.case), row.part, row.bound, *figures)
    return table


def assumptions(model: Model) -> str:
    """The assumptions behind the figures, besides data sheets."""
    source = "measured" if model.copy_tb_s else "assumed"
    return (
        f"Predictions, not measurements. Copy bandwidth {model.memory_tb_s:.2f} TB/s ({source}), {TRIP_US} µs for a "
        f"load that is waited for, {GAP_US} µs between launches, {HOST_US} µs of host time a launch (assumed). "
        "MB: from memory and to it; MB asked: of the cache. Floor: every token read once, the output written; of a "
        "backward pass also the output's gradient read."
    )


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model", description="Predicted times on a GPU.")
    parser.add_argument("--device", choices=DEVICES, help="the one that was measured, or else h100")
    parser.add_argument("--copy-bandwidth", type=float, metavar="TB/s", help="of a copy on that device, as measured")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=196, help="of a frame")
    parser.add_argument("--channels", type=int, default=3584)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--feature-channels", type=int, default=1152, help="0 for the mean token as feature")
    parser.add_argument("--segments", type=int, help="equal ones; min_segments if not given")
    parser.add_argument(
        "--lengths", type=int, nargs="+", help="frames of each segment, instead of --frames, --segments"
    )
    defaults = PruneConfig()
    for name in ("retention_ratio", "min_segments", "dtm_ratio", "anchor_interval", "beta", "num_neighbors"):
        value = getattr(defaults, name)
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    parser.add_argument("--backward", action="store_true", help="the call's backward pass")
    parser.add_argument("--measured", type=Path, help="JSON of benchmarks.measured.bench_report, for comparison")
    return parser.parse_args(arguments)


def scenario_of(options: argparse.Namespace) -> Scenario:
    """The call that the options describe."""
    names = ("retention_ratio", "min_segments", "dtm_ratio", "anchor_interval", "beta", "num_neighbors")
    config = PruneConfig(**{name: getattr(options, name) for name in names})
    count = min(options.segments or config.min_segments, options.frames)
    return Scenario(
        tokens_per_frame=options.tokens,
        channels=options.channels,
        segment_lengths=tuple(options.lengths or equal_segments(options.frames, count)),
        dtype=options.dtype,
        feature_channels=options.feature_channels or None,
        config=config,
        backward=options.backward,
    )


def measured_device(report: dict[str, Any] | None) -> str:
    """The device that a report names, or "h100"."""
    gpu = str(report["machine"].get("gpu", "")).lower() if report else ""
    return next((name for name in DEVICES if name in gpu), "h100")


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict, and compare where there is something to compare with."""
    options = parse_arguments(arguments)
    report = json.loads(options.measured.read_text()) if options.measured else None
    copy_tb_s = options.copy_bandwidth
    measured_rate = report["machine"].get("copy_gigabytes_per_second") if report else None
    if copy_tb_s is None and measured_rate is not None:
        copy_tb_s = measured_rate / 1e3
    model = Model(DEVICES[options.device or measured_device(report)], copy_tb_s)
    console = Console()
    if report is not None:
        try:
            rows = compare(model, report)
        except ValueError as error:
            print(f"{options.measured}: {error}", file=sys.stderr)
            return 2
        console.print(comparison_table(model, report["machine"]["gpu"], rows))
    else:
        scenario = scenario_of(options)
        console.print(stages_table(model, scenario, model.predict(scenario)))
        if not scenario.backward:
            console.print(kinds_table(model, scenario))
    console.print(assumptions(model), highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
