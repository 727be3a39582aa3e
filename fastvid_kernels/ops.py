"""`torch.ops.fastvid.prune` and its relatives: schemas, shapes without data, and which backend computes.

Every operator has the schema of `prune` and computes the same; they differ in who does it:

- `fastvid::prune` takes the best backend for the tensors' device,
- `fastvid::prune_eager` always takes the eager backend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from fastvid_kernels import eager
from fastvid_kernels.config import PruneConfig
from fastvid_kernels.validation import check_inputs, read_cu_frames

_DEFAULTS = PruneConfig()
_SCHEMA = (
    "(Tensor tokens, Tensor attn, Tensor? frame_features=None, Tensor? cu_frames=None, "
    f"float retention_ratio={_DEFAULTS.retention_ratio}, int min_segments={_DEFAULTS.min_segments}, "
    f"float tau={_DEFAULTS.tau}, float dtm_ratio={_DEFAULTS.dtm_ratio}, "
    f"int anchor_interval={_DEFAULTS.anchor_interval}, float beta={_DEFAULTS.beta}, "
    f"int num_neighbors={_DEFAULTS.num_neighbors}) -> (Tensor, Tensor)"
)


# (tokens, attn, frame_features, video_starts, config) -> (tokens, indices), on arguments that were checked.
_BACKENDS = {"eager": eager.prune}


def backend_for(device: torch.device) -> str:
    """The name of the backend that `torch.ops.fastvid.prune` takes for tensors on a device."""
    return "eager"


def _implementation(backend: str | None) -> Callable[..., tuple[Tensor, Tensor]]:
    """The operator as computed by one backend, or by the best for the tensors' device if that is None."""

    def prune(
        tokens: Tensor,
        attn: Tensor,
        frame_features: Tensor | None = None,
        cu_frames: Tensor | None = None,
        *hyperparameters: Any,
        **named: Any,
    ) -> tuple[Tensor, Tensor]:
        config = PruneConfig(*hyperparameters, **named)
        check_inputs(tokens, attn, frame_features, cu_frames, config)
        video_starts = read_cu_frames(cu_frames, tokens.shape[0])
        compute = _BACKENDS[backend or backend_for(tokens.device)]
        return compute(tokens, attn, frame_features, video_starts, config)

    return prune


def _output_shapes(
    tokens: Tensor,
    attn: Tensor,
    frame_features: Tensor | None = None,
    cu_frames: Tensor | None = None,
    *hyperparameters: Any,
    **named: Any,
) -> tuple[Tensor, Tensor]:
    config = PruneConfig(*hyperparameters, **named)
    check_inputs(tokens, attn, frame_features, cu_frames, config)
    frames, tokens_per_frame, channels = tokens.shape
    kept = frames * config.kept_per_frame(tokens_per_frame)
    return tokens.new_empty(kept, channels), tokens.new_empty(kept, dtype=torch.int64)


def _no_gradient(ctx: Any, *grads: Tensor | None) -> NoReturn:
    raise NotImplementedError(
        "fastvid::prune has no gradient: it is an inference-time operator; call it under torch.no_grad() "
        "or on tokens.detach()"
    )


for _name, _backend in {"prune": None, "prune_eager": "eager"}.items():
    _qualified = f"fastvid::{_name}"
    torch.library.define(_qualified, _SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(_qualified, "CompositeExplicitAutograd", _implementation(_backend))
    torch.library.register_fake(_qualified, _output_shapes)
    torch.library.register_autograd(_qualified, _no_gradient)
