"""The resources, occupancy and instructions of every kernel, compiled for several GPUs without having one.

    python -m benchmarks.compiled.report

Writes `benchmarks/results/kernels.json`, with which tests compare the kernels, and `kernels.txt`, the same as a table.
Nothing is run: registers, shared memory and instructions are what the compiler reports, and occupancy is a bound.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import permutations
from pathlib import Path

import triton
from rich.console import Console
from rich.table import Table
from triton.backends.nvidia.compiler import get_ptxas

from benchmarks.compiled.figures import BASELINE, Figures, Report, Row
from benchmarks.compiled.offline import compile_for
from benchmarks.compiled.situations import SITUATIONS, Situation
from benchmarks.compiled.targets import TARGETS

# By kernel and situation, in the order of the launches.
Found = dict[tuple[str, Situation], Figures]
_WIDTH = 170


def figures_on(target: str) -> Found:
    """Figures of every kernel in every situation; equal specialisations are compiled once."""
    found: Found = {}
    for situation in SITUATIONS:
        for launch in situation.launches(target):
            found[launch.name, situation] = Figures.of(compile_for(launch, target), target)
    return found


def merge(found: dict[str, Found]) -> list[Row]:
    """Rows from the figures of each target. Situations whose figures agree on all targets share a row."""
    alike: dict[tuple[str, str], list[Situation]] = {}
    for kernel, situation in next(iter(found.values())):
        everywhere = repr([one[kernel, situation] for one in found.values()])
        alike.setdefault((kernel, everywhere), []).append(situation)
    order = list(dict.fromkeys(kernel for kernel, _ in alike))
    rows = [
        Row(kernel, tuple(map(str, situations)), {target: one[kernel, situations[0]] for target, one in found.items()})
        for (kernel, _), situations in alike.items()
    ]
    return sorted(rows, key=lambda row: order.index(row.kernel))


def make_report(jobs: int) -> Report:
    """Compile everything in `jobs` processes, each of which takes one target at a time."""
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = dict(zip(TARGETS, pool.map(figures_on, TARGETS), strict=True))
    ptxas = {name: get_ptxas(target.arch).version for name, target in TARGETS.items() if target.backend == "cuda"}
    return Report(triton.__version__, ptxas, merge(found))


def describe(chosen: Sequence[Situation], among: Sequence[Situation]) -> str:
    """The shortest text that tells `chosen` from the rest: values of their facets, except facets that do not matter."""
    texts = (" | ".join(_alternatives(chosen, among, facets)) for facets in permutations(among[0].facets))
    return min(texts, key=len) or "all"


def _alternatives(chosen: Sequence[Situation], among: Sequence[Situation], facets: Sequence[str]) -> list[str]:
    if not facets or len(chosen) == len(among):
        return []
    first, rest = facets[0], facets[1:]
    # Values of the first facet, by the text that describes the other facets for them.
    by_remainder: dict[str, list[str]] = {}
    for value in dict.fromkeys(one.facets[first] for one in chosen):
        here = [[one for one in group if one.facets[first] == value] for group in (chosen, among)]
        remainder = " | ".join(_alternatives(*here, rest))
        by_remainder.setdefault(remainder, []).append(value)
    everything = {one.facets[first] for one in among}
    texts = []
    for remainder, values in by_remainder.items():
        value = "" if set(values) == everything else ", ".join(values)
        remainder = f"({remainder})" if value and "|" in remainder else remainder
        texts.append(" ".join(part for part in (value, remainder) if part))
    return [text for text in texts if text]


def cell(figures: Figures) -> str:
    """Two lines: resources and occupancy; matrix instructions and loads."""
    resources, occupancy = figures.resources, figures.occupancy
    spill = f" SPILL {resources.spilled_bytes}" if resources.spilled_bytes else ""
    needs = f"{resources.registers}r {resources.shared_bytes / 1024:.0f}K {occupancy.warps}w{spill}"
    loads = f"{figures.wide_loads}/{figures.wide_loads + figures.narrow_loads}"
    return f"{needs} {_SHORT[occupancy.bound_by]}\n{' '.join(figures.matrix) or '-'} {loads}"


_SHORT = {"registers": "reg", "shared memory": "shm", "warps": "max", "blocks": "blk", "tensor memory": "tmem"}


def as_table(report: Report) -> Table:
    """A row for each distinct outcome, a column for each target."""
    table = Table(title=f"Kernels as Triton {report.triton} compiles them", caption=_legend(report), width=_WIDTH)
    table.caption_justify = "left"
    table.add_column("kernel")
    table.add_column("where")
    for target in TARGETS:
        table.add_column(target, no_wrap=True)
    by_name = {str(situation): situation for situation in SITUATIONS}
    previous = None
    for row in report.rows:
        if previous not in (None, row.kernel):
            table.add_section()
        where = describe([by_name[name] for name in row.situations], SITUATIONS)
        name = row.kernel.removesuffix("_kernel") if row.kernel != previous else ""
        table.add_row(name, where, *(cell(figures) for figures in row.figures.values()))
        previous = row.kernel
    return table


def _legend(report: Report) -> str:
    limits = "; ".join(
        f"{name} {target.block_shared_bytes // 1024}K, {target.warps} warps" for name, target in TARGETS.items()
    )
    spilling = {
        f"{row.kernel} on {target}"
        for row in report.rows
        for target, one in row.figures.items()
        if one.resources.spilled_bytes
    }
    return (
        "Nothing here was run: compilers' figures, and bounds from them.\n"
        "First line: registers a thread (r), shared memory a block (K), most resident warps (w) and "
        "what bounds them: registers, shared memory, tensor memory, or what the target holds anyhow (max, blk).\n"
        "Second line: matrix instructions, then 16-byte loads of all loads from global memory, as they stand in the "
        f"code.\nShared memory a block and resident warps at most: {limits}.\n"
        f"ptxas: {', '.join(f'{target} {version}' for target, version in report.ptxas.items())}.\n"
        f"Spills: {', '.join(sorted(spilling)) or 'none'}."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, write, show."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled.report", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=BASELINE, help="JSON file; the table goes beside it, as .txt")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that compile")
    options = parser.parse_args(arguments)
    report = make_report(options.jobs)
    report.write(options.output)
    table = as_table(report)
    Console().print(table)
    with options.output.with_suffix(".txt").open("w") as file:
        Console(file=file, width=_WIDTH).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
