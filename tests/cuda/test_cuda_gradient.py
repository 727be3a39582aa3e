"""The gradient kernel on a GPU: the parity checks of the emulated lane, and what only a device can show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from fastvid_kernels.kernels.pipeline import Call
from tests.cuda.on_device import (
    DEVICE,
    DTYPES,
    FILM_FRAMES,
    REPEATS,
    STAGES,
    device_work,
    film,
    no_synchronisation,
    on_host,
)
from tests.eager.test_gradient import check_gradient, random_grad, three_terms
from tests.eager.test_parity import RAGGED, SHAPES, ragged_batch, video
from tests.kernels.explained import explanation_of, run_kernels
from tests.kernels.test_gradient import run_backward
from tests.kernels.test_parity import LARGER_SHAPES
from tests.stages import assert_same_bits
from tests.test_validation import HOSTILE_CU_FRAMES

pytestmark = pytest.mark.cuda
device_only = pytest.mark.device_only

KEPT = 19
"""Kept tokens of a film's frame, on average."""


def on_device(*inputs: Tensor | None) -> list[Tensor | None]:
    return [None if one is None else one.to(DEVICE) for one in inputs]


def backward_on_device(grad: Tensor, *inputs: Tensor | None, **options: Any) -> Tensor:
    """The gradient, copied to the host."""
    gradient: Tensor = run_backward(grad.to(DEVICE), *on_device(*inputs), **options).output.cpu()  # type: ignore[arg-type]
    return gradient


def check_on_device(*inputs: Tensor | None, **options: Any) -> tuple[Call, Tensor]:
    """Check a gradient on the device against a float64 merge of what the kernels chose; returns call and gradient."""
    call = on_host(run_kernels(*on_device(*inputs), **options))  # type: ignore[arg-type]
    grad = random_grad(call.tokens, len(call.indices))
    gradient = backward_on_device(grad, *inputs, **options)
    check_gradient(gradient, call.tokens, explanation_of(call), call.config.beta, grad)
    return call, gradient


def film_grad(dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """An incoming gradient for the kept tokens of a film, on the device."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(FILM_FRAMES * KEPT, 3584, generator=generator).to(DEVICE, dtype)


def gradient_of(grad: Tensor, tokens: Tensor, *others: Tensor | None) -> Tensor:
    """The gradient of the tokens by autograd."""
    leaf = tokens.detach().requires_grad_()
    kept, _ = torch.ops.fastvid.prune(leaf, *others)
    return torch.autograd.grad(kept, leaf, grad)[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_it_is_that_of_an_independent_merge(name: str, dtype: torch.dtype) -> None:
    frames, n, dim, hyperparameters = SHAPES[name]
    check_on_device(*video(frames, n, dim, dtype, seed=len(name)), **hyperparameters)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LARGER_SHAPES)
def test_it_is_that_of_an_independent_merge_in_several_tiles(name: str, dtype: torch.dtype) -> None:
    frames, n, dim, hyperparameters = LARGER_SHAPES[name]
    check_on_device(*video(frames, n, dim, dtype, seed=len(name)), frames_per_chunk=frames, **hyperparameters)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("preset", ["many cuts", "one static shot"])
def test_of_a_film_it_is_that_of_an_independent_merge(preset: str, dtype: torch.dtype) -> None:
    check_on_device(*film(0, preset, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_ragged_batch(dtype: torch.dtype) -> None:
    check_on_device(*ragged_batch(dtype), **RAGGED)


@pytest.mark.parametrize("starts", [starts for starts, _ in HOSTILE_CU_FRAMES], ids=str)
def test_hostile_cu_frames_are_clamped(starts: list[int]) -> None:
    inputs = video(12, 12, 6, torch.float32, seed=4)
    check_on_device(*inputs, torch.tensor(starts, dtype=torch.int32), retention_ratio=0.3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chunks_change_nothing(dtype: torch.dtype) -> None:
    inputs = video(9, 300, 64, dtype, seed=5)
    hyperparameters = {"retention_ratio": 0.2, "min_segments": 1, "tau": -1.5, "anchor_interval": 2}
    call, whole = check_on_device(*inputs, **hyperparameters)
    grad = random_grad(call.tokens, len(call.indices))
    chunks = {"frames_per_chunk": 2, "ordinals_per_chunk": 1}
    assert_same_bits(backward_on_device(grad, *inputs, **chunks, **hyperparameters), whole)


@pytest.mark.parametrize("ordinals_per_chunk", [1, 2, None])
def test_terms_are_added_in_ascending_order_of_anchor_frames(ordinals_per_chunk: int | None) -> None:
    inputs, hyperparameters, grad, free, expected = three_terms()
    gradient = backward_on_device(grad, *inputs, ordinals_per_chunk=ordinals_per_chunk, **hyperparameters)
    assert (gradient.flatten(0, 1)[free] == expected).all()


def test_the_operator_takes_the_kernels() -> None:
    grad, inputs = film_grad(), film(1)
    assert_same_bits(gradient_of(grad, *inputs), torch.ops.fastvid.prune_backward_triton(grad, *inputs))


def test_repeats_give_the_same_bits() -> None:
    grad, inputs = film_grad(), film(2, "one static shot")
    first = gradient_of(grad, *inputs)
    for _ in range(REPEATS):
        assert_same_bits(gradient_of(grad, *inputs), first)


def test_a_video_alone_or_in_company_gives_the_same_bits() -> None:
    videos, grad = [film(seed) for seed in (3, 4)], film_grad()
    cu_frames = torch.arange(3, dtype=torch.int32, device=DEVICE) * FILM_FRAMES
    together = gradient_of(grad.repeat(2, 1), *(torch.cat(parts) for parts in zip(*videos, strict=True)), cu_frames)
    for number, one in enumerate(videos):
        assert_same_bits(together[number * FILM_FRAMES : (number + 1) * FILM_FRAMES], gradient_of(grad, *one))


def test_a_compiled_training_step_gives_the_same_bits() -> None:
    def kept(x: Tensor, *others: Tensor) -> Tensor:
        return torch.ops.fastvid.prune(x * 2, *others)[0] * 0.5

    tokens, *others = film(7)
    gradients = []
    for step in (kept, torch.compile(kept, fullgraph=True)):
        leaf = tokens.detach().requires_grad_()
        gradients.append(torch.autograd.grad(step(leaf, *others), leaf, film_grad())[0])
    assert_same_bits(*gradients)


@device_only
@pytest.mark.parametrize("ragged", [True, False], ids=["ragged", "one video"])
def test_the_host_never_waits(ragged: bool) -> None:
    cu_frames = torch.tensor([0, 8, 32], dtype=torch.int32, device=DEVICE) if ragged else None
    grad, inputs = film_grad(), film(3)
    expected = gradient_of(grad, *inputs, cu_frames)
    with no_synchronisation():
        gradient = gradient_of(grad, *inputs, cu_frames)
    assert_same_bits(gradient, expected)


@device_only
def test_it_is_eight_kernels_on_the_device(tmp_path: Path) -> None:
    grad, inputs = film_grad(), film(4)
    torch.ops.fastvid.prune_backward(grad, *inputs)
    # A process's first profile may miss the first kernels.
    seen = [device_work(lambda: inputs[0].clone(), tmp_path / "clone.json") for _ in range(2)]
    if not any(seen):
        pytest.skip("the profiler sees nothing on this machine")
    found = device_work(lambda: torch.ops.fastvid.prune_backward(grad, *inputs), tmp_path / "call.json")
    assert sorted(found) == sorted(f"{stage}_kernel" for stage in (*STAGES[:-1], "gradient"))


@device_only
def test_beside_the_gradient_it_takes_less_than_a_quarter_of_the_tokens() -> None:
    grad, inputs = film_grad(), film(5)
    torch.ops.fastvid.prune_backward(grad, *inputs)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    gradient = torch.ops.fastvid.prune_backward(grad, *inputs)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    assert gradient.nbytes < peak < gradient.nbytes + inputs[0].nbytes / 4


@device_only
def test_a_graph_of_a_training_step_replays_on_new_inputs() -> None:
    grad = film_grad()
    films = [film(seed, preset) for seed, preset in enumerate(["many cuts", "few cuts", "one static shot"])]
    expected = [gradient_of(grad, *one) for one in films]
    held = [one.clone() for one in films[0]]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = gradient_of(grad, *held)
    for chosen in (1, 2, 0):
        for buffer, value in zip(held, films[chosen], strict=True):
            buffer.copy_(value)
        replayed.view(torch.uint8).fill_(0xFF)
        graph.replay()
        assert_same_bits(replayed, expected[chosen])
