"""From videos and the attention of their tokens to marked video tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fastvid_kernels.adapters.decoder import mark_dropped
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
    """What a model knows of a video when it prunes it; all on one device.

    Attributes:
        tokens: `[F, N, D]`, projected and pooled.
        attention: `[F, N]`.
        features: `[F, G]`, global features of the frames; None: their mean tokens.
    """

    tokens: Tensor
    attention: Tensor
    features: Tensor | None = None

    def split(self, videos: int) -> list[Video]:
        """Its frames as so many videos of one length."""
        length = len(self.tokens) // videos
        parts = (self.tokens, self.attention, self.features)
        split = [[None] * videos if part is None else part.split(length) for part in parts]
        return [Video(*one) for one in zip(*split, strict=True)]


class VideoPruner:
    """Prunes the tokens of a model's videos: one call of the operator for all videos of a call whose frames are alike.

    Args:
        config: the hyperparameters.
        backend: as in `prune`.
        method: what prunes instead of the operator.
        sink: correct attention for sinks.
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
        """The pruner that was asked for."""
        return cls(settings.config, settings.backend, settings.method, settings.sink)

    def __call__(self, videos: Sequence[Video]) -> list[Tensor]:
        """Mark the tokens that are dropped.

        Args:
            videos: of any sizes.

        Returns:
            For each, `[F, N, D]`: the kept tokens, merged where they were merged, in their places, -inf elsewhere.
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
        tokens = _joined([video.tokens for video in videos])
        attention = _joined([self._attention(video) for video in videos])
        features = None if videos[0].features is None else _joined([_features(video) for video in videos])
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
    """Compiles, at a model's first video of a kind, what its later ones will need too.

    Args:
        config: the hyperparameters.
        backend: as in `prune`.
    """

    def __init__(self, config: PruneConfig, backend: Backend) -> None:
        self._config = config
        self._backend = backend
        self._warm: set[Any] = set()

    def __call__(self, tokens: Tensor, attention: Tensor, features: Tensor | None) -> None:
        """Before a call of the operator on these; nothing where its kernels will not run."""
        if torch.compiler.is_compiling() or self._backend == "eager":
            return
        channels, dtype = (None, None) if features is None else (features.shape[1], features.dtype)
        # A model that only serves need not wait for what a training step runs.
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


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _features(video: Video) -> Tensor:
    assert video.features is not None, "videos of one call have features, or none has"
    return video.features


class InputCapture:
    """A hook that keeps the input of a module while it is asked to."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._wanted = False
        self._input: Tensor | None = None

    def attach(self) -> list[RemovableHandle]:
        """Put the hook in place."""
        return [self._module.register_forward_pre_hook(self._keep)]

    def of(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        """What `run` returns, and the module's last input while it ran."""
        self._wanted, self._input = True, None
        try:
            result = run(*args, **kwargs)
            return result, self._taken()
        finally:
            self._wanted, self._input = False, None

    def _taken(self) -> Tensor:
        if self._input is None:
            raise RuntimeError(
                f"the {type(self._module).__name__} that projected patches when FastVID was applied did not run: where "
                "it was replaced, call model.fastvid_handle.remove() and apply_fastvid again"
            )
        return self._input

    def _keep(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._wanted:
            self._input = args[0]
