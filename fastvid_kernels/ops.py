"""The operator `torch.ops.fastvid.prune` and its variants: schemas, fake kernels, autograd, and choice of the backend.

Every variant has the schema of `prune` and computes the same; they differ in the backend:

- `fastvid::prune` uses the Triton backend for CUDA tensors, where it can run, and the eager backend otherwise,
- `fastvid::prune_eager` always uses the eager backend,
- `fastvid::prune_triton` always uses the Triton backend.

`fastvid::prune_backward`, `prune_backward_eager` and `prune_backward_triton` compute their gradients. They take the
gradient of the kept tokens, followed by the arguments of `prune`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastvid_kernels import eager
from fastvid_kernels.config import PruneConfig
from fastvid_kernels.kernels.limits import fits_kernels
from fastvid_kernels.validation import check_gradient, check_inputs, check_triton, read_cu_frames

_DEFAULTS = PruneConfig()
_ARGUMENTS = (
    "Tensor tokens, Tensor attn, Tensor? frame_features=None, Tensor? cu_frames=None, "
    f"float retention_ratio={_DEFAULTS.retention_ratio}, int min_segments={_DEFAULTS.min_segments}, "
    f"float tau={_DEFAULTS.tau}, float dtm_ratio={_DEFAULTS.dtm_ratio}, "
    f"int anchor_interval={_DEFAULTS.anchor_interval}, float beta={_DEFAULTS.beta}, "
    f"int num_neighbors={_DEFAULTS.num_neighbors}"
)
# Number of tensors among the arguments, which come first.
_TENSORS = 4


def backend_for(device: torch.device, frames: int, tokens_per_frame: int) -> str:
    """The backend that `torch.ops.fastvid.prune` uses, from the device and size of a call, never from its data."""
    if device.type == "cuda" and fits_kernels(frames, tokens_per_frame) and _has_triton():
        return "triton"
    return "eager"


@cache
def _has_triton() -> bool:
    # Finding the package is not enough: an installed Triton may still fail to import.
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


def _gradient_eager(
    grad: Tensor,
    tokens: Tensor,
    attn: Tensor,
    frame_features: Tensor | None,
    cu_frames: Tensor | None,
    config: PruneConfig,
) -> Tensor:
    return eager.prune_backward(grad, tokens, attn, frame_features, read_cu_frames(cu_frames, tokens.shape[0]), config)


def _gradient_triton(
    grad: Tensor,
    tokens: Tensor,
    attn: Tensor,
    frame_features: Tensor | None,
    cu_frames: Tensor | None,
    config: PruneConfig,
) -> Tensor:
    check_triton(tokens)
    if cu_frames is not None and cu_frames.device.type == "cpu":
        read_cu_frames(cu_frames, tokens.shape[0])
    from fastvid_kernels.kernels import pipeline

    return pipeline.prune_backward(grad, tokens, attn, frame_features, cu_frames, config)


_BACKENDS = {"eager": _prune_eager, "triton": _prune_triton}
_GRADIENTS = {"eager": _gradient_eager, "triton": _gradient_triton}


# Typed, since True == 1.0, but a bool is refused.
@lru_cache(maxsize=256, typed=True)
def _config(*hyperparameters: Any, **named: Any) -> PruneConfig:
    return PruneConfig(*hyperparameters, **named)


def _implementation(backend: str | None) -> Callable[..., tuple[Tensor, Tensor]]:
    """The operator on one backend, or for None on the backend that `backend_for` chooses."""

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


def _gradient_implementation(backend: str | None) -> Callable[..., Tensor]:
    """The gradient operator; `backend` as in `_implementation`."""

    def prune_backward(
        grad: Tensor,
        tokens: Tensor,
        attn: Tensor,
        frame_features: Tensor | None = None,
        cu_frames: Tensor | None = None,
        *hyperparameters: Any,
        **named: Any,
    ) -> Tensor:
        config = _config(*hyperparameters, **named)
        check_inputs(tokens, attn, frame_features, cu_frames, config)
        check_gradient(grad, tokens, config)
        chosen = backend or backend_for(tokens.device, *tokens.shape[:2])
        return _GRADIENTS[chosen](grad, tokens, attn, frame_features, cu_frames, config)

    return prune_backward


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


def _gradient_shape(
    grad: Tensor,
    tokens: Tensor,
    attn: Tensor,
    frame_features: Tensor | None = None,
    cu_frames: Tensor | None = None,
    *hyperparameters: Any,
    **named: Any,
) -> Tensor:
    config = PruneConfig(*hyperparameters, **named)
    check_inputs(tokens, attn, frame_features, cu_frames, config)
    check_gradient(grad, tokens, config)
    return tokens.new_empty(tokens.shape)


class _CheckingLibrary(torch.library.Library):
    """Checks for unsupported derivatives before each kernel that `torch.library.register_autograd` registers with it.

    Forward-mode AD treats a missing formula as a derivative of zero, so it must be refused. The kernel of the autograd
    key is the last that sees tangents (torch.func's too), and `register_autograd` has no hook for a check.
    """

    def impl(self, op_name: Any, fn: Any, dispatch_key: str = "", **options: Any) -> None:
        """As `Library.impl`, for an `fn` whose first argument is the dispatch keyset."""

        def checked(keyset: Any, *args: Any) -> Any:
            _check_derivatives(args)
            return fn(keyset, *args)

        super().impl(op_name, checked, dispatch_key, **options)  # type: ignore[no-untyped-call]


def _check_derivatives(args: tuple[Any, ...]) -> None:
    """Raise if a derivative is requested that is not implemented.

    Raises:
        NotImplementedError: an argument has a tangent, or would get a gradient from a transform of torch.func.
    """
    tensors = [one for one in args[:_TENSORS] if isinstance(one, Tensor)]
    # Tangents exist only inside a level of forward-mode AD.
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(one).tangent is not None for one in tensors):
        raise NotImplementedError(
            "fastvid::prune has no forward-mode derivative: use reverse mode, as loss.backward() does"
        )
    wants_gradient = torch.is_grad_enabled() and any(one.requires_grad for one in tensors)
    if wants_gradient and torch._C._are_functorch_transforms_active():
        raise NotImplementedError(
            "fastvid::prune has no gradient under vmap and torch.func's transforms: use loss.backward(), and put "
            "several videos into one call, as a ragged or dense batch"
        )


# It must stay alive: its registrations end with it.
_library = _CheckingLibrary("fastvid", "FRAGMENT")  # type: ignore[no-untyped-call]


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    # Only the inputs: the backward pass selects tokens again, since a training step is short of memory.
    ctx.save_for_backward(*inputs[:_TENSORS])
    ctx.hyperparameters = inputs[_TENSORS:]


def _backward_by(operator: str) -> Callable[..., tuple[Tensor | None, ...]]:
    """The backward formula of `fastvid::prune`: it calls another operator, so that a compiler sees its shapes alone."""

    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        others = [None] * (_TENSORS - 1 + len(ctx.hyperparameters))
        if not ctx.needs_input_grad[0]:
            return None, *others
        call = getattr(torch.ops.fastvid, operator)
        return call(grad, *ctx.saved_tensors, *ctx.hyperparameters), *others

    return backward


def _no_second_derivative(ctx: Any, grad: Tensor) -> NoReturn:
    raise NotImplementedError("fastvid::prune has no second derivative: its gradient cannot be differentiated again")


def _no_batched_gradient(info: Any, in_dims: Any, *args: Any) -> NoReturn:
    raise NotImplementedError(
        "fastvid::prune has no gradient under vmap: put the videos into one call, as a ragged or dense batch"
    )


for _name, _backend in {"": None, "_eager": "eager", "_triton": "triton"}.items():
    # The eager backend reads its data on the host, so a compiler must leave it out of CUDA graphs.
    _tags = [torch.Tag.pt2_compliant_tag, *([torch.Tag.cudagraph_unsafe] if _backend == "eager" else [])]
    _forward, _gradient = f"fastvid::prune{_name}", f"fastvid::prune_backward{_name}"
    torch.library.define(_forward, f"({_ARGUMENTS}) -> (Tensor, Tensor)", tags=_tags)
    torch.library.impl(_forward, "CompositeExplicitAutograd", _implementation(_backend))
    torch.library.register_fake(_forward, _output_shapes)
    _backward = _backward_by(f"prune_backward{_name}")
    torch.library.register_autograd(_forward, _backward, setup_context=_save_inputs, lib=_library)
    torch.library.define(_gradient, f"(Tensor grad, {_ARGUMENTS}) -> Tensor", tags=_tags)
    torch.library.impl(_gradient, "CompositeExplicitAutograd", _gradient_implementation(_backend))
    torch.library.register_fake(_gradient, _gradient_shape)
    torch.library.register_autograd(_gradient, _no_second_derivative)
    torch.library.register_vmap(_gradient, _no_batched_gradient)
