"""The launches of the Triton backend, in order.

What depends on shapes and settings alone (sizes, the layout of the scratch, every argument of every launch) is a
`Recipe`, made once and cached. A call only allocates memory and fills in addresses.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from fastvid_kernels.config import PruneConfig
from fastvid_kernels.kernels.assign import assign_step
from fastvid_kernels.kernels.delta import delta_step
from fastvid_kernels.kernels.density import density_step
from fastvid_kernels.kernels.emit import emit_step
from fastvid_kernels.kernels.frame import frame_step
from fastvid_kernels.kernels.gradient import gradient_step
from fastvid_kernels.kernels.gram import gram_step
from fastvid_kernels.kernels.launch import (
    Array,
    Pointer,
    Request,
    Shapes,
    Step,
    Workspace,
    lay_out,
    lies_in_output,
    plan_shapes,
)
from fastvid_kernels.kernels.limits import (
    AMD_THREADS_PER_WARP,
    LEAST_SHARED_BYTES,
    MAX_FRAMES,
    MAX_TOKENS_PER_FRAME,
    fits_kernels,
)
from fastvid_kernels.kernels.plan import plan_step
from fastvid_kernels.kernels.select import select_step

# A recipe is about 20 KB of numbers and names, without device memory.
_KEPT_RECIPES = 256


@dataclass(frozen=True)
class Recipe:
    """All that calls of one kind share.

    Attributes:
        request: what the launches depend on.
        shapes: sizes.
        scratch: the layout of the scratch.
        scratch_bytes: its size.
        in_output: dtypes, by name, of the scratch arrays that are kept in the output until it is written.
        steps: the launches in order.
        compiled: the kernels that Triton compiled for the steps, by `Call.kind`.
    """

    request: Request
    shapes: Shapes
    scratch: dict[str, Array]
    scratch_bytes: int
    in_output: dict[str, torch.dtype]
    steps: tuple[Step, ...]
    compiled: dict[Hashable, tuple[Any, ...]] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Call:
    """The arguments of a call, its recipe, scratch and outputs; checked, and all on one device.

    In a backward pass `output` is the gradient of the tokens, and `indices` are scratch.
    """

    tokens: Tensor
    attn: Tensor
    frame_features: Tensor | None
    cu_frames: Tensor | None
    recipe: Recipe
    workspace: Workspace
    output: Tensor
    indices: Tensor
    grad: Tensor | None = None

    @property
    def shapes(self) -> Shapes:
        """Its sizes."""
        return self.recipe.shapes

    @property
    def config(self) -> PruneConfig:
        """Its hyperparameters."""
        return self.recipe.request.config

    def kind(self) -> Hashable:
        """What Triton specialises on besides sizes: the device, dtypes, and which addresses are multiples of 16."""
        tensors = (self.tokens, self.attn, self.frame_features, self.cu_frames, self.output, self.indices, self.grad)
        types = [(one.dtype, one.data_ptr() % 16 == 0) for one in tensors if one is not None]
        return self.tokens.device, self.workspace.is_aligned, *types

    def arrays(self) -> dict[str, Any]:
        """What its launches read and write, by name."""
        interpreted = self.recipe.request.interpreted
        arrays: dict[str, Any] = {**(self.workspace.tensors() if interpreted else self.workspace.pointers())}
        for name, dtype in self.recipe.in_output.items():
            if interpreted:
                whole = self.output.nbytes // dtype.itemsize * dtype.itemsize
                arrays[name] = self.output.view(-1).view(torch.uint8)[:whole].view(dtype)
            else:
                arrays[name] = Pointer(self.output.data_ptr(), dtype)
        return arrays | self._tensors()

    def addresses(self) -> dict[str, int | None]:
        """The addresses of `arrays`; None for a tensor that is not given."""
        output = self.output.data_ptr()
        return {
            **self.workspace.addresses(),
            **dict.fromkeys(self.recipe.in_output, output),
            **{name: None if one is None else one.data_ptr() for name, one in self._tensors().items()},
        }

    def _tensors(self) -> dict[str, Tensor | None]:
        names = ("tokens", "attn", "frame_features", "cu_frames", "output", "indices", "grad")
        return {name: getattr(self, name) for name in names}


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
        ValueError: a frame has more tokens, or the batch more frames, than the kernels or the GPU hold.
    """
    call = prepare(tokens, attn, frame_features, cu_frames, config)
    with torch.cuda.device(tokens.device) if tokens.is_cuda else nullcontext():
        launch(call)
    return call.output, call.indices


def prune_backward(
    grad: Tensor,
    tokens: Tensor,
    attn: Tensor,
    frame_features: Tensor | None,
    cu_frames: Tensor | None,
    config: PruneConfig,
) -> Tensor:
    """Gradient of the tokens, from checked arguments, without reading any of them on the host.

    Besides the gradient, it allocates scratch of an eighth of the tokens' bytes (at least 64 MiB) and a few bytes per
    token. In half precision, the bound for the anchors that tokens join is 1.125 times the tokens' bytes instead. They
    take about F / (anchor_interval * D) of the tokens' bytes: 7 % for 1,000 frames of 3,584 channels. The matrix of
    distances is scratch as well where it takes more bytes than the tokens of a frame.

    Args:
        grad: `[F * K, D]`, gradient of the kept tokens, in the dtype of the tokens.
        tokens, attn, frame_features, cu_frames, config: as `prune` takes them.

    Returns:
        `[F, N, D]`, in the dtype of the tokens.

    Raises:
        ValueError: a frame has more tokens, or the batch more frames, than the kernels or the GPU hold.
    """
    # The gradient of a plain sum is one expanded number; gradients from a model's layers are contiguous already.
    call = prepare(tokens, attn, frame_features, cu_frames, config, grad=grad.contiguous())
    with torch.cuda.device(tokens.device) if tokens.is_cuda else nullcontext():
        launch(call)
    return call.output


def prepare(
    tokens: Tensor,
    attn: Tensor,
    frame_features: Tensor | None,
    cu_frames: Tensor | None,
    config: PruneConfig,
    *,
    grad: Tensor | None = None,
    frames_per_chunk: int | None = None,
    ordinals_per_chunk: int | None = None,
) -> Call:
    """Find the recipe, and allocate outputs and scratch. Sizes of chunks override those of the recipe if given.

    If `grad` is given (the contiguous gradient of the kept tokens), the call is a backward pass.
    """
    frames, tokens_per_frame, channels = tokens.shape
    if not fits_kernels(frames, tokens_per_frame):
        raise ValueError(
            f"tokens must have at most {MAX_FRAMES} frames of {MAX_TOKENS_PER_FRAME} tokens for the Triton backend, "
            f"got {list(tokens.shape)}: use backend='eager'"
        )
    recipe = recipe_for(
        Request(
            frames=frames,
            tokens_per_frame=tokens_per_frame,
            channels=channels,
            dtype=tokens.dtype,
            token_strides=tokens.stride(),
            attn_strides=attn.stride(),
            feature_channels=None if frame_features is None else frame_features.shape[1],
            feature_strides=(0, 0) if frame_features is None else frame_features.stride(),
            videos=None if cu_frames is None else cu_frames.shape[0] - 1,
            config=config,
            on_amd=torch.version.hip is not None,
            interpreted=triton.knobs.runtime.interpret,
            shared_bytes=shared_bytes_of(tokens.device),
            frames_per_chunk=frames_per_chunk,
            ordinals_per_chunk=ordinals_per_chunk,
            is_backward=grad is not None,
        )
    )
    rows = frames * recipe.shapes.kept_per_frame
    return Call(
        tokens=tokens,
        attn=attn,
        frame_features=frame_features,
        cu_frames=cu_frames,
        recipe=recipe,
        workspace=Workspace(recipe.scratch, recipe.scratch_bytes, tokens.device),
        output=tokens.new_empty(rows, channels) if grad is None else tokens.new_empty(tokens.shape),
        indices=torch.empty(rows, dtype=torch.int64, device=tokens.device),
        grad=grad,
    )


def launch(call: Call) -> None:
    """All stages: eight launches, four more for each further chunk of frames, and two for each of anchor frames.

    To find a compiled kernel, Triton looks at every argument of every launch, which costs the host more than all else.
    Calls with the same recipe differ in addresses alone, so later calls launch what the first one compiled.
    """
    recipe, kind = call.recipe, call.kind()
    compiled = recipe.compiled.get(kind)
    if compiled is not None:
        addresses, driver = call.addresses(), triton.runtime.driver.active
        stream = driver.get_current_stream(driver.get_current_device())
        for step, kernel in zip(recipe.steps, compiled, strict=True):
            step.relaunch(kernel, stream, addresses)
        return
    arrays = call.arrays()
    kernels = tuple([step.run(arrays) for step in recipe.steps])
    # On AMD, Triton also looks at the sizes of tensors. Where kernels are interpreted, nothing is compiled.
    if not recipe.request.on_amd and None not in kernels:
        recipe.compiled[kind] = kernels


@lru_cache
def shared_bytes_of(device: torch.device) -> int:
    """Shared memory of a multiprocessor; the least of any if it is no GPU, or AMD's, where it decides nothing."""
    if device.type != "cuda" or torch.version.hip is not None:
        return LEAST_SHARED_BYTES
    return int(torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor)


@lru_cache(maxsize=_KEPT_RECIPES)
def recipe_for(request: Request) -> Recipe:
    """The recipe of a request; the latest ones are cached, for all threads.

    Raises:
        ValueError: a launch has more threads than AMD's runtime takes.
    """
    shapes = plan_shapes(request)
    scratch, scratch_bytes = lay_out(request, shapes)
    steps = tuple(_steps(request, shapes))
    if request.on_amd:
        _check_threads(request, steps)
    return Recipe(request, shapes, scratch, scratch_bytes, lies_in_output(request, shapes), steps)


def _check_threads(request: Request, steps: tuple[Step, ...]) -> None:
    """Raise if a launch has more threads than HIP takes: fewer than 2**32 along the first axis of a grid."""
    most = max(step.grid[0] * step.constants["num_warps"] * AMD_THREADS_PER_WARP for step in steps)
    if most >= 1 << 32:
        raise ValueError(
            f"tokens must have fewer frames, or fewer channels, for the Triton backend on AMD, got {request.frames} "
            f"frames of {request.channels} channels, whose launch would have {most} threads, of at most "
            f"{(1 << 32) - 1}: use backend='eager'"
        )


def _steps(request: Request, shapes: Shapes) -> Iterator[Step]:
    yield frame_step(request, shapes)
    yield plan_step(request, shapes)
    for first_frame in range(0, shapes.frames, shapes.frames_per_chunk):
        frames = min(shapes.frames_per_chunk, shapes.frames - first_frame)
        if shapes.has_anchors:
            yield gram_step(request, shapes, first_frame, frames)
            yield density_step(request, shapes, first_frame, frames)
            yield delta_step(request, shapes, first_frame, frames)
        yield select_step(request, shapes, first_frame, frames)
    chunks = range(0, shapes.ordinals, shapes.ordinals_per_chunk)
    # A gradient adds the terms of earlier anchor frames first, and these have higher ordinals.
    for first_ordinal in reversed(chunks) if request.is_backward else chunks:
        if shapes.has_anchors:
            yield assign_step(request, shapes, first_ordinal)
        last_step = gradient_step if request.is_backward else emit_step
        yield last_step(request, shapes, first_ordinal)
