"""The Triton backend's gradient, compiled and emulated, against autograd through a float64 merge."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastvid_kernels import PruneConfig, explain, ops
from fastvid_kernels.kernels import pipeline
from fastvid_kernels.kernels.pipeline import Call
from tests.eager.test_gradient import backward_of, check_gradient, random_grad, three_terms
from tests.eager.test_parity import RAGGED, SHAPES, ragged_batch, video
from tests.kernels.explained import POISON, explanation_of, run_kernels
from tests.kernels.test_parity import LARGER_SHAPES
from tests.stages import assert_same_bits
from tests.test_validation import HOSTILE_CU_FRAMES

pytestmark = pytest.mark.runs_kernels

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ONE_SEGMENT = {"min_segments": 1, "tau": -1.5}


def run_backward(
    grad: Tensor,
    tokens: Tensor,
    attn: Tensor,
    frame_features: Tensor | None = None,
    cu_frames: Tensor | None = None,
    *,
    poison: int = POISON,
    frames_per_chunk: int | None = None,
    ordinals_per_chunk: int | None = None,
    **hyperparameters: Any,
) -> Call:
    """Run a backward pass, its scratch and gradient filled with `poison` first."""
    call = pipeline.prepare(
        tokens,
        attn,
        frame_features,
        cu_frames,
        PruneConfig(**hyperparameters),
        grad=grad,
        frames_per_chunk=frames_per_chunk,
        ordinals_per_chunk=ordinals_per_chunk,
    )
    for memory in (call.workspace._bytes, call.output, call.indices):
        memory.view(-1).view(torch.uint8).fill_(poison)
    pipeline.launch(call)
    return call


def check_backward(*arguments: Tensor | None, **hyperparameters: Any) -> Call:
    """Check a backward pass against a float64 merge of what the forward pass of the same kernels chose."""
    tokens = arguments[0]
    assert tokens is not None
    forward = run_kernels(*arguments, **hyperparameters)  # type: ignore[arg-type]
    grad = random_grad(tokens, len(forward.indices))
    call = run_backward(grad, *arguments, **hyperparameters)  # type: ignore[arg-type]
    assert torch.equal(call.indices, forward.indices)
    beta = hyperparameters.get("beta", 0.6)
    check_gradient(call.output, tokens, explanation_of(forward), beta, grad)
    return call


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_that_of_an_independent_merge(name: str, dtype: torch.dtype) -> None:
    frames, n, dim, hyperparameters = SHAPES[name]
    check_backward(*video(frames, n, dim, dtype, seed=len(name)), **hyperparameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [name for name in LARGER_SHAPES if name != "four blocks of anchors"])
def test_it_is_that_of_an_independent_merge_in_several_tiles(name: str, dtype: torch.dtype) -> None:
    frames, n, dim, hyperparameters = LARGER_SHAPES[name]
    check_backward(*video(frames, n, dim, dtype, seed=len(name)), frames_per_chunk=frames, **hyperparameters)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("frames_per_chunk", [None, 2])
def test_distances_lie_in_the_memory_of_a_gradient_until_it_is_written(
    frames_per_chunk: int | None, dtype: torch.dtype
) -> None:
    """The gradient has an odd number of elements here, and chunks of frames use its memory in turn."""
    inputs = video(5, 21, 97, dtype, seed=19)
    call = check_backward(*inputs, retention_ratio=0.3, frames_per_chunk=frames_per_chunk)
    assert set(call.recipe.in_output) == {"gram"}
    assert "gram" not in call.recipe.scratch


def test_distances_of_few_channels_are_scratch() -> None:
    call = check_backward(*video(5, 20, 6, torch.bfloat16, seed=19), retention_ratio=0.3)
    assert call.recipe.in_output == {}
    assert call.recipe.scratch["gram"].size > call.output.nbytes


def test_a_ragged_batch_and_mean_features() -> None:
    check_backward(*ragged_batch(torch.float32), **RAGGED)
    check_backward(*video(7, 20, 16, torch.bfloat16, seed=2)[:2], retention_ratio=0.3)


def test_terms_are_added_in_ascending_order_of_anchor_frames() -> None:
    arguments, hyperparameters, grad, free, expected = three_terms()
    for chunk in (1, 2, None):
        call = run_backward(grad, *arguments, ordinals_per_chunk=chunk, **hyperparameters)
        assert (call.output.flatten(0, 1)[free] == expected).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_backends_agree_to_the_bit_where_they_choose_alike(dtype: torch.dtype) -> None:
    arguments = video(12, 20, 16, dtype, seed=3)
    hyperparameters = {"retention_ratio": 0.3, "anchor_interval": 2, **ONE_SEGMENT}
    grad = random_grad(arguments[0], 72)
    chosen = (explanation_of(run_kernels(*arguments, **hyperparameters)), explain(*arguments, **hyperparameters))
    ours, theirs = ([record.joined_anchor.tolist() for record in one.anchor_frames] for one in chosen)
    assert ours == theirs
    gradient = run_backward(grad, *arguments, **hyperparameters).output
    assert_same_bits(gradient, backward_of(arguments[0], grad, *arguments[1:], **hyperparameters))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("frames_per_chunk", [1, 4])
@pytest.mark.parametrize("ordinals_per_chunk", [1, 2])
def test_chunks_change_nothing(frames_per_chunk: int, ordinals_per_chunk: int, dtype: torch.dtype) -> None:
    """Between launches the output holds the sums; in half precision their upper 16 bits, and scratch the lower 16."""
    tokens, attn, features = video(7, 20, 24, dtype, seed=18)
    features[:2], features[2:] = 1, -1
    hyperparameters = {"retention_ratio": 0.3, "anchor_interval": 2, "min_segments": 2, "tau": -1.5}
    whole = check_backward(tokens, attn, features, **hyperparameters)
    chunks = {"frames_per_chunk": frames_per_chunk, "ordinals_per_chunk": ordinals_per_chunk}
    chunked = run_backward(whole.grad, tokens, attn, features, **chunks, **hyperparameters)  # type: ignore[arg-type]
    assert_same_bits(chunked.output, whole.output)


@pytest.mark.parametrize("poison", [0x00, 0x7F])
def test_repeats_give_the_same_bits_whatever_memory_held(poison: int) -> None:
    arguments = video(9, 21, 16, torch.bfloat16, seed=17)
    for hyperparameters in ({}, {"dtm_ratio": 0.0}, {"dtm_ratio": 1.0, "beta": 1.0}):
        grad = random_grad(arguments[0], 54)
        first = run_backward(grad, *arguments, retention_ratio=0.3, **hyperparameters)
        again = run_backward(grad, *arguments, retention_ratio=0.3, poison=poison, **hyperparameters)
        assert_same_bits(again.output, first.output)


@pytest.mark.parametrize("beta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_with_the_rows_it_reaches(value: float, beta: float) -> None:
    arguments = video(8, 20, 6, torch.float32, seed=9)
    why = explanation_of(run_kernels(*arguments, retention_ratio=0.3, beta=beta))
    record = next(record for record in why.anchor_frames if len(record.joined))
    anchor = int(record.joined_anchor[0])
    grad = random_grad(arguments[0], len(why.indices))
    grad[why.indices == anchor] = value
    gradient = run_backward(grad, *arguments, retention_ratio=0.3, beta=beta).output.flatten(0, 1)
    reached = {anchor, *(record.joined[record.joined_anchor == anchor].tolist() if beta < 1 else [])}
    assert set((~gradient.isfinite()).any(1).nonzero().flatten().tolist()) == reached


@pytest.mark.parametrize("starts", [starts for starts, _ in HOSTILE_CU_FRAMES], ids=str)
def test_hostile_cu_frames_stay_within_memory(starts: list[int]) -> None:
    """The emulator reports any access outside of the tensors; on a GPU nothing checks these entries."""
    tokens, attn, features = video(12, 12, 6, torch.float32, seed=4)
    cu_frames = torch.tensor(starts, dtype=torch.int32)
    forward = run_kernels(tokens, attn, features, cu_frames, retention_ratio=0.3)
    grad = random_grad(tokens, len(forward.indices))
    gradient = run_backward(grad, tokens, attn, features, cu_frames, retention_ratio=0.3).output
    check_gradient(gradient, tokens, explanation_of(forward), 0.6, grad)


def test_tokens_that_are_anything_leave_the_gradient_finite() -> None:
    tokens, attn, features = video(6, 20, 6, torch.float32, seed=10)
    tokens[2:5, ::3] = float("nan")
    tokens[1, ::4] = float("inf")
    attn[3] = float("nan")
    forward = run_kernels(tokens, attn, features, retention_ratio=0.3)
    grad = random_grad(tokens, len(forward.indices))
    gradient = run_backward(grad, tokens, attn, features, retention_ratio=0.3).output
    check_gradient(gradient, torch.zeros_like(tokens), explanation_of(forward), 0.6, grad)


def test_a_backward_pass_through_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an incoming gradient that is one expanded number, as `sum` gives it."""
    monkeypatch.setattr(ops, "check_triton", lambda tokens: None)  # it refuses CPU tensors
    tokens, attn, features = video(8, 20, 20, torch.float32, seed=11)
    leaf = tokens.clone().requires_grad_()
    torch.ops.fastvid.prune_triton(leaf, attn, features, retention_ratio=0.3)[0].sum().backward()
    expected = run_backward(torch.ones(48, 20), tokens, attn, features, retention_ratio=0.3).output
    assert leaf.grad is not None
    assert_same_bits(leaf.grad, expected)
