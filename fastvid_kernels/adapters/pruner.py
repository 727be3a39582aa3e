"""From what enters a projector and what leaves it to marked video tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fastvid_kernels.adapters.decoder import mark_dropped
from fastvid_kernels.adapters.scoring import Scorer
from fastvid_kernels.api import Backend, prune
from fastvid_kernels.config import PruneConfig


class VideoPruner:
    """Prunes the tokens of a model's videos, all videos of a call at once.

    Args:
        score: attention and global features of the patches that enter the projector.
        pool: brings attention `[F, P]` to the token grid, `[F, N]`, as the model brings its tokens there.
        config: the hyperparameters.
        backend: as in `prune`.
    """

    def __init__(self, score: Scorer, pool: Callable[[Tensor], Tensor], config: PruneConfig, backend: Backend) -> None:
        self._score = score
        self._pool = pool
        self._config = config
        self._backend = backend

    def __call__(self, patches: Tensor, tokens: Tensor, videos: int = 1) -> Tensor:
        """Mark the tokens that are dropped.

        Args:
            patches: `[F, P, H]`, the vision tower's features that entered the projector.
            tokens: `[F, N, D]`, the same after projection and pooling.
            videos: the frames belong to so many videos of one length.

        Returns:
            `[F, N, D]`: the kept tokens, merged where they were merged, in their places, -inf elsewhere.
        """
        attention, features = self._score(patches)
        frames = len(tokens)
        cu_frames = None
        if videos > 1:
            cu_frames = torch.arange(0, frames + 1, frames // videos, dtype=torch.int32, device=tokens.device)
        attention = self._pool(attention).to(tokens.device)
        features = None if features is None else features.to(tokens.device)
        kept = prune(tokens, attention, features, cu_frames, config=self._config, backend=self._backend)
        return mark_dropped(tokens, *kept)


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
        assert self._input is not None, "the module did not run"
        return self._input

    def _keep(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._wanted:
            self._input = args[0]
