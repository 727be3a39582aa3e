"""Other tiles and launches of the kernels, each timed beside those that ship: which would be faster on this GPU?

    PYTHONPATH=. python -m benchmarks.gpu.tiles --output FOLDER [--dry-run]

A `Variant` changes a few compile-time constants of one launch, or of all. The list holds only what fits an H100 and
spills no registers: `--dry-run` compiles for one, without having it, and writes what each variant needs. A variant is
timed if its result agrees with that of the shipped tiles. Some change how sums are rounded, and so choices between near
equals.

Variants are compiled beforehand, in parallel. Then a CUDA graph of whole calls is replayed with each, in turn with the
shipped tiles, and at last with the fastest variant of each stage together.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.compared import arms
from benchmarks.compared.agreement import TOLERANCES, agreement
from benchmarks.inputs.cases import FILM, MAIN, Case, Inputs, inputs_of
from benchmarks.measured.machine import describe_gpu, describe_machine
from fastvid_kernels.kernels import pipeline
from fastvid_kernels.kernels.launch import Shapes, Step
from fastvid_kernels.kernels.overlap import OVERLAPPING

CASES = (*MAIN, FILM)
# A graph holds a call on each of several inputs, which evict one another from the cache.
_SETS = 4
_ROUNDS = 15
_REPLAYS = 8
# Of a film, which takes a hundred times as long, and whose other stages take little of that time.
_FILM_ROUNDS = 5
_FILM_STAGES = ("assign", "emit")
_DEVICE = torch.device("cuda")
# Each process holds a CUDA context.
_MOST_PROCESSES = 12
# A gain below this is taken for noise.
_GAIN = 0.01
EVERY = "every launch"


@dataclass(frozen=True)
class Variant:
    """Other constants of a stage's launch, or of `EVERY`: the kernel's parameters, or Triton's options, by name."""

    stage: str
    constants: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return f"{self.stage}: " + ", ".join(f"{name} {value}" for name, value in self.constants)

    def applied(self, step: Step, shapes: Shapes) -> Step:
        """The launch with these constants, and with the grid that belongs to them."""
        if self.stage == EVERY:
            return replace(step, constants=step.constants | dict(self.constants))
        if step.name != self.stage:
            return step
        changed = step.constants | dict(self.constants)
        grid = _grid(step, shapes, changed)
        if "tiles" in changed:
            changed["tiles"] = grid[1]
        return replace(step, grid=grid, constants=changed)


def _grid(step: Step, shapes: Shapes, constants: dict[str, Any]) -> tuple[int, ...]:
    """The grid of a launch with these constants: equally many blocks for each frame."""
    # Its tiles are a dimension of their own.
    if step.name == "assign":
        return (shapes.frames * constants["LANES"], -(-shapes.tokens_per_frame // constants["ROWS"]))
    per_frame = _PER_FRAME[step.name]
    return (step.grid[0] // per_frame(shapes, step.constants) * per_frame(shapes, constants),)


def _gram_tiles(shapes: Shapes, constants: dict[str, Any]) -> int:
    along = -(-shapes.tokens_per_frame // constants["BLOCK"])
    return int(along * (along + 1) // 2 * constants["SPLITS"])


def _row_tiles(shapes: Shapes, constants: dict[str, Any]) -> int:
    return int(-(-shapes.tokens_per_frame // constants["ROWS"]))


def _emit_tiles(shapes: Shapes, constants: dict[str, Any]) -> int:
    blocks_of_slots = -(-shapes.slots // constants["BLOCK_SLOTS"])
    to_copy = -(-shapes.channels // constants["COPY_D"])
    return int(blocks_of_slots * -(-shapes.channels // constants["BLOCK_D"]) + to_copy)


_PER_FRAME: dict[str, Callable[[Shapes, dict[str, Any]], int]] = {
    "gram": _gram_tiles,
    "density": _row_tiles,
    "delta": _row_tiles,
    "select": lambda shapes, constants: 1,
    "emit": _emit_tiles,
}


def _variants(stage: str, *choices: dict[str, int]) -> Iterator[Variant]:
    for choice in choices:
        yield Variant(stage, tuple(choice.items()))


VARIANTS = (
    *_variants(EVERY, OVERLAPPING),
    *_variants(
        "assign",
        {"ROWS": 128},
        {"ROWS": 128, "num_stages": 3},
        {"GROUP_ROWS": 64},
        {"LANES": 2},
        {"LANES": 8},
        {"BLOCK_D": 64},
        {"num_stages": 3},
        {"num_stages": 5},
        {"num_stages": 6},
        {"GROUP_ROWS": 64, "num_warps": 4},
        {"GROUP_ROWS": 256},
        {"GROUP": 8},
        {"GROUP_D": 32, "num_stages": 6},
    ),
    *_variants(
        "emit",
        {"BLOCK_TOKENS": 32},
        {"BLOCK_TOKENS": 128},
        {"GROUP_TOKENS": 32},
        {"GROUP_TOKENS": 128},
        {"BLOCK_D": 64},
        {"BLOCK_D": 64, "BLOCK_TOKENS": 128},
        {"BLOCK_D": 64, "GROUP_D": 32},
        {"num_warps": 8},
        {"num_stages": 2},
        {"num_stages": 4},
        {"num_stages": 5},
        {"BLOCK_ROWS": 32},
        {"COPY_D": 256},
    ),
    *_variants(
        "gram",
        {"BLOCK": 128, "num_warps": 8},
        {"BLOCK": 128, "num_warps": 8, "num_stages": 3},
        {"BLOCK_D": 128, "num_stages": 3},
        {"BLOCK_D": 128, "num_stages": 4},
        {"num_stages": 3},
        {"num_stages": 4},
        {"num_stages": 6},
        {"num_warps": 8},
    ),
    *_variants("density", {"ROWS": 8}, {"ROWS": 4}, {"ROWS": 32, "num_warps": 8}, {"num_warps": 8}),
    *_variants("delta", {"ROWS": 8}, {"ROWS": 4}, {"num_warps": 8}),
    *_variants("select", {"COLUMNS": 16}, {"COLUMNS": 16, "num_warps": 4}, {"COLUMNS": 8}),
)


Variants = tuple[Variant, ...]
"""Variants that are applied together, of different stages; none for the shipped tiles."""


def varied_steps(variants: Variants) -> Callable[[Any, Shapes], Iterator[Step]]:
    """The launches of a call with these variants, as `pipeline` asks for them."""
    shipped = pipeline._steps

    def steps(request: Any, shapes: Shapes) -> Iterator[Step]:
        for step in shipped(request, shapes):
            for variant in variants:
                step = variant.applied(step, shapes)
            yield step

    return steps


def run(case: Case, inputs: Inputs, variants: Variants = ()) -> arms.Pruned:
    """One call of the kernels."""
    call = pipeline.prepare(*inputs, case.config)
    if variants:
        steps = tuple(varied_steps(variants)(call.recipe.request, call.shapes))
        call = replace(call, recipe=replace(call.recipe, steps=steps, compiled={}))
    pipeline.launch(call)
    return call.output, call.indices


def agrees(found: arms.Pruned, shipped: arms.Pruned, dtype: str) -> bool:
    """Whether a result is as close to that of the shipped tiles as any backend's must be to the reference."""
    needed = TOLERANCES[dtype]
    both = [(tokens.cpu(), indices.cpu()) for tokens, indices in (found, shipped)]
    seen = agreement(*both, relative_tolerance=needed.relative_error)
    return seen.overlap >= needed.overlap and seen.close_rows >= needed.close_rows


def needs(variant: Variant, target: str = "sm_90") -> dict[str, int]:
    """What a variant's kernel needs of a GPU, by its compiler."""
    from benchmarks.compiled import offline

    case = CASES[0]
    tokens = torch.empty(case.frames, case.tokens_per_frame, case.channels, dtype=torch.bfloat16, device="meta")
    pipeline.recipe_for.cache_clear()
    with mock.patch.object(pipeline, "_steps", varied_steps((variant,))):
        launches = offline.record_call(target, tokens, retention_ratio=case.retention_ratio)
    pipeline.recipe_for.cache_clear()
    changed = [one for one in launches if variant.stage in (EVERY, one.name.removesuffix("_kernel"))]
    found = [asdict(offline.compile_for(one, target).resources) for one in changed]
    return {name: max(one[name] for one in found) for name in found[0] if name != "tensor_columns"}


def compile_on_device(variant: Variant) -> None:
    """Compile a variant by running it once, so that Triton's cache on disk holds it."""
    run(CASES[0], inputs_of(CASES[0], 1)[0].to(_DEVICE), (variant,))
    torch.cuda.synchronize()


def compile_all() -> None:
    """Compile all variants, on many cores; `measure` meets again what fails here, and reports it."""
    processes = min(_MOST_PROCESSES, os.cpu_count() or 1)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for one in [pool.submit(compile_on_device, variant) for variant in VARIANTS]:
            one.exception()


def microseconds(replay: Callable[[], Any], replays: int) -> float:
    """Time of a replay on the device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(replays):
        replay()
    end.record()
    end.synchronize()
    return 1000 * start.elapsed_time(end) / replays


def measure(case: Case, inputs: Sequence[Inputs], variants: Variants) -> dict[str, Any]:
    """Times of the variants and of the shipped tiles, in turn; or why there are none."""
    row: dict[str, Any] = {"case": str(case), "variant": "; ".join(map(str, variants))}
    try:
        graphs = [arms.captured([partial(run, case, one, which) for one in inputs]) for which in ((), variants)]
        if not agrees(graphs[1](), graphs[0](), case.dtype):
            return row | {"why_not": "the result differs"}
    except Exception as error:  # What does not compile or fit is a result like any other.
        return row | {"why_not": f"{type(error).__name__}: {error}"[:200]}
    replays, count = (1, _FILM_ROUNDS) if case.is_long else (_REPLAYS, _ROUNDS)
    rounds = [[microseconds(graph, replays) / len(inputs) for graph in graphs] for _ in range(count + 2)][2:]
    shipped, varied = (median(times) for times in zip(*rounds, strict=True))
    ratio = median(varied / shipped for shipped, varied in rounds)
    return row | {"shipped_us": shipped, "us": varied, "ratio": ratio}


def sweep() -> list[dict[str, Any]]:
    """All variants on all cases, then the fastest of each stage together."""
    compile_all()
    rows = []
    for case in CASES:
        inputs = [one.to(_DEVICE) for one in inputs_of(case, 1 if case.is_long else _SETS)]
        best: dict[str, tuple[float, Variant]] = {}
        for variant in VARIANTS:
            if case.is_long and variant.stage not in _FILM_STAGES:
                continue
            rows.append(measure(case, inputs, (variant,)))
            ratio = rows[-1].get("ratio", 1.0)
            if ratio < min(1 - _GAIN, best.get(variant.stage, (1.0,))[0]):
                best[variant.stage] = ratio, variant
        if len(best) > 1:
            rows.append(measure(case, inputs, tuple(variant for _, variant in best.values())))
    return rows


def show(rows: Sequence[dict[str, Any]], title: str) -> None:
    """Print rows as a table."""
    table = Table(title=title)
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        table.add_column(name)
    for row in rows:
        values = (row.get(name, "") for name in names)
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in values))
    Console(width=160).print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print a table, and write FOLDER/tiles.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.tiles")
    parser.add_argument("--output", type=Path, required=True, help="folder for tiles.json")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU: compile for an H100, time nothing")
    options = parser.parse_args(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        print("no CUDA device here: --dry-run compiles the variants without one", file=sys.stderr)
        return 2
    machine = describe_machine() | ({} if options.dry_run else describe_gpu())
    rows = [{"variant": str(one), **needs(one)} for one in VARIANTS] if options.dry_run else sweep()
    show(rows, "needed of an H100, by the compiler" if options.dry_run else "microseconds a call, medians")
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    options.output.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine, "dry_run": options.dry_run, "rows": rows}
    (options.output / "tiles.json").write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
