"""Compiles beforehand what calls of a model will need: a server does it at start-up, not at its first video."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from fastvid_kernels.config import Hyperparameters, PruneConfig, resolve_config
from fastvid_kernels.kernels.limits import FRAME_TILES
from fastvid_kernels.validation import check_inputs, check_triton

_DEFAULTS = PruneConfig()
_FRAMES = 2


def warmup(
    device: torch.device | str,
    channels: int,
    dtype: torch.dtype = torch.bfloat16,
    *,
    feature_channels: int | None = None,
    config: PruneConfig = _DEFAULTS,
    progress: bool | None = None,
    **hyperparameters: Unpack[Hyperparameters],
) -> int:
    """Compile the kernels for contiguous tokens of one width and dtype: videos of any length, frames of any size.

    It prunes a few blank videos of two frames, and waits for none. With a filled Triton cache it takes a moment.

    Args:
        device: a CUDA device.
        channels: D, of the tokens.
        dtype: of the tokens and features: float32, bfloat16 or float16.
        feature_channels: G of the frame features that calls will give; without it, calls give none.
        config: the hyperparameters; those given by name override it.
        progress: whether to show a bar on standard error; default: where that is a terminal and rich is installed.
        **hyperparameters: see `PruneConfig`.

    Returns:
        How many videos it pruned.

    Raises:
        TypeError: tokens cannot be of that dtype, or there is no such hyperparameter.
        ValueError: `device` is not a GPU, or a number lies outside its range.
    """
    config = resolve_config(config, hyperparameters)
    calls = list(_calls(torch.device(device), channels, dtype, feature_channels, config))
    for call in calls:
        check_inputs(*call, config)
        check_triton(call[0])
    # Imported on first use: the package works where Triton does not.
    from fastvid_kernels.kernels import pipeline

    with _progress(len(calls), progress) as advance:
        for call in calls:
            pipeline.prune(*call, config)
            advance()
    return len(calls)


Arguments = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def _calls(
    device: torch.device, channels: int, dtype: torch.dtype, feature_channels: int | None, config: PruneConfig
) -> Iterator[Arguments]:
    """One of each size of tile, and one of each way to give features and several videos."""
    kinds = list(product((None, feature_channels) if feature_channels else (None,), (False, True)))
    for number in range(max(len(FRAME_TILES), len(kinds))):
        tile = FRAME_TILES[min(number, len(FRAME_TILES) - 1)]
        features, is_batch = kinds[min(number, len(kinds) - 1)]
        yield (
            torch.zeros(_FRAMES, tile, channels, dtype=dtype, device=device),
            torch.zeros(_FRAMES, tile, dtype=dtype, device=device),
            None if features is None else torch.zeros(_FRAMES, features, dtype=dtype, device=device),
            torch.arange(_FRAMES + 1, dtype=torch.int32, device=device) if is_batch else None,
        )


@contextmanager
def _progress(total: int, wanted: bool | None) -> Iterator[Any]:
    bar: Any = None
    if wanted or (wanted is None and sys.stderr.isatty()):
        try:
            from rich.console import Console
            from rich.progress import Progress

            bar = Progress(console=Console(stderr=True), transient=True)
        except ImportError:
            if wanted:
                raise
    with bar if bar is not None else nullcontext():
        task = None if bar is None else bar.add_task("compiling FastVID's kernels", total=total)
        yield (lambda: None) if bar is None else (lambda: bar.advance(task))
