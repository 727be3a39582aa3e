"""The eager gradient against autograd through a float64 merge that is written here from the equations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastvid_kernels import Explanation, explain, prune
from fastvid_kernels.eager import merge
from tests.eager.test_parity import DTYPES, RAGGED, SHAPES, ragged_batch, video
from tests.stages import assert_same_bits

ONE_SEGMENT = {"min_segments": 1, "tau": -1.5}
# Relative error of one term: of a float32 weight and product, and of one rounding to the dtype.
ERRORS = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def merged_again(tokens: Tensor, why: Explanation, beta: float) -> Tensor:
    """The kept tokens `[F * K, D]` for the choices in `why`, by differentiable operations alone."""
    flat = tokens.flatten(0, 1)
    rows = {index: flat[index] for index in why.indices.tolist()}
    for record in why.anchor_frames:
        for anchor in record.anchors.tolist():
            joined = record.joined[record.joined_anchor == anchor]
            weight = max(beta, 1 / (len(joined) + 1))
            if weight < 1:
                rows[anchor] = weight * flat[anchor] + (1 - weight) * flat[joined].mean(0)
    return torch.stack([rows[index] for index in why.indices.tolist()])


def exact_gradient(tokens: Tensor, why: Explanation, beta: float, grad: Tensor) -> Tensor:
    leaf = tokens.detach().double().clone().requires_grad_()
    merged_again(leaf, why, beta).backward(grad.double())
    assert leaf.grad is not None
    return leaf.grad


def check_gradient(gradient: Tensor, tokens: Tensor, why: Explanation, beta: float, grad: Tensor) -> None:
    """Check the gradient within the rounding of a token's terms: one for each anchor frame of its segment."""
    exact = exact_gradient(tokens, why, beta, grad)
    terms = 1 + max((end - start for start, end in why.segments.tolist()), default=0)
    magnitude = exact_gradient(tokens, why, beta, grad.abs())
    tiny = torch.finfo(tokens.dtype).smallest_normal * torch.finfo(tokens.dtype).eps
    sums = terms * (2.0**-53 if tokens.dtype == torch.float64 else 2.0**-24)
    bound = (ERRORS[tokens.dtype] + sums) * magnitude + tiny
    assert gradient.shape == tokens.shape
    assert gradient.dtype == tokens.dtype
    assert ((gradient.double() - exact).abs() <= bound).all()


def backward_of(tokens: Tensor, grad: Tensor, *others: Any, **hyperparameters: Any) -> Tensor:
    leaf = tokens.detach().requires_grad_()
    prune(leaf, *others, **hyperparameters).tokens.backward(grad)
    assert leaf.grad is not None
    return leaf.grad


def random_grad(tokens: Tensor, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, tokens.shape[2], generator=generator).to(tokens.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("given_features", [True, False], ids=["features", "mean features"])
def test_it_is_that_of_an_independent_merge(name: str, dtype: torch.dtype, given_features: bool) -> None:
    frames, n, dim, hyperparameters = SHAPES[name]
    tokens, attn, features = video(frames, n, dim, dtype, seed=len(name))
    others = (attn, features if given_features else None)
    why = explain(tokens, *others, **hyperparameters)
    grad = random_grad(tokens, len(why.indices))
    gradient = backward_of(tokens, grad, *others, **hyperparameters)
    check_gradient(gradient, tokens, why, hyperparameters.get("beta", 0.6), grad)
    assert_same_bits(backward_of(tokens, grad, *others, **hyperparameters), gradient)
    salient = torch.isin(why.indices, why.salient)
    assert_same_bits(gradient.flatten(0, 1)[why.salient], grad[salient])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small_blocks_change_nothing(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, attn, features = video(12, 20, 16, dtype, seed=3)
    hyperparameters = {"retention_ratio": 0.3, **ONE_SEGMENT}
    why = explain(tokens, attn, features, **hyperparameters)
    grad = random_grad(tokens, len(why.indices))
    whole = backward_of(tokens, grad, attn, features, **hyperparameters)
    monkeypatch.setattr(merge, "_BLOCK_ELEMENTS", 1)
    assert_same_bits(backward_of(tokens, grad, attn, features, **hyperparameters), whole)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ragged_and_dense_batches(dtype: torch.dtype) -> None:
    arguments = ragged_batch(dtype)
    why = explain(*arguments, **RAGGED)
    grad = random_grad(arguments[0], len(why.indices))
    check_gradient(backward_of(arguments[0], grad, *arguments[1:], **RAGGED), arguments[0], why, 0.6, grad)

    tokens, attn, features = (x.unflatten(0, (3, 4)) for x in video(12, 20, 16, dtype, seed=4))
    one_by_one = [explain(*one, retention_ratio=0.3) for one in zip(tokens, attn, features, strict=True)]
    grad = torch.stack([random_grad(tokens[0], 24 + video)[:24] for video in range(3)])
    gradient = backward_of(tokens, grad, attn, features, retention_ratio=0.3)
    for number, why in enumerate(one_by_one):
        check_gradient(gradient[number], tokens[number], why, 0.6, grad[number])


def three_terms() -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any], Tensor, Tensor, Tensor]:
    """A video whose tokens, anchors aside, get three terms. The first two cancel; the third is lost unless added last.

    Returns the video, hyperparameters, the gradient of the kept rows, bool `[F * N]` of these tokens, and the gradient
    `[D]` of each.
    """
    arguments = video(3, 8, 4, torch.float32, seed=6)
    hyperparameters = {"retention_ratio": 0.125, "dtm_ratio": 1.0, "anchor_interval": 1, **ONE_SEGMENT}
    why = explain(*arguments, **hyperparameters)
    # One anchor a frame, which all 23 other tokens join.
    assert [len(record.joined) for record in why.anchor_frames] == [23, 23, 23]
    grad = torch.tensor([2.0**30, -(2.0**30), 1.0])[:, None].expand(3, 4).contiguous()
    first, second, third = (1 - torch.tensor(0.6)) / torch.tensor(23.0) * grad
    expected = (first + second) + third
    assert not torch.equal(expected, (third + second) + first)
    return arguments, hyperparameters, grad, ~torch.isin(torch.arange(24), why.anchors), expected


def test_terms_are_added_in_ascending_order_of_anchor_frames() -> None:
    (tokens, *others), hyperparameters, grad, free, expected = three_terms()
    gradient = backward_of(tokens, grad, *others, **hyperparameters).flatten(0, 1)
    assert (gradient[free] == expected).all()


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.6, 1.0])
def test_gradcheck(beta: float, ragged: bool) -> None:
    tokens, attn, features = video(8, 10, 6, torch.float64, seed=7)
    cu_frames = torch.tensor([0, 3, 8], dtype=torch.int32) if ragged else None

    def kept(x: Tensor) -> Tensor:
        return prune(x, attn, features, cu_frames, retention_ratio=0.3, beta=beta, min_segments=2).tokens

    assert torch.autograd.gradcheck(kept, (tokens.requires_grad_(),), eps=1e-7)


def test_the_merge_alone_has_one() -> None:
    tokens, attn, features = video(8, 10, 6, torch.float64, seed=8)
    given = [x.requires_grad_() for x in (tokens, attn.float(), features)]
    prune(*given, retention_ratio=0.3).tokens.sum().backward()
    assert given[0].grad is not None
    assert given[1].grad is None
    assert given[2].grad is None
    kept = prune(tokens.detach(), attn.float(), given[2], retention_ratio=0.3).tokens
    assert torch.autograd.grad(kept.sum(), given[2], allow_unused=True) == (None,)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("beta", [0.0, 0.6, 1.0])
def test_what_is_not_finite_stays_with_the_rows_it_reaches(value: float, beta: float) -> None:
    tokens, attn, features = video(8, 20, 6, torch.float32, seed=9)
    why = explain(tokens, attn, features, retention_ratio=0.3, beta=beta)
    anchor = next(record.anchors[0].item() for record in why.anchor_frames if len(record.joined))
    record = next(record for record in why.anchor_frames if anchor in record.anchors)
    grad = random_grad(tokens, len(why.indices))
    grad[why.indices == anchor] = value
    gradient = backward_of(tokens, grad, attn, features, retention_ratio=0.3, beta=beta).flatten(0, 1)
    reached = {anchor, *(record.joined[record.joined_anchor == anchor].tolist() if beta < 1 else [])}
    assert set((~gradient.isfinite()).any(1).nonzero().flatten().tolist()) == reached


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38, 0.0])
def test_tokens_that_are_anything_leave_the_gradient_finite(value: float) -> None:
    tokens, attn, features = video(8, 20, 6, torch.float32, seed=10)
    tokens[2:5, ::3] = value
    attn[3] = float("nan")
    features[4] = value
    why = explain(tokens, attn, features, retention_ratio=0.3)
    grad = random_grad(tokens, len(why.indices))
    gradient = backward_of(tokens, grad, attn, features, retention_ratio=0.3)
    # The gradient depends on which tokens merge, not on their values.
    check_gradient(gradient, torch.zeros_like(tokens), why, 0.6, grad)


def test_strided_tokens_and_gradients() -> None:
    tokens, attn, features = video(8, 20, 6, torch.float32, seed=11)
    strided = tokens.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    grad = torch.ones(()).expand(48, 6)
    expected = backward_of(tokens, grad.contiguous(), attn, features, retention_ratio=0.3)
    assert_same_bits(backward_of(strided, grad, attn, features, retention_ratio=0.3), expected)


def test_nothing_but_inputs_is_saved() -> None:
    tokens, attn, features = video(8, 20, 6, torch.float32, seed=12)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        prune(tokens.requires_grad_(), attn, features, retention_ratio=0.3)
    assert {x.data_ptr() for x in saved} == {x.data_ptr() for x in (tokens, attn, features)}


def test_a_change_of_what_was_saved_is_noticed() -> None:
    tokens, attn, features = video(8, 20, 6, torch.float32, seed=12)
    kept = prune(tokens.requires_grad_(), attn, features, retention_ratio=0.3).tokens
    attn.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.sum().backward()


def step(linear: torch.nn.Module, *others: Any) -> Tensor:
    tokens, attn, features, cu_frames = others
    return prune(linear(tokens), attn, features, cu_frames, retention_ratio=0.3).tokens.square().sum()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("ragged", [False, True])
def test_a_compiled_training_step(backend: str, ragged: bool) -> None:
    torch.compiler.reset()
    tokens, attn, features = video(12, 20, 16, torch.float32, seed=13)
    cu_frames = torch.tensor([0, 5, 12], dtype=torch.int32) if ragged else None
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, 16)
    step(linear, tokens, attn, features, cu_frames).backward()
    expected = [parameter.grad.clone() for parameter in linear.parameters()]
    linear.zero_grad()
    torch.compile(step, fullgraph=True, backend=backend)(linear, tokens, attn, features, cu_frames).backward()
    for ours, theirs in zip(linear.parameters(), expected, strict=True):
        torch.testing.assert_close(ours.grad, theirs)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_bits(reentrant: bool) -> None:
    tokens, attn, features = video(12, 20, 16, torch.float32, seed=14)
    gradients = []
    for wrapped in (False, True):
        leaf = tokens.clone().requires_grad_()

        def kept(x: Tensor) -> Tensor:
            return prune(x * 2, attn, features, retention_ratio=0.3).tokens

        (checkpoint(kept, leaf, use_reentrant=reentrant) if wrapped else kept(leaf)).square().sum().backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    assert_same_bits(*gradients)


def test_autocast_does_not_matter() -> None:
    tokens, attn, features = video(16, 50, 64, torch.float32, seed=15)
    grad = random_grad(tokens, 160)
    expected = backward_of(tokens, grad, attn, features, retention_ratio=0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same_bits(backward_of(tokens, grad, attn, features, retention_ratio=0.2), expected)
