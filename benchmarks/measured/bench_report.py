"""The report of `make bench`: a table, a small JSON file, and plots.

    python -m benchmarks.measured.bench_report RAW.json --output benchmarks/results/cpu

RAW.json comes from pytest-benchmark. Writes OUTPUT.json, OUTPUT.txt, OUTPUT-frames.png and OUTPUT-stages.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.compared.arms import PRODUCTS
from benchmarks.inputs.cases import LONG, ONEVISION, Case
from benchmarks.measured.spread import Spread

_WIDTH = 170


@dataclass(frozen=True)
class Row:
    """One arm or stage in one case, in milliseconds a call; None where a device gives no figure."""

    case: Case
    arm: str
    stage: str | None
    milliseconds: Spread
    rounds: int
    overlap: float | None = None
    checked_against: str | None = None
    gigabytes_per_second: float | None = None
    share_of_copy_rate: float | None = None
    extra_bytes: int | None = None
    kernels: int | None = None
    host_waits: int | None = None
    cpu_seconds: float | None = None

    @classmethod
    def of(cls, benchmark: dict[str, Any]) -> Row:
        """The row of one of pytest-benchmark's records."""
        info, stats = benchmark["extra_info"], benchmark["stats"]
        spread = Spread.of([1e3 * seconds / info["calls"] for seconds in stats["data"]])
        row = {"case": Case(**info["case"]), "arm": info["arm"], "stage": info.get("stage"), "milliseconds": spread}
        if "least_bytes" in info:
            rate = info["least_bytes"] / (1e-3 * spread.p50)
            row |= {"gigabytes_per_second": rate / 1e9, "share_of_copy_rate": rate / info["copy_rate"]}
        watched = ("overlap", "checked_against", "extra_bytes", "kernels", "host_waits", "cpu_seconds")
        return cls(**row, rounds=stats["rounds"], **{name: info.get(name) for name in watched})


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "rounds": lambda row: str(row.rounds),
    "p20": lambda row: f"{row.milliseconds.p20:.3f}",
    "p50": lambda row: f"{row.milliseconds.p50:.3f}",
    "p80": lambda row: f"{row.milliseconds.p80:.3f}",
    "overlap": lambda row: "" if row.overlap is None else f"{row.overlap:.1%}",
    "GB/s": lambda row: _number(row.gigabytes_per_second, 1),
    "of copy": lambda row: "" if row.share_of_copy_rate is None else f"{row.share_of_copy_rate:.1%}",
    "extra MiB": lambda row: _number(None if row.extra_bytes is None else row.extra_bytes / 2**20, 1),
    "kernels": lambda row: _number(row.kernels),
    "waits": lambda row: _number(row.host_waits),
    "CPU µs": lambda row: _number(None if row.cpu_seconds is None else 1e6 * row.cpu_seconds),
}


def whole_table(rows: Sequence[Row]) -> Table:
    """All arms of all cases; ratios are to the first arm of a case, and to the eager backend's matrix products alone.

    Figures that the device does not give have no column.
    """
    rows = [row for row in rows if row.stage is None]
    columns = {heading: cell for heading, cell in _COLUMNS.items() if any(cell(row) for row in rows)}
    table = Table(title="milliseconds a call", title_justify="left")
    table.add_column("case", overflow="fold")
    table.add_column("arm")
    products = {row.case: row.milliseconds.p50 for row in rows if row.arm == PRODUCTS}
    for heading in (*columns, "ratio", *(("/ products",) if products else ())):
        table.add_column(heading, justify="right")
    first: Row | None = None
    for row in rows:
        begins = first is None or row.case != first.case
        if begins:
            table.add_section()
            first = row
        ratio = row.milliseconds.p50 / first.milliseconds.p50
        cells = [cell(row) for cell in columns.values()]
        to_products = [f"{row.milliseconds.p50 / products[row.case]:.2f}"] if row.case in products else []
        table.add_row(str(row.case) if begins else "", row.arm, *cells, f"{ratio:.2f}", *to_products)
    return table


def stage_table(rows: Sequence[Row]) -> Table:
    """The stages, of the cases in which they were measured."""
    table = Table(title="milliseconds a stage", title_justify="left")
    for heading in ("case", "stage"):
        table.add_column(heading)
    for heading in ("p20", "p50", "p80"):
        table.add_column(heading, justify="right")
    for row in rows:
        if row.stage is not None:
            spread = row.milliseconds
            table.add_row(str(row.case), row.stage, *(f"{one:.3f}" for one in (spread.p20, spread.p50, spread.p80)))
    return table


def plot_frames(rows: Sequence[Row], copy_rate: float, path: Path) -> None:
    """Time against frames, both logarithmic, with a lower bound: the bytes that must be moved, at the copy rate."""
    from matplotlib.figure import Figure

    lengths = [Case(*ONEVISION), *LONG]
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    for arm in dict.fromkeys(row.arm for row in rows):
        times = {row.case.frames: row.milliseconds.p50 for row in rows if row.arm == arm and row.case in lengths
                 and row.stage is None}  # fmt: skip
        if times:
            axes.plot(list(times), list(times.values()), marker="o", label=arm)
    frames = [case.frames for case in lengths]
    floor = [1e3 * case.least_bytes / copy_rate for case in lengths]
    axes.plot(frames, floor, linestyle="--", color="grey", label="floor: tokens read once, output written once")
    axes.set(xscale="log", yscale="log", xlabel="frames of 196 tokens", ylabel="milliseconds a call (median)",
             title=f"bfloat16, D = {lengths[0].channels}, R = 0.10, few cuts")  # fmt: skip
    axes.set_xticks(frames, [str(one) for one in frames], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)


def plot_stages(rows: Sequence[Row], path: Path) -> None:
    """Stages of each case, one bar a case."""
    from matplotlib.figure import Figure

    stages = [row for row in rows if row.stage is not None]
    cases = list(dict.fromkeys(row.case for row in stages))
    figure = Figure(figsize=(9, 1.8 + 0.7 * len(cases)), layout="constrained")
    axes = figure.add_subplot()
    left = dict.fromkeys(cases, 0.0)
    for stage in dict.fromkeys(row.stage for row in stages):
        times = {row.case: row.milliseconds.p50 for row in stages if row.stage == stage}
        axes.barh([str(case) for case in times], list(times.values()), left=[left[case] for case in times], label=stage)
        for case, milliseconds in times.items():
            left[case] += milliseconds
    axes.set(xlabel="milliseconds (medians, each stage by itself)", title=f"by stage: {stages[0].arm}")
    figure.legend(ncols=4, loc="outside lower center")
    figure.savefig(path, dpi=130)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report; 1 if nothing was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.measured.bench_report")
    parser.add_argument("raw", type=Path, help="pytest-benchmark's JSON, saved with --benchmark-save-data")
    parser.add_argument("--output", type=Path, required=True, help="where to write, without a suffix")
    options = parser.parse_args(arguments)
    raw = json.loads(options.raw.read_text())
    rows = [Row.of(one) for one in raw["benchmarks"]]
    if not rows:
        print(f"{options.raw} holds no measurement", file=sys.stderr)
        return 1
    machine = raw["machine_info"]
    rates = [one["extra_info"]["copy_rate"] for one in raw["benchmarks"] if "copy_rate" in one["extra_info"]]
    machine["copy_gigabytes_per_second"] = rates[0] / 1e9 if rates else None
    report = {"machine": machine, "rows": [asdict(row) for row in rows]}
    options.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    with options.output.with_suffix(".txt").open("w") as file:
        for console in (Console(width=_WIDTH), Console(file=file, width=_WIDTH)):
            console.print(", ".join(f"{name} {_readable(value)}" for name, value in machine.items()), highlight=False)
            for table in (whole_table(rows), stage_table(rows)):
                console.print(table)
    if rates and any(row.case in LONG for row in rows):
        plot_frames(rows, rates[0], options.output.with_name(f"{options.output.name}-frames.png"))
    if any(row.stage is not None for row in rows):
        plot_stages(rows, options.output.with_name(f"{options.output.name}-stages.png"))
    return 0


def _readable(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
