"""Compiles the kernels ahead of time, so that a server does it at start-up and not at its first video."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import product, zip_longest
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from fastvid_kernels.config import Hyperparameters, PruneConfig, resolve_config
from fastvid_kernels.kernels.limits import FRAME_TILES
from fastvid_kernels.validation import check_inputs, check_triton

_DEFAULTS = PruneConfig()
_FEWEST_FRAMES = 2
_MOST_FRAMES = 64


def warmup(
    device: torch.device | str,
    channels: int,
    dtype: torch.dtype = torch.bfloat16,
    *,
    attn_dtype: torch.dtype = torch.float32,
    feature_channels: int | None = None,
    feature_dtype: torch.dtype | None = None,
    backward: bool = False,
    config: PruneConfig = _DEFAULTS,
    progress: bool | None = None,
    **hyperparameters: Unpack[Hyperparameters],
) -> int:
    """Compile the kernels for contiguous tokens of one width and dtype: videos of any length, frames of any size.

    It prunes a few blank videos, which is quick if Triton's cache holds the kernels already. If `channels` is not a
    multiple of 16, Triton specialises kernels on the alignment of a frame's size, and later calls may compile more. So
    does the first call with tokens whose frames do not follow one another.

    Args:
        device: a CUDA device.
        channels: D, of the tokens.
        dtype: of the tokens: float32, bfloat16 or float16.
        attn_dtype: dtype of `attn` in later calls; the adapters use float32.
        feature_channels: G of `frame_features` in later calls; None if they pass no features.
        feature_dtype: dtype of `frame_features` in later calls; default: that of the tokens.
        backward: whether to compile the one further kernel of a backward pass; inference does not need it.
        config: the hyperparameters; those given by name override it.
        progress: whether to show a bar on standard error; default: if that is a terminal and rich is installed.
        **hyperparameters: see `PruneConfig`.

    Returns:
        The number of blank videos pruned.

    Raises:
        TypeError: an argument has a wrong dtype, or there is no such hyperparameter.
        ValueError: `device` is not a GPU, a number lies outside its range, or no frame would keep a token.
    """
    config = resolve_config(config, hyperparameters)
    device = torch.device(device)
    tiles = [tile for tile in FRAME_TILES if config.kept_per_frame(tile)] or [FRAME_TILES[-1]]
    kinds = list(product((False, True) if feature_channels else (False,), (False, True)))
    # Every size of tile, and every kind of call, at least once.
    calls = []
    for wanted_tile, wanted_kind in zip_longest(tiles, kinds):
        tile, (has_features, is_batch) = wanted_tile or tiles[0], wanted_kind or kinds[0]
        shape = (_frames(tile, config), tile, channels)
        features = (feature_channels, feature_dtype or dtype) if feature_channels and has_features else None
        calls.append(_blank(device, shape, (dtype, attn_dtype), features, is_batch))
    for call in calls:
        check_inputs(*call, config)
        try:
            check_triton(call[0])
        except ValueError:
            raise ValueError(f"device must be a GPU, got {device}: elsewhere nothing has to be compiled") from None
    # Imported on first use: the package works where Triton does not.
    from fastvid_kernels.kernels import pipeline

    with _progress(len(calls) + backward, progress) as advance:
        for call in calls:
            pipeline.prune(*call, config)
            advance()
        if backward:
            frames, tokens_per_frame, _ = calls[0][0].shape
            grad = calls[0][0].new_zeros(frames * config.kept_per_frame(tokens_per_frame), channels)
            pipeline.prune_backward(grad, *calls[0], config)
            advance()
    return len(calls)


def _frames(tokens_per_frame: int, config: PruneConfig) -> int:
    """The number of frames of a blank video: enough for an anchor, if that needs at most `_MOST_FRAMES`."""
    context = config.kept_per_frame(tokens_per_frame) * config.dtm_millionths
    return min(_MOST_FRAMES, max(_FEWEST_FRAMES, -(-1_000_000 // context))) if context else _FEWEST_FRAMES


def _blank(
    device: torch.device,
    shape: tuple[int, int, int],
    dtypes: tuple[torch.dtype, torch.dtype],
    features: tuple[int, torch.dtype] | None,
    is_batch: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    frames = shape[0]
    return (
        torch.zeros(shape, dtype=dtypes[0], device=device),
        torch.zeros(shape[:2], dtype=dtypes[1], device=device),
        None if features is None else torch.zeros(frames, features[0], dtype=features[1], device=device),
        torch.arange(2, dtype=torch.int32, device=device) * frames if is_batch else None,
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
