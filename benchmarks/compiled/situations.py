"""Typical calls in production, which differ in the sizes and arguments that kernels are compiled for."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch

from benchmarks.compiled.offline import Launch, record_call

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Situation:
    """One call; hyperparameters not named are the defaults.

    Attributes:
        frames: F, of all videos.
        tokens_per_frame: N.
        channels: D.
        dtype: a key of `DTYPES`.
        retention_ratio: R.
        features: whether frame features are given; the mean token is the feature otherwise.
        videos: frames of each video of a ragged batch.
    """

    frames: int
    tokens_per_frame: int
    channels: int = 3584
    dtype: str = "bf16"
    retention_ratio: float = 0.10
    features: bool = True
    videos: tuple[int, ...] | None = None

    @property
    def facets(self) -> dict[str, str]:
        """The properties in which situations differ, as text, by name."""
        return {
            "dtype": self.dtype,
            "size": f"{self.frames}x{self.tokens_per_frame}",
            "retention": f"R={self.retention_ratio}",
            "features": "features" if self.features else "mean",
            "videos": "ragged" if self.videos else "one video",
        }

    def __str__(self) -> str:
        size = f"{self.frames}x{self.tokens_per_frame}x{self.channels}"
        parts = [size, self.facets["dtype"], self.facets["retention"]]
        parts += [] if self.features else ["mean"]
        parts += [] if self.videos is None else ["ragged"]
        return "-".join(parts)

    def launches(self, target: str) -> list[Launch]:
        """The launches of the call on a target, and the last one of its backward pass, which no forward pass makes."""
        forward, backward = (
            record_call(
                target,
                torch.empty(self.frames, self.tokens_per_frame, self.channels, dtype=DTYPES[self.dtype], device="meta"),
                feature_channels=1152 if self.features else None,
                videos=self.videos,
                retention_ratio=self.retention_ratio,
                backward=backward,
            )
            for backward in (False, True)
        )
        return [*forward, backward[-1]]


# LLaVA-OneVision and LLaVA-Video.
MODELS = ((32, 196), (64, 169))
SITUATIONS = [
    *(
        Situation(*model, dtype=dtype, retention_ratio=retention_ratio, features=features)
        for model, dtype, retention_ratio, features in product(MODELS, DTYPES, (0.10, 0.25), (True, False))
    ),
    Situation(32, 196, videos=(8, 24)),
    Situation(32, 196, videos=(8, 24), features=False),
    Situation(8, 1024),
    Situation(8, 1024, dtype="fp16"),
    Situation(8, 1024, dtype="fp32"),
    Situation(8, 1024, dtype="fp32", features=False),
]
# The situations among these that differ most for the compiler.
CORE = [
    Situation(32, 196),
    Situation(32, 196, features=False),
    Situation(64, 169, dtype="fp32", features=False, retention_ratio=0.25),
    Situation(64, 169, dtype="fp16", retention_ratio=0.25),
    Situation(32, 196, videos=(8, 24)),
    Situation(8, 1024),
]
