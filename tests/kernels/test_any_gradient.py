"""For any token bits, shapes and hyperparameters, the compiled gradient is that of an independent merge."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tests.eager.test_any_gradient import any_step
from tests.eager.test_gradient import check_gradient, random_grad
from tests.kernels.explained import explanation_of, run_kernels
from tests.kernels.test_gradient import run_backward

pytestmark = pytest.mark.runs_kernels


def check_step(arguments: tuple[Tensor, Tensor, Any, Any], hyperparameters: dict[str, Any]) -> None:
    """Check on contiguous tokens: another layout compiles another kernel, and the gradient does not read tokens."""
    tokens, others = arguments[0].contiguous(), arguments[1:]
    forward = run_kernels(tokens, *others, **hyperparameters)
    grad = random_grad(tokens, len(forward.indices))
    gradient = run_backward(grad, tokens, *others, **hyperparameters).output
    check_gradient(gradient, torch.zeros_like(tokens), explanation_of(forward), hyperparameters["beta"], grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_step(dtype: torch.dtype) -> None:
    @settings(max_examples=30, deadline=None, database=None, derandomize=True)
    @given(any_step(dtype))
    def check(step: tuple[tuple[Tensor, Tensor, Any, Any], dict[str, Any]]) -> None:
        check_step(*step)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_any_step_of_many(dtype: torch.dtype) -> None:
    @settings(max_examples=400, deadline=None, database=None, derandomize=True)
    @given(any_step(dtype))
    def check(step: tuple[tuple[Tensor, Tensor, Any, Any], dict[str, Any]]) -> None:
        check_step(*step)

    check()
