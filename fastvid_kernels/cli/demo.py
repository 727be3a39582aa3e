"""`fastvid demo`: prune a real clip, and draw the kept tokens. Needs no model and no weights."""

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

from fastvid_kernels import Explanation, PruneConfig, explain
from fastvid_kernels.adapters.stopwatch import wait
from fastvid_kernels.cli.common.checks import check_retention, chosen_device, device_name
from fastvid_kernels.cli.common.clip import NOTE, Clip, described_clip, tell_output
from fastvid_kernels.cli.common.console import console as stdout
from fastvid_kernels.cli.common.descriptors import GRID, TOKENS_PER_FRAME
from fastvid_kernels.cli.common.errors import one_line_errors
from fastvid_kernels.cli.common.options import Device, Frames, Retention, Video, check_frames
from fastvid_kernels.cli.common.output import check_output
from fastvid_kernels.cli.drawing.picture import draw_pruning, save_png
from fastvid_kernels.cli.videos.video import SampledVideo
from fastvid_kernels.ops import backend_for

TIMED_RUNS = 9


@one_line_errors()
def demo(
    video: Video = None,
    frames: Frames = 32,
    retention: Retention = 0.1,
    output: Annotated[Path, typer.Option(help="The picture to write, a .png file.")] = Path("fastvid_demo.png"),
    device: Device = "auto",
) -> None:
    """Prune a video clip with FastVID and draw which tokens are left.

    The tokens are descriptors of colour and gradients, and the contrast of patches stands in for attention: no vision
    model runs, and no weights are downloaded.
    """
    check_frames(frames)
    config = check_retention(retention, TOKENS_PER_FRAME)
    check_output(output, ".png")
    run_on = chosen_device(device)
    console = stdout()
    clip = described_clip(video, frames, run_on, console)
    sampled = clip.video
    result = _prune(clip, config)
    save_png(_draw(result), output)

    if len(sampled.frames) < frames:
        found = _count(len(sampled.frames), "frame")
        console.print(f"The video has {found}, fewer than the {frames} asked for: all of it is used.")
    console.print(_summary(result))
    console.print(_segments(result))
    tell_output(console, "picture", output)


@dataclass(frozen=True)
class _Result:
    video: SampledVideo
    explanation: Explanation
    num_tokens: int
    num_kept: int
    seconds: float
    device: torch.device

    @property
    def backend(self) -> str:
        return backend_for(self.device, len(self.video.frames), TOKENS_PER_FRAME)


def _prune(clip: Clip, config: PruneConfig) -> _Result:
    """Prune once to warm up, `TIMED_RUNS` times for timing, and once more with `explain`.

    There is no progress bar: the thread that draws it would disturb the timing.
    """
    device = clip.tokens.device

    def run() -> tuple[float, torch.Tensor]:
        wait(device)
        start = time.perf_counter()
        _, indices = torch.ops.fastvid.prune(*clip.inputs, retention_ratio=config.retention_ratio)
        wait(device)
        return time.perf_counter() - start, indices

    _, indices = run()
    seconds = [run()[0] for _ in range(TIMED_RUNS)]
    return _Result(
        video=clip.video,
        explanation=explain(*clip.inputs, config=config),
        num_tokens=clip.attn.numel(),
        num_kept=indices.numel(),
        seconds=statistics.median(seconds),
        device=device,
    )


def _draw(result: _Result) -> Image.Image:
    video, explanation = result.video, result.explanation
    sampled = f"{len(video.frames)} of {_count(video.num_source_frames, 'frame')}"
    timed = f"{1e3 * result.seconds:.1f} ms ({result.backend}, {device_name(result.device)})"
    picture, _ = draw_pruning(
        frames=video.frames,
        captions=[_captions(index, at) for index, at in zip(video.source_indices, video.times, strict=True)],
        segments=explanation.segments.tolist(),
        salient=explanation.salient.tolist(),
        anchors=explanation.anchors.tolist(),
        grid=GRID,
        title=f"{_shortened(video.path.name)}: {result.num_tokens:,} tokens pruned to {_kept(result)}",
        figures=f"{sampled}, {_count(len(explanation.segments), 'segment')}, {timed}",
        note=NOTE,
    )
    return picture


def _captions(index: int, at: float | None) -> tuple[str, ...]:
    shorter = (f"frame {index}", f"{index}")
    return shorter if at is None else (f"frame {index}   {at:.2f} s", *shorter)


def _shortened(name: str, length: int = 40) -> str:
    return name if len(name) <= length else f"{name[: length - 11]}...{name[-8:]}"


def _summary(result: _Result) -> Table:
    video, explanation = result.video, result.explanation
    table = Table(title="FastVID", show_header=False, title_justify="left", title_style="bold")
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in (
        ("video", str(video.path)),
        ("frames", f"{len(video.frames)}, sampled uniformly from {video.num_source_frames}"),
        ("segments", f"{len(explanation.segments)}"),
        ("tokens before", f"{result.num_tokens:,} ({len(video.frames)} x {TOKENS_PER_FRAME})"),
        ("tokens after", _kept(result)),
        ("time", f"{1e3 * result.seconds:.2f} ms, median of {TIMED_RUNS} runs after a warm-up"),
        ("backend", result.backend),
        ("device", device_name(result.device)),
        ("torch", torch.__version__),
    ):
        table.add_row(name, escape(value))
    return table


def _segments(result: _Result) -> Table:
    """A table with one row per segment. A cut is between two sampled frames; where exactly is not known."""
    video, explanation = result.video, result.explanation
    table = Table(
        title="Where the segments begin",
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        caption=_gap(video),
    )
    for name in ("segment", "source frame", "second", "samples", "salient", "anchors"):
        table.add_column(name, justify="right")
    for number, (start, end) in enumerate(explanation.segments.tolist(), start=1):
        at = video.times[start]
        salient, anchors = (
            int(((flat >= start * TOKENS_PER_FRAME) & (flat < end * TOKENS_PER_FRAME)).sum())
            for flat in (explanation.salient, explanation.anchors)
        )
        table.add_row(
            f"{number}",
            f"{video.source_indices[start]}",
            "" if at is None else f"{at:.2f}",
            f"{end - start}",
            f"{salient}",
            f"{anchors}",
        )
    return table


def _gap(video: SampledVideo) -> str | None:
    """A caption that says how precisely the beginnings of segments are known; None if they are exact."""
    gap = max((b - a for a, b in zip(video.source_indices, video.source_indices[1:], strict=False)), default=1)
    if gap == 1:
        return None
    return f"Samples are up to {gap} frames apart: a segment may begin up to {gap - 1} frames before the one named."


def _kept(result: _Result) -> str:
    return f"{result.num_kept:,} ({result.num_kept / result.num_tokens:.1%})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
