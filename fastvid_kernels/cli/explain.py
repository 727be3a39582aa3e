"""`fastvid explain`: write a page that shows which tokens were kept, and what was merged into each of them."""

from __future__ import annotations

import base64
import io
import json
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

import fastvid_kernels
from fastvid_kernels import Explanation
from fastvid_kernels.cli.common.checks import check_retention, chosen_device
from fastvid_kernels.cli.common.clip import CAVEAT, NOTE, described_clip, tell_output
from fastvid_kernels.cli.common.console import console as stdout
from fastvid_kernels.cli.common.descriptors import GRID, TOKENS_PER_FRAME
from fastvid_kernels.cli.common.errors import one_line_errors
from fastvid_kernels.cli.common.options import Device, Frames, Video, check_frames
from fastvid_kernels.cli.common.output import check_output, written_whole
from fastvid_kernels.cli.common.progress import progress_bar
from fastvid_kernels.cli.videos.video import SampledVideo

RETENTIONS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
_LONGER_SIDE = 384
_PLACE = '"the data"'


@one_line_errors()
def explain(
    video: Video = None,
    frames: Frames = 32,
    retention: Annotated[
        float, typer.Option(help="Fraction of the tokens to keep, above 0 and up to 1, that the page shows first.")
    ] = 0.1,
    output: Annotated[Path, typer.Option(help="The page to write, an .html file.")] = Path("fastvid_explain.html"),
    device: Device = "auto",
) -> None:
    """Write a page that shows which tokens of a clip were kept, and which were merged into which.

    The page is one file and needs no network. The tokens are those of `fastvid demo`: no vision model runs.
    """
    check_frames(frames)
    check_retention(retention, TOKENS_PER_FRAME)
    check_output(output, ".html")
    run_on = chosen_device(device)
    console = stdout()
    clip = described_clip(video, frames, run_on, console)
    sampled = clip.video
    ratios = sorted({*RETENTIONS, retention})
    explained = []
    with progress_bar(console, "pruning") as on_progress:
        for number, ratio in enumerate(ratios, start=1):
            explained.append(fastvid_kernels.explain(*clip.inputs, retention_ratio=ratio))
            on_progress(number, len(ratios))
    with written_whole(output) as unfinished:
        unfinished.write_text(page(sampled, dict(zip(ratios, explained, strict=True)), retention), encoding="utf-8")
    tell_output(console, "page", output)


def page(video: SampledVideo, explained: dict[float, Explanation], first: float) -> str:
    """The page as text.

    Args:
        video: the sampled frames.
        explained: the explanations by retention ratio, ascending.
        first: the ratio that is shown first.
    """
    segments = next(iter(explained.values())).segments.tolist()
    data = {
        "title": video.path.name,
        "grid": GRID,
        "note": f"{NOTE} {CAVEAT}",
        "frames": [
            {"image": _as_url(frame), "index": index, "time": time, "segment": _segment_of(number, segments)}
            for number, (frame, index, time) in enumerate(
                zip(video.frames, video.source_indices, video.times, strict=True)
            )
        ],
        "ratios": [_as_data(ratio, one) for ratio, one in explained.items()],
        "first": list(explained).index(first),
    }
    template = resources.files("fastvid_kernels.cli").joinpath("explain.html").read_text(encoding="utf-8")
    # Without "<", nothing in a title can end the script element, or keep it from ending where it should.
    return template.replace(_PLACE, json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))


def _segment_of(frame: int, segments: list[list[int]]) -> int:
    """The number of a frame's segment, counted from 1."""
    return next(number for number, (start, end) in enumerate(segments, start=1) if start <= frame < end)


def _as_data(ratio: float, explanation: Explanation) -> dict[str, Any]:
    """Kept tokens, and pairs of a merged token and the anchor that it joined."""
    records = explanation.anchor_frames
    return {
        "ratio": ratio,
        "salient": explanation.salient.tolist(),
        "anchors": explanation.anchors.tolist(),
        "joined": [token for record in records for token in record.joined.tolist()],
        "into": [anchor for record in records for anchor in record.joined_anchor.tolist()],
    }


def _as_url(frame: np.ndarray) -> str:
    picture = Image.fromarray(np.ascontiguousarray(frame))
    picture.thumbnail((_LONGER_SIDE, _LONGER_SIDE), Image.Resampling.LANCZOS)
    stored = io.BytesIO()
    picture.save(stored, format="JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(stored.getvalue()).decode('ascii')}"
