"""The launches of the Triton backend, in order."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from fastvid_kernels.config import PruneConfig
from fastvid_kernels.kernels.assign import launch_assign
from fastvid_kernels.kernels.delta import launch_delta
from fastvid_kernels.kernels.density import launch_density
from fastvid_kernels.kernels.emit import launch_emit
from fastvid_kernels.kernels.frame import launch_frame
from fastvid_kernels.kernels.gram import launch_gram
from fastvid_kernels.kernels.launch import Call, Workspace, plan_shapes
from fastvid_kernels.kernels.limits import MAX_FRAMES, MAX_TOKENS_PER_FRAME, fits_kernels
from fastvid_kernels.kernels.plan import launch_plan
from fastvid_kernels.kernels.select import launch_select


def prune(
    tokens: Tensor, attn: Tensor, frame_features: Tensor | None, cu_frames: Tensor | None, config: PruneConfig
) -> tuple[Tensor, Tensor]:
    """Prune checked arguments without reading any of them on the host.

    Args:
        tokens: `[F, N, D]`, float32, bfloat16 or float16; N <= 1024, F <= 2**20.
        attn: `[F, N]`.
        frame_features: `[F, G]`, or None for the frames' mean tokens.
        cu_frames: int32 `[B + 1]`, or None for one video.
        config: the hyperparameters.

    Returns:
        The kept tokens `[F * K, D]` and their flat indices, int64 `[F * K]`, ascending.

    Raises:
        ValueError: a frame has more tokens, or the batch more frames, than the kernels hold.
    """
    call = prepare(tokens, attn, frame_features, cu_frames, config)
    with torch.cuda.device(tokens.device) if tokens.is_cuda else nullcontext():
        launch(call)
    return call.output, call.indices


def prepare(
    tokens: Tensor, attn: Tensor, frame_features: Tensor | None, cu_frames: Tensor | None, config: PruneConfig
) -> Call:
    """Allocate outputs and scratch."""
    frames, n, dim = tokens.shape
    if not fits_kernels(frames, n):
        raise ValueError(
            f"tokens must have at most {MAX_FRAMES} frames of {MAX_TOKENS_PER_FRAME} tokens for the Triton backend, "
            f"got {list(tokens.shape)}: use backend='eager'"
        )
    shapes = plan_shapes(tokens, dim if frame_features is None else frame_features.shape[1], config)
    rows = frames * shapes.kept_per_frame
    return Call(
        tokens=tokens,
        attn=attn,
        frame_features=frame_features,
        cu_frames=cu_frames,
        config=config,
        shapes=shapes,
        workspace=Workspace(shapes, tokens.device),
        output=tokens.new_empty(rows, dim),
        indices=torch.empty(rows, dtype=torch.int64, device=tokens.device),
    )


def launch(call: Call) -> None:
    """All stages: eight launches; four more for each further chunk of frames, two for one of anchor frames."""
    shapes = call.shapes
    launch_frame(call)
    launch_plan(call)
    for first_frame in range(0, shapes.frames, shapes.frames_per_chunk):
        frames = min(shapes.frames_per_chunk, shapes.frames - first_frame)
        if shapes.has_anchors:
            launch_gram(call, first_frame, frames)
            launch_density(call, first_frame, frames)
            launch_delta(call, first_frame, frames)
        launch_select(call, first_frame, frames)
    for first_ordinal in range(0, shapes.ordinals, shapes.ordinals_per_chunk):
        if shapes.has_anchors:
            launch_assign(call, first_ordinal)
        launch_emit(call, first_ordinal)
