"""The implementations that benchmarks compare, each as a function of a call's inputs and hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar
from unittest import mock

import torch
from torch import Tensor

import fastvid_kernels
import fastvid_kernels.eager
from benchmarks.compared.published import llava_video_form, onevision_form
from benchmarks.inputs.cases import Case, Inputs
from fastvid_kernels.eager import merge, products

Pruned = tuple[Tensor, Tensor]
Arm = Callable[[Inputs], Pruned]
Result = TypeVar("Result")

KERNELS = "Triton, eager launch"
GRAPH = "Triton, graph replay"
EAGER = "eager backend"
PRODUCTS = "its matrix products alone"
COMPILED = "eager backend, torch.compile"
LLAVA_VIDEO_FORM = "published, LLaVA-Video form"
ONEVISION_FORM = "published, OneVision form"

# Even times the tokens of a frame, this is far below the difference, in any dtype, of attention values that compete.
_TIE_BREAK = 1e-14


def kernels(case: Case) -> Arm:
    """The Triton backend, launched from Python."""
    return lambda inputs: tuple(fastvid_kernels.prune(*inputs, config=case.config, backend="triton"))


def eager(case: Case) -> Arm:
    """The PyTorch backend."""
    return lambda inputs: tuple(fastvid_kernels.prune(*inputs, config=case.config, backend="eager"))


def matrix_products(case: Case) -> Arm:
    """The eager backend's matrix products alone: a lower bound for any implementation with the same products.

    The first run on given inputs is a whole prune, which gives the result and the sizes of the products. Later runs
    multiply noise of these sizes.
    """
    noted: dict[int, tuple[list[tuple[Tensor, Tensor]], Pruned]] = {}
    noise: dict[tuple[torch.Size, torch.dtype], Tensor] = {}
    real = products.inner_products

    def operand(like: Tensor) -> Tensor:
        key = (like.shape, like.dtype)
        if key not in noise:
            noise[key] = torch.randn(like.shape, dtype=like.dtype)
        return noise[key]

    def run(inputs: Inputs) -> Pruned:
        key = inputs.tokens.data_ptr()
        if key not in noted:
            pairs: list[tuple[Tensor, Tensor]] = []

            def note(x: Tensor, y: Tensor) -> Tensor:
                pairs.append((operand(x), operand(y)))
                return real(x, y)

            with mock.patch.object(products, "inner_products", note), mock.patch.object(merge, "inner_products", note):
                noted[key] = pairs, eager(case)(inputs)
        pairs, result = noted[key]
        for x, y in pairs:
            real(x, y)
        return result

    return run


def compiled(case: Case) -> Arm:
    """The PyTorch backend's function under `torch.compile`, except its products, which go through oneDNN uncompiled."""
    uncompiled = torch.compiler.disable(products.inner_products)
    starts = [number * case.frames for number in range(case.videos + 1)]
    function = torch.compile(fastvid_kernels.eager.prune)

    def run(inputs: Inputs) -> Pruned:
        with (
            mock.patch.object(products, "inner_products", uncompiled),
            mock.patch.object(merge, "inner_products", uncompiled),
        ):
            return function(*inputs[:3], starts, case.config)

    return run


def captured(runs: Sequence[Callable[[], Result]]) -> Callable[[], Result]:
    """A function that replays a CUDA graph of the calls, one after the other, and returns the last one's result."""
    for run in runs:
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runs:
            result = run()

    def replay() -> Result:
        graph.replay()
        return result

    return replay


def published_llava_video(case: Case) -> Arm:
    """The published LLaVA-Video form, which can only take the videos of a batch one after the other."""
    return lambda inputs: _one_by_one(inputs, lambda video: llava_video_form(*video, **vars(case.config)))


def published_onevision(case: Case) -> Arm:
    """The published LLaVA-OneVision form, which can only take the videos of a batch one after the other."""
    return lambda inputs: _one_by_one(inputs, lambda video: onevision_form(*video, **vars(case.config)))


def _one_by_one(inputs: Inputs, prune: Callable[[tuple[Tensor, Tensor, Tensor]], Pruned]) -> Pruned:
    if inputs.cu_frames is None:
        return prune(inputs[:3])
    videos = len(inputs.cu_frames) - 1
    frames, tokens_per_frame = inputs.tokens.shape[:2]
    parts = [prune(one) for one in zip(*(part.chunk(videos) for part in inputs[:3]), strict=True)]
    offset = frames // videos * tokens_per_frame
    indices = [indices + number * offset for number, (_, indices) in enumerate(parts)]
    return torch.cat([tokens for tokens, _ in parts]), torch.cat(indices)


def reference(case: Case, inputs: Inputs, device: torch.device) -> Pruned:
    """The result, on the CPU, that those of the arms are compared with.

    It is that of the published LLaVA-Video form in float32, without its noise, which was written independently of our
    backends. Where that is too slow, it is that of the eager backend in float32 on `device`, which is compared with the
    published form and the oracle at other sizes.
    """
    tokens, attn, features, cu_frames = inputs
    if case.is_long:
        output, indices = eager(case)(Inputs(tokens.float(), attn, features, cu_frames).to(device))
        return output.cpu(), indices.cpu()
    exact = Inputs(tokens.float(), *without_accidents(attn, features), cu_frames)
    return _one_by_one(exact, lambda video: llava_video_form(*video, noise=0, **vars(case.config)))


def without_accidents(attn: Tensor, frame_features: Tensor) -> tuple[Tensor, Tensor]:
    """Attention `[F, N]` and features `[F, G]` for which rounding and order of sorting decide nothing, as in SPEC.

    Features become float64, which decides between nearly equal cuts (section 1). An index term far below its resolution
    is subtracted from attention, so that ties go to the lower index (section 3).
    """
    return attn.double() - _TIE_BREAK * torch.arange(attn.shape[1]), frame_features.double()
