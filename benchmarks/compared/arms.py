"""What is compared, each as a function of a call's inputs and hyperparameters."""

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

# Times the tokens of a frame, still far below the spacing, in any dtype, of attention that competes for a place.
_TIE_BREAK = 1e-14


def kernels(case: Case) -> Arm:
    """The Triton backend, launched from Python."""
    return lambda inputs: tuple(fastvid_kernels.prune(*inputs, config=case.config, backend="triton"))


def eager(case: Case) -> Arm:
    """The PyTorch backend."""
    return lambda inputs: tuple(fastvid_kernels.prune(*inputs, config=case.config, backend="eager"))


def matrix_products(case: Case) -> Arm:
    """The eager backend's matrix products and nothing else: what no implementation with the same products undercuts.

    The first run on some inputs is a whole one and notes the sizes; it gives the result. Operands are noise.
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
    """The PyTorch backend's function under `torch.compile`; its products go through oneDNN, which is left as it is."""
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
    """Replays a CUDA graph of some calls, one after the other; returns what the last of them returned."""
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
    """The published LLaVA-Video form; videos of a batch one after the other, as it must."""
    return lambda inputs: _one_by_one(inputs, lambda video: llava_video_form(*video, **vars(case.config)))


def published_onevision(case: Case) -> Arm:
    """The published LLaVA-OneVision form; videos of a batch one after the other, as it must."""
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


def reference(case: Case, inputs: Inputs) -> Pruned:
    """What an arm's result is held against, on the CPU.

    The published LLaVA-Video form in float32, its noise set to zero, written independently of our backends; where that
    is too slow, the eager backend in float32, which is held against the former and the oracle at other sizes.
    """
    tokens, attn, features, cu_frames = inputs
    if case.is_long:
        return eager(case)(Inputs(tokens.float(), attn, features, cu_frames))
    exact = Inputs(tokens.float(), *without_accidents(attn, features), cu_frames)
    return _one_by_one(exact, lambda video: llava_video_form(*video, noise=0, **vars(case.config)))


def without_accidents(attn: Tensor, frame_features: Tensor) -> tuple[Tensor, Tensor]:
    """Attention `[F, N]` and features `[F, G]` from which two accidents of rounding are taken, as SPEC does.

    Features go in as float64, which decides among near-equal cuts (section 1), and equal attention is told apart by an
    index term far below its resolution (section 3).
    """
    return attn.double() - _TIE_BREAK * torch.arange(attn.shape[1]), frame_features.double()
