"""A clip and its descriptors, and what the commands that show them say of it."""

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
    """Frames of a video, and what stands in for a vision model's view of them.

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
        """The first arguments of `prune` and its like."""
        return self.tokens, self.attn, self.frame_features


def described_clip(path: Path | None, frames: int, device: torch.device, console: Console) -> Clip:
    """Sample a video and describe it, with bars that tell how far it is; say what of it was lost.

    Args:
        path: None: the clip that comes with a dependency.
        frames: to sample.
        device: of the descriptors.
        console: to draw on.

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
    """A command's last words: what its tokens are, and where the picture or page is."""
    console.print(f"{NOTE} {CAVEAT}")
    console.print(f"The {what} is in [bold]{escape(str(output))}[/bold]", soft_wrap=True)
