"""Our eager backend beside the two published forms of FastVID, on this machine's CPU.

    python -m benchmarks.compare_cpu --output comparison.json

All arms of a configuration (a size, a dtype and a kind of video) run interleaved on the same inputs. Before
any is timed, the eager backend's result is held against the published LLaVA-Video form's; a configuration
that fails is named on stderr, without figures, and the exit status is 1. Beside the arms stand two lower
bounds of any implementation: reading the tokens once, and one matrix product of every frame's tokens with
themselves.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import fastvid_kernels
from benchmarks.agreement import Agreement, agreement
from benchmarks.machine import describe_machine
from benchmarks.published import llava_video_form, onevision_form
from benchmarks.timing import Spread, paired_ratio, time_interleaved
from benchmarks.videos import PRESETS, Video, preset_video

if TYPE_CHECKING:
    from rich.table import Table

HYPERPARAMETERS = asdict(fastvid_kernels.PruneConfig(retention_ratio=0.10))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What LLaVA-OneVision and LLaVA-Video hand to the operator.
SIZES = ("32x196x3584", "64x169x3584")
# By pruning arm, one for each input set.
Agreements = dict[str, list[Agreement]]


@dataclass(frozen=True)
class Tolerance:
    """What the eager backend must reach against the reference, in every input set."""

    overlap: float
    relative_error: float
    close_rows: float


# Only a near-tie that the two sum differently may fall the other way; it then changes what other anchors
# merge. The relative errors allow for rounding a merged token to 24, 8 or 11 bits.
TOLERANCES = {
    "float32": Tolerance(overlap=0.995, relative_error=1e-4, close_rows=0.99),
    "bfloat16": Tolerance(overlap=0.995, relative_error=1e-2, close_rows=0.99),
    "float16": Tolerance(overlap=0.995, relative_error=1e-3, close_rows=0.99),
}
# Times the tokens of a frame, still far below the spacing, in any dtype, of attention that competes for a
# place.
_TIE_BREAK = 1e-14


def eager(video: Video) -> tuple[Tensor, Tensor]:
    """Our PyTorch backend."""
    tokens, indices = fastvid_kernels.prune(*video, backend="eager", **HYPERPARAMETERS)
    return tokens, indices


def published_llava_video(video: Video) -> tuple[Tensor, Tensor]:
    """The published LLaVA-Video form, tie-break noise included."""
    return llava_video_form(*video, **HYPERPARAMETERS)


def published_onevision(video: Video) -> tuple[Tensor, Tensor]:
    """The published LLaVA-OneVision form, tie-break noise included."""
    return onevision_form(*video, **HYPERPARAMETERS)


def read_tokens(video: Video) -> Tensor:
    """Every token read once."""
    return video.tokens.sum()


def gram_all_frames(video: Video) -> Tensor:
    """All inner products within every frame, from which distances could be had."""
    return video.tokens @ video.tokens.mT


BASELINE = "eager"
PRUNING_ARMS: dict[str, Callable[[Video], tuple[Tensor, Tensor]]] = {
    BASELINE: eager,
    "LLaVA-Video form": published_llava_video,
    "OneVision form": published_onevision,
}
LOWER_BOUNDS: dict[str, Callable[[Video], Tensor]] = {
    "read of the tokens": read_tokens,
    "Gram matrix, all frames": gram_all_frames,
}


@dataclass(frozen=True)
class Configuration:
    """One cell of the comparison."""

    size: str
    dtype: str
    video: str

    def __str__(self) -> str:
        return f"{self.size}, {self.dtype}, {self.video}"

    def make_inputs(self, count: int) -> list[Video]:
        """Videos of this kind from `count` seeds."""
        frames, tokens_per_frame, dim = map(int, self.size.split("x"))
        return [
            preset_video(self.video, frames, tokens_per_frame, dim, seed=seed, dtype=DTYPES[self.dtype])
            for seed in range(count)
        ]


@dataclass(frozen=True)
class ArmResult:
    """Figures of one arm; `overlap` is the least over the input sets, None for an arm that prunes nothing."""

    name: str
    milliseconds: Spread
    times_eager: float
    overlap: float | None


def reference_result(video: Video) -> tuple[Tensor, Tensor]:
    """The published LLaVA-Video form of the same values in float32, without noise, to hold the arms against.

    Two accidents of rounding are taken out of it, as SPEC sections 1 and 3 do: the features go in as float64,
    which decides among near-equal cuts, and equal attention is told apart by an index term far below its
    resolution.
    """
    tokens, attn, frame_features = video
    lower_index_first = _TIE_BREAK * torch.arange(attn.shape[1])
    return llava_video_form(
        tokens.float(), attn.double() - lower_index_first, frame_features.double(), noise=0, **HYPERPARAMETERS
    )


def check(inputs: Sequence[Video], dtype: str) -> Agreements:
    """Agreement of every pruning arm with the reference, on every input."""
    agreements: Agreements = {name: [] for name in PRUNING_ARMS}
    for video in inputs:
        reference = reference_result(video)
        for name, arm in PRUNING_ARMS.items():
            found = agreement(arm(video), reference, relative_tolerance=TOLERANCES[dtype].relative_error)
            agreements[name].append(found)
    return agreements


def passes(found: Agreement, dtype: str) -> bool:
    """Whether a result is close enough to the reference for its time to mean anything."""
    needed = TOLERANCES[dtype]
    return found.overlap >= needed.overlap and found.close_rows >= needed.close_rows


def measure(inputs: Sequence[Video], agreements: Agreements, *, rounds: int) -> list[ArmResult]:
    """Time all arms, interleaved."""
    seconds = time_interleaved({**PRUNING_ARMS, **LOWER_BOUNDS}, inputs, rounds=rounds)
    return [
        ArmResult(
            name=name,
            milliseconds=Spread.of([1e3 * one for one in sample]),
            times_eager=paired_ratio(sample, seconds[BASELINE]),
            overlap=min(found.overlap for found in agreements[name]) if name in agreements else None,
        )
        for name, sample in seconds.items()
    ]


def as_table(title: str, eager_agreement: Sequence[Agreement], arms: Sequence[ArmResult]) -> Table:
    """The figures of one configuration for people."""
    # A machine that only lends its GPU to benchmarks.gpu may lack what draws tables.
    from rich.table import Table

    same = sum(found.same_indices for found in eager_agreement)
    close_rows = min(found.close_rows for found in eager_agreement)
    table = Table(
        title=title,
        caption=f"eager kept the reference's very tokens in {same} of {len(eager_agreement)} inputs; "
        f"{close_rows:.1%} of its rows equal the reference's",
    )
    table.add_column("arm")
    for heading in ("p20 ms", "p50 ms", "p80 ms", "times eager", "overlap"):
        table.add_column(heading, justify="right")
    for arm in arms:
        spread = arm.milliseconds
        table.add_row(
            arm.name,
            *(f"{value:.1f}" for value in (spread.p20, spread.p50, spread.p80)),
            f"{arm.times_eager:.2f}",
            "" if arm.overlap is None else f"{arm.overlap:.1%}",
        )
    return table


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line; every list defaults to all there is."""
    summary = "Our eager backend beside the two published forms of FastVID, on this machine's CPU."
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare_cpu", description=summary)
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--size", nargs="+", default=SIZES, metavar="FxNxD", help="frames, tokens, channels")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=DTYPES)
    parser.add_argument("--video", nargs="+", default=list(PRESETS), choices=PRESETS, help="kinds of video")
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each arm (2 or more)")
    parser.add_argument("--inputs", type=int, default=3, help="input sets that take turns")
    parser.add_argument("--threads", type=int, default=None, help="PyTorch's CPU threads")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; 0 if every configuration passed its check."""
    from rich.console import Console

    options = parse_arguments(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    machine = describe_machine()
    console = Console()
    measured, failed = [], []
    for cell in product(options.size, options.dtype, options.video):
        configuration = Configuration(*cell)
        inputs = configuration.make_inputs(options.inputs)
        agreements = check(inputs, configuration.dtype)
        eager_agreement = agreements[BASELINE]
        outcome = {**asdict(configuration), "eager_agreement": [asdict(found) for found in eager_agreement]}
        if not all(passes(found, configuration.dtype) for found in eager_agreement):
            print(f"{configuration}: eager disagrees with the reference, not timed", file=sys.stderr)
            failed.append(outcome)
            continue
        arms = measure(inputs, agreements, rounds=options.rounds)
        console.print(as_table(str(configuration), eager_agreement, arms))
        measured.append({**outcome, "rounds": options.rounds, "arms": [asdict(arm) for arm in arms]})
    report = {
        "machine": machine,
        "hyperparameters": HYPERPARAMETERS,
        "configurations": measured,
        "failed": failed,
    }
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
