"""The kernels on this machine's GPU: their tests, then their times. One command, no network.

    PYTHONPATH=. python -m benchmarks.gpu

It needs torch with Triton, numpy and pytest; with pytest-xdist the tests, whose time goes into compiling, share cores.

First the tests that need CUDA run, by pytest. Then all arms of a configuration (a size and a kind of video, bfloat16)
run interleaved on input sets that take turns, between CUDA events. Before any is timed, the kernels' result is held
against the published LLaVA-Video form's in float32, on the CPU, and the graph's against the kernels', to the bit; a
configuration that fails has no figures, nor has an arm that raises. Each is printed when it is done, and one summary
comes last; the exit status is 0 if all went well.

`--dry-run` takes the same way on the CPU: small sizes, the eager backend in place of the kernels, a host clock.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import torch
from torch import Tensor

import fastvid_kernels
from benchmarks.agreement import agreement
from benchmarks.compare_cpu import (
    HYPERPARAMETERS,
    SIZES,
    TOLERANCES,
    eager,
    published_llava_video,
    published_onevision,
    reference_result,
)
from benchmarks.machine import describe_gpu, describe_machine
from benchmarks.timing import Spread
from benchmarks.videos import PRESETS, Video, preset_video

ROOT = Path(__file__).parent.parent
DTYPE = "bfloat16"
DRY_SIZES = ("12x36x32",)
_TEST_PROCESSES = 8
Pruned = tuple[Tensor, Tensor]
KERNELS = "Triton, eager launch"
GRAPH = "Triton, graph replay"


class Cuda:
    """A GPU: the kernels themselves, CUDA graphs, CUDA events."""

    device = "cuda"

    def kernels(self, video: Video) -> Pruned:
        """Launched one by one from Python."""
        tokens, indices = fastvid_kernels.prune(*video, backend="triton", **HYPERPARAMETERS)
        return tokens, indices

    def captured(self, video: Video) -> Callable[[], Pruned]:
        """A graph of the launches on this very video."""
        self.kernels(video)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = self.kernels(video)

        def replay() -> Pruned:
            graph.replay()
            return result

        return replay

    def seconds(self, run: Callable[[], object]) -> float:
        """From the first thing that `run` queues to the end of the last; the device is idle before."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def describe(self) -> dict[str, str | int]:
        """The device, for the record."""
        return describe_gpu()


class Rehearsal(Cuda):
    """The CPU in a GPU's place, to exercise everything but the GPU."""

    device = "cpu"

    def kernels(self, video: Video) -> Pruned:
        """The eager backend."""
        return eager(video)

    def captured(self, video: Video) -> Callable[[], Pruned]:
        """Nothing is captured."""
        return lambda: self.kernels(video)

    def seconds(self, run: Callable[[], object]) -> float:
        """By the host's clock."""
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    def describe(self) -> dict[str, str | int]:
        """Says that the figures mean nothing."""
        return {"gpu": "none (dry run)"}


@dataclass(frozen=True)
class Row:
    """Times of one arm in one configuration, or why there are none."""

    size: str
    video: str
    arm: str
    milliseconds: Spread | None
    failure: str | None = None


@dataclass(frozen=True)
class Tests:
    """What came of the tests that need CUDA."""

    status: int
    passed: int
    skipped: int

    def failure(self, device: str) -> str | None:
        """What is wrong, if anything; tests that a GPU should have run and did not are no success."""
        if self.status != 0:
            return f"FAILED (pytest's exit status {self.status})"
        if device == "cuda" and self.passed == 0:
            return "FAILED (none ran)"
        return None


def run_tests() -> Tests:
    """Run the tests that need CUDA; without a device they skip themselves."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # The project's own options name plugins that a bare machine lacks.
        options = ["-q", "-o", "addopts=", "-p", "no:warnings", "-p", "no:cacheprovider", f"--junitxml={report}"]
        if importlib.util.find_spec("xdist") is not None:
            options += ["-n", str(min(_TEST_PROCESSES, os.cpu_count() or 1))]
        command = [sys.executable, "-m", "pytest", "tests/cuda", "-m", "cuda", *options]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        if not report.exists():
            return Tests(status, passed=0, skipped=0)
        suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    count = {name: sum(int(one.get(name, 0)) for one in suites) for name in ("tests", "skipped", "failures", "errors")}
    passed = count["tests"] - count["skipped"] - count["failures"] - count["errors"]
    return Tests(status, passed=passed, skipped=count["skipped"])


def check(machine: Cuda, videos: Sequence[Video], on_device: Sequence[Video]) -> str | None:
    """What is wrong with the kernels' results, if anything: the same videos on the CPU, and on the device."""
    needed = TOLERANCES[DTYPE]
    for video, moved in zip(videos, on_device, strict=True):
        tokens, indices = machine.kernels(moved)
        found = agreement(
            (tokens.cpu(), indices.cpu()), reference_result(video), relative_tolerance=needed.relative_error
        )
        if found.overlap < needed.overlap or found.close_rows < needed.close_rows:
            return f"kept {found.overlap:.1%} of the reference's tokens, {found.close_rows:.1%} of rows close"
        replayed = machine.captured(moved)()
        if not (torch.equal(replayed[0], tokens) and torch.equal(replayed[1], indices)):
            return "a graph's replay differs"
    return None


def warm_up(machine: Cuda, runs: Sequence[Callable[[], object]]) -> str | None:
    """What an arm raised on its first runs, if anything: the others can still be timed."""
    try:
        for run in runs:
            machine.seconds(run)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def time_arms(
    machine: Cuda, arms: Mapping[str, Sequence[Callable[[], object]]], *, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each arm in each round. An arm has one callable for each input set; sets and first arm take turns."""
    names = list(arms)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(machine.seconds(arms[name][turn % len(arms[name])]))
    return seconds


def measure(machine: Cuda, size: str, kind: str, *, inputs: int, rounds: int) -> list[Row]:
    """All arms of one configuration, once the kernels have passed their check."""
    frames, tokens_per_frame, dim = map(int, size.split("x"))
    videos = [
        preset_video(kind, frames, tokens_per_frame, dim, seed=seed, dtype=getattr(torch, DTYPE))
        for seed in range(inputs)
    ]
    on_device = [Video(*(part.to(machine.device) for part in video)) for video in videos]
    try:
        failure = check(machine, videos, on_device)
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    if failure is not None:
        return [Row(size, kind, KERNELS, None, failure)]
    pruning = {
        KERNELS: machine.kernels,
        "eager backend": eager,
        "LLaVA-Video form": published_llava_video,
        "OneVision form": published_onevision,
    }
    arms: dict[str, list[Callable[[], object]]] = {
        name: [lambda arm=arm, video=video: arm(video) for video in on_device] for name, arm in pruning.items()
    }
    arms[GRAPH] = [machine.captured(video) for video in on_device]
    failures = {name: warm_up(machine, runs) for name, runs in arms.items()}
    seconds = time_arms(machine, {name: runs for name, runs in arms.items() if failures[name] is None}, rounds=rounds)
    spreads = {name: Spread.of([1e3 * one for one in sample]) for name, sample in seconds.items()}
    order = [KERNELS, GRAPH, *(name for name in pruning if name != KERNELS)]
    return [Row(size, kind, name, spreads.get(name), failures[name]) for name in order]


def as_text(rows: Sequence[Row]) -> list[str]:
    """The figures of one configuration for people."""
    lines = [f"{rows[0].size} {DTYPE}, {rows[0].video}: milliseconds a call (p20, p50, p80)"]
    for row in rows:
        spread = row.milliseconds
        figures = ["not timed"] if spread is None else [f"{v:9.3f}" for v in (spread.p20, spread.p50, spread.p80)]
        lines.append(f"  {row.arm:<22}" + " ".join(figures))
    return lines


def summary(machine: Cuda, tests: Tests, rows: Sequence[Row]) -> list[str]:
    """What a reader wants to know first; the last line says whether all went well."""
    lines = [f"device: {machine.describe()['gpu']}, torch {torch.__version__}"]
    lines.append(f"tests: {tests.failure(machine.device) or f'{tests.passed} passed'}, {tests.skipped} skipped")
    lines += [f"{row.size}, {row.video}, {row.arm}: NOT TIMED, {row.failure}" for row in rows if row.failure]
    lines.append("all went well" if succeeded(machine, tests, rows) else "SOMETHING FAILED")
    return lines


def succeeded(machine: Cuda, tests: Tests, rows: Sequence[Row]) -> bool:
    """Whether tests and checks passed."""
    return tests.failure(machine.device) is None and not any(row.failure for row in rows)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description="The kernels on this machine's GPU: their tests, then their times."
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="exercise everything on the CPU; the figures mean nothing"
    )
    parser.add_argument("--rounds", type=int, default=60, help="measurements of each arm (2 or more)")
    parser.add_argument("--inputs", type=int, default=4, help="input sets that take turns")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Test, check, measure, sum up; 0 if all went well."""
    options = parse_arguments(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        print("no CUDA device here: --dry-run exercises this program without one", file=sys.stderr)
        return 2
    machine = Rehearsal() if options.dry_run else Cuda()
    description = {**describe_machine(), **machine.describe()}
    tests = run_tests()
    rows: list[Row] = []
    for size, kind in product(DRY_SIZES if options.dry_run else SIZES, PRESETS):
        measured = measure(machine, size, kind, inputs=options.inputs, rounds=options.rounds)
        print(*as_text(measured), sep="\n", flush=True)
        rows += measured
    print(*summary(machine, tests, rows), sep="\n", flush=True)
    if options.output:
        report = {"machine": description, "hyperparameters": HYPERPARAMETERS, "tests": asdict(tests)}
        report["rows"] = [asdict(row) for row in rows]
        options.output.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if succeeded(machine, tests, rows) else 1


if __name__ == "__main__":
    sys.exit(main())
