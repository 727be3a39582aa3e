"""All tests and measurements that need a GPU, in one command: `make gpu`.

    PYTHONPATH=. python -m benchmarks.gpu.whole --output FOLDER [--only PART ...]

Its parts run one after the other, each in a process of its own with its own time limit; `--only` runs some of them:

- tests: those that need CUDA: parity with the oracle, determinism, sync detection, graph capture, compilation;
- calls: small calls, which fill the cache of compiled kernels for the next two parts;
- memcheck, racecheck: the same calls under compute-sanitizer;
- bench: the microbenchmarks and their report; cases for which no time is left are skipped;
- model: times that the scaling model predicts, beside those measured;
- llava: a LLaVA-OneVision of 7 billion random weights on a synthetic video, with pruning and without;
- compiled: the arm of `torch.compile`, last, because compiling its 50 graphs takes a minute on a CPU.

The output of a part is in FOLDER/PART.log. The summary comes last: a part passed, failed, was cut off by its limit, or
was not shown because a tool that it needs is absent. `--dry-run` runs the same steps on the CPU, with small inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

import torch

from benchmarks.measured.machine import describe_gpu, describe_machine

ROOT = Path(__file__).parents[2]
SANITIZER = "compute-sanitizer"
_LAST_LINES = 4000
# The report, and the case that is running when this time is up, take further time.
_BENCH_SECONDS = 85
_COMPILED = "torch.compile"
# PyTorch's caching allocator would hide accesses beyond the end of a tensor.
_EXACT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


@dataclass(frozen=True)
class Part:
    """One part of `make gpu`.

    Attributes:
        name: name of the part.
        commands: run in order, even after one fails, so that what was measured until then is reported.
        limit_seconds: time limit for all commands together.
        tool: a program that the part needs.
        environment: environment variables of the commands.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    limit_seconds: int
    tool: str | None = None
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a part: "passed", "failed", "cut off" or "not shown", and why."""

    part: str
    result: str
    reason: str
    seconds: float


def parts(folder: Path, dry_run: bool) -> list[Part]:
    """All parts in order; they take nine and a half minutes at most."""
    python = (sys.executable, "-m")
    sanitizer = (SANITIZER, "--target-processes", "application-only", "--error-exitcode", "9", "--tool")
    small_calls = (*python, "benchmarks.gpu.small_calls", "--device", "cpu" if dry_run else "cuda")
    watched = {tool: small_calls if dry_run else (*sanitizer, tool, *small_calls) for tool in ("memcheck", "racecheck")}

    def benches(name: str, *chosen: str) -> tuple[tuple[str, ...], ...]:
        raw, report = folder / f"{name}-raw.json", folder / name
        bench = (*python, "pytest", *chosen, "-q", "-o", "addopts=", "-p", "no:cacheprovider")
        bench += (f"--benchmark-json={raw}", "--benchmark-save-data", "--benchmark-quiet", f"--budget={_BENCH_SECONDS}")
        bench += ("--tiny", "--bench-device=cpu") if dry_run else ("--bench-device=cuda",)
        return bench, (*python, "benchmarks.measured.bench_report", str(raw), "--output", str(report))

    whole, stages = "benchmarks/measured/bench_prune.py", "benchmarks/measured/bench_stages.py"
    tests = (*python, "benchmarks.gpu.cuda_tests", *(("--dry-run",) if dry_run else ()))
    # A dry run measures nothing that a prediction could be compared with.
    model = (*python, "benchmarks.model", *(() if dry_run else ("--measured", str(folder / "bench.json"))))
    llava = (*python, "benchmarks.in_models.llava", "--output", str(folder / "llava.json"))
    return [
        Part("tests", (tests,), 220),
        Part("calls", (small_calls,), 20),
        Part("memcheck", (watched["memcheck"],), 25, None if dry_run else SANITIZER, _EXACT),
        Part("racecheck", (watched["racecheck"],), 30, None if dry_run else SANITIZER, _EXACT),
        Part("bench", benches("bench", stages, whole, "-k", f"not {_COMPILED}"), 120),
        Part("model", (model,), 10),
        Part("llava", ((*llava, "--small", "--device", "cpu") if dry_run else llava,), 60),
        Part("compiled", benches("compiled", whole, "-k", _COMPILED), 85),
    ]


def run(part: Part, folder: Path) -> Outcome:
    """Run a part and print its output."""
    if part.tool is not None and shutil.which(part.tool) is None:
        return Outcome(part.name, "not shown", f"{part.tool} is not on this machine", 0.0)
    start = time.monotonic()
    with (folder / f"{part.name}.log").open("w+") as log:
        result, reason = "passed", ""
        for command in part.commands:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            try:
                status = _run(command, log, part, start + part.limit_seconds - time.monotonic())
            except subprocess.TimeoutExpired:
                result, reason = "cut off", f"after {part.limit_seconds} s"
                break
            if status != 0:
                result, reason = "failed", f"exit status {status}"
        log.seek(0)
        print(log.read()[-_LAST_LINES:], flush=True)
    return Outcome(part.name, result, reason, time.monotonic() - start)


def _run(command: Sequence[str], log: TextIO, part: Part, seconds: float) -> int:
    """Run a command and return its exit status; after `seconds` it is killed, with all processes that it started."""
    environment = {**os.environ, **part.environment}
    started = subprocess.Popen(
        command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )
    try:
        return started.wait(timeout=seconds)
    except BaseException:
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
        raise


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.whole")
    parser.add_argument("--output", type=Path, required=True, help="folder for logs and figures")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in parts(Path(), dry_run=False)])
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, small; the figures mean nothing")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, sum up; 0 if all that could be shown passed."""
    options = parse_arguments(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        print("no CUDA device here: --dry-run exercises this program without one", file=sys.stderr)
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    machine = describe_machine() | ({} if options.dry_run else describe_gpu())
    outcomes = []
    for part in parts(options.output.absolute(), options.dry_run):
        if options.only is None or part.name in options.only:
            print(f"== {part.name}", flush=True)
            outcomes.append(run(part, options.output))
    print("== summary" + (" of a dry run: no GPU was involved, the figures mean nothing" if options.dry_run else ""))
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    for outcome in outcomes:
        print(f"{outcome.part:10} {outcome.result:10} {outcome.seconds:6.1f} s  {outcome.reason}".rstrip())
    report = {"machine": machine, "dry_run": options.dry_run, "parts": [asdict(outcome) for outcome in outcomes]}
    (options.output / "summary.json").write_text(json.dumps(report, indent=1) + "\n")
    well = all(outcome.result in ("passed", "not shown") for outcome in outcomes)
    print("all that could be shown passed" if well else "SOMETHING FAILED")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
