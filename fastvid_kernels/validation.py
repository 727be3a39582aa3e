"""Checks of the operator's arguments. Every error names the argument, what it must be, and what it was."""

from __future__ import annotations

import math
import os
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from fastvid_kernels.config import PruneConfig

_TOKEN_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_FEATURE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_inputs(
    tokens: Tensor, attn: Tensor, frame_features: Tensor | None, cu_frames: Tensor | None, config: PruneConfig
) -> None:
    """Check shapes, dtypes and devices; reads no data, so it serves real and fake tensors alike.

    Raises:
        TypeError: an argument is of a wrong dtype or layout.
        ValueError: an argument has a wrong shape or device, or no token would be kept.
    """
    _check_tensor("tokens", tokens, "[F, N, D]", _TOKEN_DTYPES)
    frames, tokens_per_frame, channels = tokens.shape
    if tokens.dtype == torch.float64 and tokens.device.type not in ("cpu", "meta"):
        raise TypeError(f"tokens of dtype float64 must be on the CPU, got {tokens.device}: use float32")
    if _certainly(frames == 0):
        raise ValueError(f"tokens must hold at least one frame, got shape {_shape(tokens)} (F = 0)")
    if _certainly(tokens_per_frame == 0) or _certainly(channels == 0):
        raise ValueError(f"tokens must have N >= 1 tokens of D >= 1 channels a frame, got shape {_shape(tokens)}")
    check_keeps_some(tokens_per_frame, config)
    _check_tensor("attn", attn, "[F, N]", _FEATURE_DTYPES)
    if _certainly(attn.shape[0] != frames) or _certainly(attn.shape[1] != tokens_per_frame):
        raise ValueError(
            f"attn must have the shape [F, N] = [{frames}, {tokens_per_frame}] that tokens have, got {_shape(attn)}"
        )
    _check_device("attn", attn, tokens)
    if frame_features is not None:
        _check_tensor("frame_features", frame_features, "[F, G]", _FEATURE_DTYPES)
        if _certainly(frame_features.shape[0] != frames) or _certainly(frame_features.shape[1] == 0):
            raise ValueError(
                f"frame_features must have the shape [F, G] with F = {frames} as in tokens and G >= 1, "
                f"got {_shape(frame_features)}"
            )
        _check_device("frame_features", frame_features, tokens)
    if cu_frames is not None:
        _check_tensor("cu_frames", cu_frames, "[B + 1]", (torch.int32,))
        if _certainly(cu_frames.shape[0] < 2):
            raise ValueError(f"cu_frames must have B + 1 >= 2 entries, got {cu_frames.shape[0]}")
        _check_device("cu_frames", cu_frames, tokens)


def check_gradient(grad: Tensor, tokens: Tensor, config: PruneConfig) -> None:
    """Check the gradient of the kept tokens, given tokens that were checked; reads no data.

    Raises:
        TypeError: it is not of the tokens' dtype.
        ValueError: it is not of the kept tokens' shape, or not on their device.
    """
    _check_tensor("grad", grad, "[F * K, D]", (tokens.dtype,))
    frames, tokens_per_frame, channels = tokens.shape
    rows = frames * config.kept_per_frame(tokens_per_frame)
    if _certainly(grad.shape[0] != rows) or _certainly(grad.shape[1] != channels):
        raise ValueError(
            f"grad must have the shape [F * K, D] = [{rows}, {channels}] of the kept tokens, got {_shape(grad)}"
        )
    _check_device("grad", grad, tokens)


def check_keeps_some(tokens_per_frame: int, config: PruneConfig) -> None:
    """Check that K >= 1, so that some tokens would be kept.

    Raises:
        ValueError: K would be 0.
    """
    if _certainly(config.kept_per_frame(tokens_per_frame) == 0):
        raise ValueError(
            f"retention_ratio must keep at least one of a frame's {tokens_per_frame} tokens, got "
            f"{config.retention_ratio!r}, which keeps none: use {_least_ratio(tokens_per_frame)} or more"
        )


def check_triton(tokens: Tensor) -> None:
    """Check the requirements of the Triton backend.

    Raises:
        TypeError: tokens are float64.
        ValueError: tokens are on the CPU, and Triton's interpreter is not switched on.
    """
    if tokens.dtype == torch.float64:
        raise TypeError("tokens must be float32, bfloat16 or float16 for backend 'triton', got float64")
    if tokens.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            "tokens must be on a GPU for backend 'triton', got cpu: set TRITON_INTERPRET=1 before the first use to run "
            "the kernels in Triton's interpreter, or use backend='eager'"
        )


def read_cu_frames(cu_frames: Tensor | None, frames: int) -> list[int]:
    """Where each video starts, as integers on the host: 0, ..., `frames`, ascending.

    Raises:
        ValueError: `cu_frames` is on the CPU and does not increase from 0 to `frames`. On another device a bad entry
            is clamped to lie between its predecessor and `frames` instead, and the last video reaches to the end
            (SPEC section 7).
    """
    if cu_frames is None:
        return [0, frames]
    starts: list[int] = cu_frames.tolist()
    if cu_frames.device.type != "cpu":
        return _clamped(starts, frames)
    if starts[0] != 0:
        raise ValueError(f"cu_frames must start with 0, got {starts[0]}")
    if starts[-1] != frames:
        raise ValueError(f"cu_frames must end with the number of frames, {frames}, got {starts[-1]}")
    for video, (start, end) in enumerate(pairwise(starts)):
        if end <= start:
            raise ValueError(
                f"cu_frames must increase, so that no video is empty: video {video} reaches from {start} to {end}"
            )
    return starts


def _clamped(starts: list[int], frames: int) -> list[int]:
    _, *ascending = accumulate((min(start, frames) for start in starts[:-1]), max, initial=0)
    return sorted({0, *ascending[1:], frames})


def check_is_tensor(name: str, tensor: object) -> None:
    """Check that an argument is a tensor.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")


def _check_tensor(name: str, tensor: Tensor, axes: str, dtypes: tuple[torch.dtype, ...]) -> None:
    check_is_tensor(name, tensor)
    rank = axes.count(",") + 1
    if tensor.dim() != rank:
        raise ValueError(f"{name} must be of shape {axes}, got {tensor.dim()} dimensions: {_shape(tensor)}")
    if tensor.dtype not in dtypes:
        expected = " or ".join(_name(dtype) for dtype in dtypes)
        raise TypeError(f"{name} must be {expected}, got {_name(tensor.dtype)}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {tensor.layout}")


def _certainly(condition: Any) -> bool:
    """The condition, or False if it depends on a size unknown while tracing: it is checked again at run time."""
    if isinstance(condition, bool):
        return condition
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    return bool(guard_or_false(condition))


def _check_device(name: str, tensor: Tensor, tokens: Tensor) -> None:
    if tensor.device != tokens.device:
        raise ValueError(f"{name} must be on the device of tokens, {tokens.device}, got {tensor.device}")


def _least_ratio(tokens_per_frame: int) -> float:
    """The smallest retention ratio, to 1e-6, that keeps a token of each frame."""
    return math.ceil(1_000_000 / tokens_per_frame) / 1_000_000


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
