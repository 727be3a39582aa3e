"""`torch.ops.fastvid.prune` and its relatives: schemas, shapes without data, and which backend computes.

Every operator has the schema of `prune` and computes the same; they differ in who does it:

- `fastvid::prune` takes the Triton backend for CUDA tensors, where it can, and the eager backend for all others,
- `fastvid::prune_eager` always takes the eager backend,
- `fastvid::prune_triton` always takes the Triton backend.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NoReturn

import torch
from torch import Tensor

from fastvid_kernels import eager
from fastvid_kernels.config import PruneConfig
from fastvid_kernels.kernels.limits import fits_kernels
from fastvid_kernels.validation import check_inputs, check_triton, read_cu_frames

_DEFAULTS = PruneConfig()
_SCHEMA = (
    "(Tensor tokens, Tensor attn, Tensor? frame_features=None, Tensor? cu_frames=None, "
    f"float retention_ratio={_DEFAULTS.retention_ratio}, int min_segments={_DEFAULTS.min_segments}, "
    f"float tau={_DEFAULTS.tau}, float dtm_ratio={_DEFAULTS.dtm_ratio}, "
    f"int anchor_interval={_DEFAULTS.anchor_interval}, float beta={_DEFAULTS.beta}, "
    f"int num_neighbors={_DEFAULTS.num_neighbors}) -> (Tensor, Tensor)"
)


def backend_for(device: torch.device, frames: int, tokens_per_frame: int) -> str:
    """The name of the backend that `torch.ops.fastvid.prune` takes: from a call's device and size, never its data."""
    if device.type == "cuda" and fits_kernels(frames, tokens_per_frame) and _has_triton():
        return "triton"
    return "eager"


@cache
def _has_triton() -> bool:
    # Only an import tells: a package that is there may still lack what it is built on.
    try:
        importlib.import_module("triton")
    except ImportError:
        return False
    return True


def _prune_eager(
    tokens: Tensor, attn: Tensor, frame_features: Tensor | None, cu_frames: Tensor | None, config: PruneConfig
) -> tuple[Tensor, Tensor]:
    return eager.prune(tokens, attn, frame_features, read_cu_frames(cu_frames, tokens.shape[0]), config)


def _prune_triton(
    tokens: Tensor, attn: Tensor, frame_features: Tensor | None, cu_frames: Tensor | None, config: PruneConfig
) -> tuple[Tensor, Tensor]:
    check_triton(tokens)
    if cu_frames is not None and cu_frames.device.type == "cpu":
        read_cu_frames(cu_frames, tokens.shape[0])
    # Imported on first use: the package works where Triton does not.
    from fastvid_kernels.kernels import pipeline

    return pipeline.prune(tokens, attn, frame_features, cu_frames, config)


_BACKENDS = {"eager": _prune_eager, "triton": _prune_triton}


# By type too: True is no 1.0.
@lru_cache(maxsize=256, typed=True)
def _config(*hyperparameters: Any, **named: Any) -> PruneConfig:
    return PruneConfig(*hyperparameters, **named)


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
        config = _config(*hyperparameters, **named)
        check_inputs(tokens, attn, frame_features, cu_frames, config)
        chosen = backend or backend_for(tokens.device, *tokens.shape[:2])
        return _BACKENDS[chosen](tokens, attn, frame_features, cu_frames, config)

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


def _no_gradient(grad: Tensor, size: list[int]) -> NoReturn:
    raise NotImplementedError(
        "fastvid::prune has no gradient: it is an inference-time operator; call it under torch.no_grad() "
        "or on tokens.detach()"
    )


def _no_gradient_shape(grad: Tensor, size: list[int]) -> Tensor:
    return grad.new_empty(size)


def _remember_shapes(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.shapes = [x.shape if isinstance(x, Tensor) and x.is_floating_point() else None for x in inputs]


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = [None if shape is None else torch.ops.fastvid.no_gradient(grad, shape) for shape in ctx.shapes]
    return tuple(gradients)


# An operator of its own, since a compiler traces the backward pass of a call that may never need one.
torch.library.define("fastvid::no_gradient", "(Tensor grad, SymInt[] size) -> Tensor")
torch.library.impl("fastvid::no_gradient", "CompositeExplicitAutograd", _no_gradient)
torch.library.register_fake("fastvid::no_gradient", _no_gradient_shape)

for _name, _backend in {"prune": None, "prune_eager": "eager", "prune_triton": "triton"}.items():
    _qualified = f"fastvid::{_name}"
    # The eager backend looks at its data: a compiler that captures CUDA graphs must leave it out of them.
    _tags = [torch.Tag.pt2_compliant_tag, *([torch.Tag.cudagraph_unsafe] if _backend == "eager" else [])]
    torch.library.define(_qualified, _SCHEMA, tags=_tags)
    torch.library.impl(_qualified, "CompositeExplicitAutograd", _implementation(_backend))
    torch.library.register_fake(_qualified, _output_shapes)
    torch.library.register_autograd(_qualified, _backward, setup_context=_remember_shapes)
