"""The main entry point: `prune`."""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Unpack

from fastvid_kernels import ops as ops  # registers the operators
from fastvid_kernels.config import Hyperparameters, PruneConfig, resolve_config
from fastvid_kernels.validation import check_is_tensor

Backend = Literal["auto", "eager", "triton"]

_DEFAULTS = PruneConfig()


class Pruned(NamedTuple):
    """The kept tokens of a call.

    Attributes:
        tokens: `[F * K, D]`, in the dtype of the input; `[B, F * K, D]` for a dense batch.
        indices: int64 `[F * K]`, ascending: `frame * N + position` of each kept token. In a ragged batch, frames are
            counted over all videos. In a dense batch the shape is `[B, F * K]`, and frames are counted per video.
    """

    tokens: Tensor
    indices: Tensor


def prune(
    tokens: Tensor,
    attn: Tensor,
    frame_features: Tensor | None = None,
    cu_frames: Tensor | None = None,
    *,
    config: PruneConfig = _DEFAULTS,
    backend: Backend = "auto",
    **hyperparameters: Unpack[Hyperparameters],
) -> Pruned:
    """Prune video tokens with FastVID: keep K = floor(N * retention_ratio) tokens a frame on average.

    Args:
        tokens: video tokens after projection and pooling, `[F, N, D]`: F frames of N tokens; or a dense batch of
            videos of one length, `[B, F, N, D]`. float32, bfloat16, float16, or float64 on the CPU.
        attn: [CLS] attention of each token, `[F, N]` or `[B, F, N]`, any floating dtype; compared as float32.
        frame_features: global feature of each frame, `[F, G]` or `[B, F, G]`; default: the mean of its tokens.
        cu_frames: int32 `[B + 1]`, ascending from 0 to F: the frames at which the videos of a ragged batch start, and
            F. Must be None for a dense batch.
        config: the hyperparameters; those given by name override it.
        backend: "auto" uses the Triton kernels for CUDA tensors if Triton is installed and the call is within their
            limits (N <= 1024, F <= 2**20), and PyTorch otherwise; "triton" and "eager" force one of the two.
        **hyperparameters: see `PruneConfig`.

    Returns:
        `(tokens, indices)`; a video of F frames keeps exactly F * K tokens, whatever its content.

    The call is differentiable in `tokens`, whose gradient has their dtype. It is the gradient of the merge alone: the
    choice of tokens and of the anchors that they join is constant, so the other arguments get no gradient. The backward
    pass is as deterministic as the forward pass, for which only the inputs are saved. There is no second derivative, no
    forward-mode AD, and no gradient inside torch.func's transforms. A loss computed outside `torch.vmap`, and several
    gradients at once (`is_grads_batched`), give what a loop would give.

    Raises:
        TypeError: an argument has the wrong type or dtype, or there is no such hyperparameter.
        ValueError: an argument has the wrong shape, device or range, or K would be 0.
        NotImplementedError: a derivative was requested that is not implemented.

    Source: docs/spec.md; FastVID, arXiv 2503.11187, section 3.
    """
    config = resolve_config(config, hyperparameters)
    # The dispatcher would refuse them too, but with a message that lists all their values.
    for name, tensor in (("tokens", tokens), ("attn", attn)):
        check_is_tensor(name, tensor)
    for name, optional in (("frame_features", frame_features), ("cu_frames", cu_frames)):
        if optional is not None:
            check_is_tensor(name, optional)
    if tokens.dim() != 4:
        return Pruned(*_operator(backend)(tokens, attn, frame_features, cu_frames, *config.values()))
    if cu_frames is not None:
        raise ValueError("cu_frames must be None for a dense batch: tokens [B, F, N, D] are B videos of F frames each")
    videos, frames, tokens_per_frame, channels = tokens.shape
    if videos == 0:
        raise ValueError(f"tokens must hold at least one video, got shape {list(tokens.shape)} (B = 0)")
    _check_dense("attn", attn, tokens, 3)
    if frame_features is not None:
        _check_dense("frame_features", frame_features, tokens, 3)
        frame_features = frame_features.flatten(0, 1)
    cu_frames = torch.arange(videos + 1, dtype=torch.int32, device=tokens.device) * frames
    kept, indices = _operator(backend)(
        tokens.flatten(0, 1), attn.flatten(0, 1), frame_features, cu_frames, *config.values()
    )
    first_token = torch.arange(videos, device=tokens.device)[:, None] * (frames * tokens_per_frame)
    return Pruned(kept.view(videos, -1, channels), indices.view(videos, -1) - first_token)


def check_backend(backend: str, device: torch.device) -> None:
    """Raise unless a backend can run on a device.

    Raises:
        ValueError: there is no such backend, or it cannot run on the device.
    """
    _operator(backend)
    if backend == "triton" and device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError("backend must be 'auto' or 'eager' for a model on the CPU, got 'triton', which needs a GPU")


def _operator(backend: str) -> torch._ops.OpOverloadPacket:
    if backend == "auto":
        return torch.ops.fastvid.prune
    if backend == "eager":
        return torch.ops.fastvid.prune_eager
    if backend == "triton":
        return torch.ops.fastvid.prune_triton
    raise ValueError(f"backend must be 'auto', 'eager' or 'triton', got {backend!r}")


def _check_dense(name: str, tensor: Tensor, tokens: Tensor, rank: int) -> None:
    if tensor.dim() != rank or tensor.shape[:2] != tokens.shape[:2]:
        raise ValueError(
            f"{name} must have {rank} dimensions and start with [B, F] = {list(tokens.shape[:2])}, as tokens do, "
            f"got shape {list(tensor.shape)}"
        )
