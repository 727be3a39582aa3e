"""For any token bits, strides and hyperparameters, the gradient is that of an independent float64 merge."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from fastvid_kernels import explain
from tests.eager.test_gradient import DTYPES, backward_of, check_gradient, random_grad


@st.composite
def any_step(
    draw: st.DrawFn, dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor, Tensor | None, Tensor | None], dict[str, Any]]:
    """Arguments of a call of one video or several, and hyperparameters with which most calls merge something.

    Tokens lie in memory in any order. Some are zero or not finite, some have squares that overflow
    or round to 0.
    """
    frames, n, dim = draw(st.integers(1, 8)), draw(st.integers(2, 12)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    tokens = torch.randn(frames, n, dim, generator=generator) * draw(st.sampled_from([1, 1e-4, 1e4, 0]))
    for value in draw(st.lists(st.sampled_from([0, math.inf, -math.inf, math.nan, 1e-30, 1e30]), max_size=3)):
        tokens[torch.rand(frames, n, generator=generator) < 0.15] = value
    order = draw(st.permutations(range(3)))
    tokens = tokens.permute(*order).contiguous().permute(*(order.index(axis) for axis in range(3)))
    features = draw(st.sampled_from([None, torch.randn(frames, 3, generator=generator)]))
    cuts = draw(st.lists(st.integers(1, frames - 1), unique=True, max_size=3) if frames > 1 else st.just([]))
    cu_frames = draw(st.sampled_from([None, torch.tensor([0, *sorted(cuts), frames], dtype=torch.int32)]))
    hyperparameters = {
        "retention_ratio": (draw(st.integers(1, n)) + 0.5) / (n + 0.5),
        "min_segments": draw(st.sampled_from([1, 2, 8])),
        "tau": draw(st.sampled_from([-1.5, 0.0, 0.9])),
        "dtm_ratio": draw(st.sampled_from([0.4, 0.7, 1.0])),
        "anchor_interval": draw(st.integers(1, 5)),
        # Multiples of 1/16, so that 1 - beta is exact: near beta = 1 its rounding would exceed the bound of the check.
        "beta": draw(st.integers(0, 16)) / 16,
        "num_neighbors": draw(st.sampled_from([1, 4, 30])),
    }
    return (tokens.to(dtype), torch.rand(frames, n, generator=generator), features, cu_frames), hyperparameters


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_step(dtype: torch.dtype) -> None:
    merging = 0

    @settings(max_examples=100, deadline=None, database=None, derandomize=True)
    @given(any_step(dtype), st.booleans())
    def check(step: tuple[tuple[Tensor, Tensor, Any, Any], dict[str, Any]], is_sum: bool) -> None:
        nonlocal merging
        (tokens, *others), hyperparameters = step
        why = explain(tokens, *others, **hyperparameters)
        merging += any(len(record.joined) for record in why.anchor_frames)
        rows = len(why.indices)
        grad = torch.ones((), dtype=dtype).expand(rows, tokens.shape[2]) if is_sum else random_grad(tokens, rows)
        gradient = backward_of(tokens, grad, *others, **hyperparameters)
        # The gradient depends on which tokens merge, not on their values.
        check_gradient(gradient, torch.zeros_like(tokens), why, hyperparameters["beta"], grad)

    check()
    assert merging >= 50
