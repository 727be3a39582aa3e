"""Runs the tests that need CUDA, on a machine with no more than torch with Triton, numpy and pytest.

    PYTHONPATH=. python -m benchmarks.gpu.cuda_tests [--dry-run]

Compiling takes most of their time; with pytest-xdist it is spread over the cores. It is a failure if all tests are
skipped. With `--dry-run` the tests need only be collected, and skip themselves.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import torch

ROOT = Path(__file__).parents[2]
# Each process holds a CUDA context and inputs of its own.
_MOST_PROCESSES = 16


@dataclass(frozen=True)
class Outcome:
    """Pytest's exit status, and how many tests passed and were skipped."""

    status: int
    passed: int
    skipped: int

    def failure(self, *, dry_run: bool) -> str | None:
        """What is wrong, if anything."""
        if self.status != 0:
            return f"FAILED (pytest's exit status {self.status})"
        if self.skipped + self.passed == 0 if dry_run else self.passed == 0:
            return "FAILED (none ran)"
        return None


def run() -> Outcome:
    """Run them; without a device they skip themselves."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # The project's own options name plugins that a bare machine lacks.
        options = ["-q", "-o", "addopts=", "-p", "no:warnings", "-p", "no:cacheprovider", f"--junitxml={report}"]
        threads = cores = os.cpu_count() or 1
        if importlib.util.find_spec("xdist") is not None:
            processes = min(_MOST_PROCESSES, cores)
            options += ["-n", str(processes)]
            threads = cores // processes
        command = [sys.executable, "-m", "pytest", "tests/cuda", "-m", "cuda", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        if not report.exists():
            return Outcome(status, passed=0, skipped=0)
        suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    count = {name: sum(int(one.get(name, 0)) for one in suites) for name in ("tests", "skipped", "failures", "errors")}
    passed = count["tests"] - count["skipped"] - count["failures"] - count["errors"]
    return Outcome(status, passed=passed, skipped=count["skipped"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests, sum up; 0 if all went well."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.cuda_tests")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU: collect them")
    options = parser.parse_args(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        print("no CUDA device here: --dry-run exercises this program without one", file=sys.stderr)
        return 2
    outcome = run()
    failure = outcome.failure(dry_run=options.dry_run)
    print(f"tests: {failure or f'{outcome.passed} passed'}, {outcome.skipped} skipped")
    return 0 if failure is None else 1


if __name__ == "__main__":
    sys.exit(main())
