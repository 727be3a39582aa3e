"""Prune the tokens of videos by their attention, and mark the dropped ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from fastvid_kernels.adapters.decoder import mark_dropped
from fastvid_kernels.adapters.hooks import ModuleRecord
from fastvid_kernels.adapters.settings import Settings
from fastvid_kernels.adapters.stopwatch import part_of_pruning
from fastvid_kernels.adapters.tally import count_videos
from fastvid_kernels.api import Backend, prune
from fastvid_kernels.compilation import warmup
from fastvid_kernels.config import PruneConfig
from fastvid_kernels.methods import Method
from fastvid_kernels.ops import backend_for
from fastvid_kernels.vision import without_sinks


@dataclass(frozen=True)
class Video:
    """The tensors of one video that pruning needs, all on one device.

    Attributes:
        tokens: `[F, N, D]`, projected and pooled.
        attention: `[F, N]`.
        features: `[F, G]`, global features of the frames; None: the frames' mean tokens are used.
    """

    tokens: Tensor
    attention: Tensor
    features: Tensor | None = None

    def split(self, videos: int) -> list[Video]:
        """Split the frames into `videos` videos of equal length."""
        length = len(self.tokens) // videos
        parts = (self.tokens, self.attention, self.features)
        split = [[None] * videos if part is None else part.split(length) for part in parts]
        return [Video(*one) for one in zip(*split, strict=True)]


class VideoPruner:
    """Prunes videos, with one call of the operator for all videos that have the same number of tokens a frame.

    Args:
        config: the hyperparameters.
        backend: as in `prune`.
        method: the method that prunes instead of the operator, if any.
        sink: whether to lower the attention of sinks first.
    """

    def __init__(
        self, config: PruneConfig, backend: Backend = "auto", method: Method | None = None, sink: bool = False
    ) -> None:
        self._config = config
        self._backend = backend
        self._method = method
        self._sink = sink
        self._warm_up = LazyWarmup(config, backend)

    @classmethod
    def of(cls, settings: Settings) -> VideoPruner:
        """The pruner for these settings."""
        return cls(settings.config, settings.backend, settings.method, settings.sink)

    def __call__(self, videos: Sequence[Video]) -> list[Tensor]:
        """Mark the tokens that are dropped.

        Args:
            videos: of any sizes.

        Returns:
            For each video `[F, N, D]`: the kept tokens, after merging, at their places, and -inf elsewhere.
        """
        with part_of_pruning(videos[0].tokens.device):
            return self._marked(videos)

    def _marked(self, videos: Sequence[Video]) -> list[Tensor]:
        alike: dict[int, list[int]] = {}
        for number, video in enumerate(videos):
            alike.setdefault(video.tokens.shape[1], []).append(number)
        marked: dict[int, Tensor] = {}
        for numbers in alike.values():
            pruned = self._prune([videos[number] for number in numbers])
            marked.update(zip(numbers, pruned, strict=True))
        return [marked[number] for number in range(len(videos))]

    def _prune(self, videos: list[Video]) -> tuple[Tensor, ...]:
        lengths = [len(video.tokens) for video in videos]
        tokens = joined([video.tokens for video in videos])
        attention = joined([self._attention(video) for video in videos])
        features = None if videos[0].features is None else joined([_features(video) for video in videos])
        cu_frames = None
        if len(videos) > 1:
            cu_frames = torch.tensor([*accumulate(lengths, initial=0)], dtype=torch.int32, device=tokens.device)
        if self._method is None:
            self._warm_up(tokens, attention, features)
            kept = prune(tokens, attention, features, cu_frames, config=self._config, backend=self._backend)
        else:
            kept = self._method(tokens, attention, features, cu_frames, config=self._config)
        count_videos(lengths, tokens.shape[1], kept.indices)
        marked: tuple[Tensor, ...] = mark_dropped(tokens, *kept).split(lengths)
        return marked

    def _attention(self, video: Video) -> Tensor:
        return without_sinks(video.attention) if self._sink else video.attention


class LazyWarmup:
    """Compiles the kernels for all videos of a kind (device, channels, dtypes) when the first one is pruned.

    Args:
        config: the hyperparameters.
        backend: as in `prune`.
    """

    def __init__(self, config: PruneConfig, backend: Backend) -> None:
        self._config = config
        self._backend = backend
        self._warm: set[Any] = set()

    def __call__(self, tokens: Tensor, attention: Tensor, features: Tensor | None) -> None:
        """Compile before the operator is called on these tensors; do nothing if its kernels will not run."""
        if torch.compiler.is_compiling() or self._backend == "eager":
            return
        channels, dtype = (None, None) if features is None else (features.shape[1], features.dtype)
        # Inference need not wait for the kernels of the backward pass.
        backward = torch.is_grad_enabled() and tokens.requires_grad
        kind = (tokens.device, tokens.shape[2], tokens.dtype, attention.dtype, channels, dtype, backward)
        if kind in self._warm or backend_for(tokens.device, *tokens.shape[:2]) != "triton":
            return
        warmup(
            *kind[:3],
            attn_dtype=attention.dtype,
            feature_channels=channels,
            feature_dtype=dtype,
            backward=backward,
            config=self._config,
        )
        self._warm.add(kind)


def joined(parts: list[Tensor]) -> Tensor:
    """The parts one after the other; not copied if it is one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _features(video: Video) -> Tensor:
    assert video.features is not None, "videos of one call have features, or none has"
    return video.features


class InputCapture(ModuleRecord):
    """Records the input of a module while `of` runs."""

    def of(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        """Call `run`; return its result, and the last input that the module got meanwhile."""
        self.start()
        try:
            result = run(*args, **kwargs)
            if self.input is None:
                raise RuntimeError(
                    f"{self.path} must be called as a module while get_video_features of the model runs, because its "
                    "input is what ranks the tokens, and it was not"
                )
            return result, self.input
        finally:
            self.forget()
