"""What people call: `prune`, and `explain` for its reasons."""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Unpack

from fastvid_kernels import ops as ops  # registers the operators
from fastvid_kernels.config import Hyperparameters, PruneConfig, resolve_config

Backend = Literal["auto", "eager", "triton"]

_DEFAULTS = PruneConfig()


class Pruned(NamedTuple):
    """What is left of a video.

    Attributes:
        tokens: `[F * K, D]`, in the dtype of the input; `[B, F * K, D]` for a dense batch.
        indices: int64 `[F * K]`, ascending: `frame * N + position` of each kept token. Frames are counted through
            a ragged batch; in a dense batch, `[B, F * K]`, within each video.
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
        frame_features: global feature of each frame, `[F, G]` or `[B, F, G]`; default: its mean token.
        cu_frames: int32 `[B + 1]`, for several videos with their frames concatenated: where each one starts, from
            0 to F. Not with a dense batch.
        config: the hyperparameters; those given by name override it.
        backend: "auto" takes the fused kernels for CUDA tensors, where Triton is installed and the call is not larger
            than they hold (N <= 1024, F <= 2**20), and PyTorch otherwise; "triton" and "eager" ask for one of them.
        **hyperparameters: see `PruneConfig`.

    Returns:
        `(tokens, indices)`; every video of F frames keeps exactly F * K tokens, whatever it shows.

    A backward pass gives `tokens` the gradient of the merge, in their dtype: which tokens are kept and what joined what
    are constants, so `attn`, `frame_features` and `cu_frames` get none. It keeps nothing but the inputs, and is as
    deterministic as the call. There is no second derivative, no forward mode, and no gradient inside of torch.func's
    transforms; a loss outside of a plain vmap, or several gradients at once, are as a loop would have them.

    Raises:
        TypeError: an argument has the wrong dtype, or there is no such hyperparameter.
        ValueError: an argument has the wrong shape, device or range, or K would be 0.
        NotImplementedError: a derivative was asked for that does not exist.

    Source: SPEC; FastVID, arXiv 2503.11187, section 3.
    """
    config = resolve_config(config, hyperparameters)
    if not isinstance(tokens, Tensor):
        raise TypeError(f"tokens must be a torch.Tensor, got {type(tokens).__name__}")
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
        ValueError: there is no such backend, or it cannot.
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


def _check_dense(name: str, tensor: object, tokens: Tensor, rank: int) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dim() != rank or tensor.shape[:2] != tokens.shape[:2]:
        raise ValueError(
            f"{name} must have {rank} dimensions and start with [B, F] = {list(tokens.shape[:2])}, as tokens do, "
            f"got shape {list(tensor.shape)}"
        )
