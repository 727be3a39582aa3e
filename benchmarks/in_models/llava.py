"""What pruning saves in LLaVA-OneVision-7B: the architecture with random weights, on a synthetic video.

    PYTHONPATH=. python -m benchmarks.in_models.llava --output llava.json

This is `fastvid run --random-weights 7b --video synthetic`, for machines without that command's dependencies. For
comparison, the paper's Table 5 reports, for the real weights on an A100, prefill 476.3 -> 67.2 ms (7.1x), 6272 -> 608
tokens. Here the prefill includes the pruning; in results of before 2026-11-28 it does not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.measured.machine import describe_machine
from fastvid_kernels.cli.models.answer import answer
from fastvid_kernels.cli.models.request import SYNTHETIC, Request


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.in_models.llava")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--small", action="store_true", help="a small model and few frames, to rehearse")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    request = Request(
        random_weights="small" if options.small else "7b",
        video=SYNTHETIC,
        frames=4 if options.small else 32,
        repeats=2 if options.small else 7,
        new_tokens=4 if options.small else 16,
        device=options.device,
    )
    compared = answer(request, Console(width=130))
    machine = describe_machine()
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    report = {"machine": machine, "request": asdict(request), "compared": asdict(compared)}
    report["prefill_ratio"] = compared.plain.prefill_seconds / compared.pruned.prefill_seconds
    report["pruning_share_of_prefill"] = compared.pruning_seconds / compared.pruned.prefill_seconds
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
