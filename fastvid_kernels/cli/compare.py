"""`fastvid compare`: show side by side which tokens of a clip several methods keep."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from rich.markup import escape
from rich.table import Table

from fastvid_kernels import methods
from fastvid_kernels.adapters.stopwatch import wait
from fastvid_kernels.cli.common.checks import check_retention, chosen_device, device_name
from fastvid_kernels.cli.common.clip import CAVEAT, NOTE, Clip, described_clip, tell_output
from fastvid_kernels.cli.common.console import console as stdout
from fastvid_kernels.cli.common.descriptors import GRID, TOKENS_PER_FRAME
from fastvid_kernels.cli.common.errors import CommandError, one_line_errors
from fastvid_kernels.cli.common.options import Device, Frames, Retention, Video, check_frames
from fastvid_kernels.cli.common.output import check_output
from fastvid_kernels.cli.common.progress import progress_bar
from fastvid_kernels.cli.drawing.picture import save_png
from fastvid_kernels.cli.drawing.sheet import Row, draw_sheet
from fastvid_kernels.config import PruneConfig
from fastvid_kernels.methods import Method

TIMED_RUNS = 3
_SHOWN = 8


@one_line_errors()
def compare(
    video: Video = None,
    names: Annotated[
        str | None,
        typer.Option(
            "--methods",
            help="Names with commas between them; options after colons, as in fastvid:segmentation=fixed.",
            show_default="all",
        ),
    ] = None,
    frames: Frames = 32,
    retention: Retention = 0.1,
    output: Annotated[Path, typer.Option(help="The picture to write, a .png file.")] = Path("fastvid_compare.png"),
    device: Device = "auto",
) -> None:
    """Prune a clip with several methods; print what each keeps, and draw a picture with a row for each.

    There is no score: only a model's answers show which tokens it needs. The tokens are those of `fastvid demo`.
    """
    chosen = _chosen(names)
    check_frames(frames)
    config = check_retention(retention, TOKENS_PER_FRAME)
    check_output(output, ".png")
    run_on = chosen_device(device)
    console = stdout()
    clip = described_clip(video, frames, run_on, console)
    fastvid = _run(methods.get("fastvid"), "fastvid", clip, config, runs=0)
    outcomes = []
    with progress_bar(console, "pruning") as on_progress:
        for number, (label, method) in enumerate(chosen.items(), start=1):
            outcomes.append(_run(method, label, clip, config, runs=TIMED_RUNS))
            on_progress(number, len(chosen))
    save_png(_draw(clip, outcomes, fastvid, retention), output)

    console.print(_table(clip, outcomes, fastvid, run_on))
    tell_output(console, "picture", output)


@dataclass(frozen=True)
class _Outcome:
    label: str
    method: Method
    indices: frozenset[int]
    seconds: float

    def share_of(self, other: _Outcome) -> float:
        """The share of its kept tokens that `other` kept too."""
        return len(self.indices & other.indices) / len(self.indices)


def _chosen(names: str | None) -> dict[str, Method]:
    """The methods asked for, each under the text that names it in `--methods`.

    Raises:
        CommandError: there is no such method or option.
    """
    asked = list(methods.names()) if names is None else [name.strip() for name in names.split(",")]
    found = {}
    for one in asked:
        try:
            found[one] = methods.parse(one)
        except (TypeError, ValueError) as error:
            raise CommandError(f"--methods: {error}") from error
    return found


def _run(method: Method, label: str, clip: Clip, config: PruneConfig, runs: int) -> _Outcome:
    """Run once to warm up and to get the kept tokens, then `runs` times for timing."""
    device = clip.tokens.device
    _, indices = method(*clip.inputs, config=config)
    seconds = []
    for _ in range(runs):
        wait(device)
        start = time.perf_counter()
        method(*clip.inputs, config=config)
        wait(device)
        seconds.append(time.perf_counter() - start)
    return _Outcome(label, method, frozenset(indices.tolist()), statistics.median(seconds or [0.0]))


def _table(clip: Clip, outcomes: list[_Outcome], fastvid: _Outcome, device: torch.device) -> Table:
    tokens = clip.attn.numel()
    table = Table(
        title=f"{tokens:,} tokens of {len(clip.attn)} frames",
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        caption=f"Medians of {TIMED_RUNS} runs, {device_name(device)}, torch {torch.__version__}. Only FastVID "
        "is optimised: do not compare speeds. Rows marked * depend on the video.",
    )
    table.add_column("method", style="cyan", overflow="fold")
    for name in ("rows kept", "of all", "ms", "kept by FastVID too"):
        table.add_column(name, justify="right")
    for one in outcomes:
        table.add_row(
            escape(one.label),
            f"{len(one.indices):,}{'' if one.method.static else '*'}",
            f"{len(one.indices) / tokens:.1%}",
            f"{1e3 * one.seconds:.1f}",
            f"{one.share_of(fastvid):.0%}",
        )
    return table


def _draw(clip: Clip, outcomes: list[_Outcome], fastvid: _Outcome, retention: float) -> Image.Image:
    video = clip.video
    count = min(_SHOWN, len(video.frames))
    # Spread from the first frame to the last; a fixed step could coincide with a method's own period.
    shown = [number * (len(video.frames) - 1) // max(1, count - 1) for number in range(count)]
    rows = [
        Row(
            one.label,
            (
                f"{len(one.indices):,} rows, {len(one.indices) / clip.attn.numel():.1%}",
                f"{one.share_of(fastvid):.0%} kept by FastVID too",
            ),
            sorted(one.indices),
        )
        for one in outcomes
    ]
    return draw_sheet(
        frames=video.frames,
        shown=shown,
        captions=[f"frame {video.source_indices[frame]}" for frame in shown],
        rows=rows,
        grid=GRID,
        title=(
            f"{video.path.name}: what is kept at {100 * retention:.3g}%, in {count} of {len(video.frames)} sampled "
            "frames"
        ),
        note=f"In colour: kept. {NOTE} {CAVEAT}",
    )
