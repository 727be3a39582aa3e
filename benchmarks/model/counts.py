"""Bytes and operations of the compiled kernels, counted launch by launch, compared with what the time model assumes.

    python -m benchmarks.model.counts [--target sm_90] [--frames 8] [--output counts.txt]

The kernels run in the emulator (`tests/emulator`). Bytes asked for are all that threads load and store in global
memory; distinct bytes are those of the 32-byte sectors that a launch touches, each counted once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.inputs.videos import preset_video
from benchmarks.model.scenario import DTYPES, Scenario
from benchmarks.model.stages import works
from benchmarks.model.work import Work
from fastvid_kernels import PruneConfig
from fastvid_kernels.kernels import pipeline
from tests.emulator import Emulator, Options, TensorCores
from tests.emulator.emulator import Run
from tests.emulator.guarded import emulated_calls

SECTOR_BYTES = 32
WIDTH = 130
ARCHITECTURES = {"sm_80": (80, TensorCores.AMPERE), "sm_90": (90, TensorCores.HOPPER)}
# LLaVA-OneVision's and LLaVA-Video's frames.
SIZES = ((196, 3584), (169, 3584))


@dataclass(frozen=True)
class StageCount:
    """One stage of a call, counted and modelled.

    Attributes:
        work: the stage as the model has it.
        asked_bytes: bytes that threads load and store, counted as often as they do.
        distinct_bytes: bytes of the sectors touched, once a launch for loads and once for stores.
        flops: operations of matrix instructions, padding included.
        instructions: instructions executed by warps.
        barriers: barriers passed by blocks.
        wavefronts: passes over the banks of shared memory.
        bank_conflicts: the passes among these that bank conflicts add.
    """

    work: Work
    asked_bytes: int
    distinct_bytes: int
    flops: int
    instructions: int
    barriers: int
    wavefronts: int
    bank_conflicts: int

    @classmethod
    def of(cls, work: Work, runs: Sequence[Run]) -> StageCount:
        """The counts of all launches of the stage."""
        traffic = [one for run in runs for one in run.traffic.values()]
        totals = [run.totals for run in runs]
        return cls(
            work=work,
            asked_bytes=sum(one.loaded_bytes + one.stored_bytes for one in traffic),
            distinct_bytes=SECTOR_BYTES * sum(one.loaded_sectors + one.stored_sectors for one in traffic),
            flops=2 * sum(one.multiply_adds for one in totals),
            instructions=sum(one.instructions for one in totals),
            barriers=sum(one.barriers for one in totals),
            wavefronts=sum(one.shared_wavefronts for one in totals),
            bank_conflicts=sum(one.bank_conflicts for one in totals),
        )

    @property
    def modelled_distinct_bytes(self) -> float:
        """The distinct bytes in the model."""
        return sum(access.distinct for access in self.work.accesses)


def count_call(
    size: tuple[int, int, int],
    *,
    min_segments: int,
    dtype: str = "bfloat16",
    target: str = "sm_80",
    backward: bool = False,
) -> list[StageCount]:
    """The stages of a call on a static shot, cut by `min_segments`; `size` is (frames, tokens of a frame, channels).

    With `backward`, they are the stages of its backward pass, of which only the last differs from those of the call.
    """
    frames, tokens_per_frame, channels = size
    config = PruneConfig(min_segments=min_segments)
    video = preset_video("one static shot", frames, tokens_per_frame, channels, seed=0, dtype=DTYPES[dtype])
    arch, tensor_cores = ARCHITECTURES[target]
    emulator = Emulator(arch, Options(tensor_cores, races=False))
    with emulated_calls(emulator):
        grad = torch.ones(frames * config.kept_per_frame(tokens_per_frame), channels, dtype=DTYPES[dtype])
        call = pipeline.prepare(*video, None, config, grad=grad if backward else None)
        pipeline.launch(call)
    if emulator.findings:
        raise RuntimeError(f"the kernels did not run as they should: {dict(emulator.findings)}")
    starts = call.workspace["segment_start"].tolist()
    lengths = tuple(len(list(frames)) for _, frames in groupby(starts))
    scenario = Scenario(tokens_per_frame, channels, lengths, dtype=dtype, config=config, backward=backward)
    runs: dict[str, list[Run]] = {}
    for run in emulator.runs:
        runs.setdefault(run.kernel.removesuffix("_kernel"), []).append(run)
    return [StageCount.of(work, runs[work.stage]) for work in works(scenario)]


def as_table(title: str, counts: Sequence[StageCount]) -> Table:
    """A row a stage: counted figures, and their ratio to the model's."""
    table = Table(title=title)
    table.add_column("stage")
    headings = (
        "MB asked",
        "/ model",
        "MB distinct",
        "/ model",
        "GF",
        "/ model",
        "k warp instr.",
        "barriers",
        "conflicts",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    for one in counts:
        table.add_row(
            one.work.stage,
            f"{one.asked_bytes / 1e6:.2f}",
            _ratio(one.asked_bytes, one.work.requested_bytes),
            f"{one.distinct_bytes / 1e6:.2f}",
            _ratio(one.distinct_bytes, one.modelled_distinct_bytes),
            f"{one.flops / 1e9:.3f}" if one.flops else "-",
            _ratio(one.flops, one.work.matrix_flops),
            f"{one.instructions / 1e3:.0f}",
            str(one.barriers),
            f"{100 * one.bank_conflicts / one.wavefronts:.0f} %" if one.wavefronts else "-",
        )
    return table


def _ratio(counted: float, modelled: float) -> str:
    return f"{counted / modelled:.2f}" if modelled else "-"


def tables(target: str, frames: int) -> list[Table]:
    """For the models' frame sizes: each frame a segment of its own, all frames one segment; and the backward pass."""
    found = []
    for (tokens_per_frame, channels), segments in product(SIZES, (frames, 1)):
        counts = count_call((frames, tokens_per_frame, channels), min_segments=segments, target=target)
        shape = f"{frames}x{tokens_per_frame}x{channels} bfloat16, {segments} segment{'s' if segments > 1 else ''}"
        found.append(as_table(f"COUNTED on code compiled for {target}: {shape}", counts))
    return [*found, backward_table(target, frames)]


def backward_table(target: str, frames: int) -> Table:
    """The last launch of a backward pass, for the same segments; its other launches are those of the call."""
    size = (frames, *SIZES[0])
    counts = [count_call(size, min_segments=count, target=target, backward=True)[-1] for count in (frames, 1)]
    shape = "x".join(map(str, size))
    title = f"COUNTED on code compiled for {target}: backward, {shape} bfloat16, {frames} segments, 1 segment"
    return as_table(title, counts)


def show(console: Console, target: str, frames: int) -> None:
    """All tables, and what they mean."""
    for table in tables(target, frames):
        console.print(table)
    console.print(LEGEND, highlight=False)


LEGEND = (
    "Counted in an emulation of the compiled kernels: what threads ask for, not what caches serve. Distinct: 32-byte\n"
    "sectors, each once a launch. Conflicts: share of the passes over shared memory's banks that a layout without\n"
    "conflicts would save. The model leaves out tables of a few bytes a token where a stage reads megabytes besides,\n"
    "and does not count the padding of a tile as bytes: it asks for a row once more that is asked for anyhow."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, show."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model.counts", description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=ARCHITECTURES, help="both, if not given")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--output", type=Path, help="a text file for the tables; the terminal, if not given")
    options = parser.parse_args(arguments)
    with options.output.open("w") if options.output else nullcontext() as file:
        console = Console(file=file, width=WIDTH)
        for target in [options.target] if options.target else ARCHITECTURES:
            show(console, target, options.frames)
    return 0


if __name__ == "__main__":
    sys.exit(main())
