"""The order of salient tokens, worked out by hand."""

import math

import pytest
import torch

from reference import salient_tokens

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("attention", "count", "expected"),
    [
        ([0.5, 0.9, 0.9, 0.1, 0.9], 0, []),
        ([0.5, 0.9, 0.9, 0.1, 0.9], 2, [1, 2]),  # three tie: the lower indices
        ([0.5, 0.9, 0.9, 0.1, 0.9], 4, [0, 1, 2, 4]),
        ([-0.0, 0.0, -1.0], 1, [0]),  # -0 equals +0
        ([0.0, -0.0, 1.0], 2, [0, 2]),
        ([NAN, -INF, NAN], 1, [1]),  # NaN is below -inf
        ([NAN, -INF, NAN, INF], 3, [0, 1, 3]),
    ],
)
def test_largest_attention_first(attention: list[float], count: int, expected: list[int]) -> None:
    assert salient_tokens(torch.tensor(attention), count) == expected


def test_attention_is_compared_as_float32() -> None:
    # 1 + 1e-12 is 1 in float32: a tie, which the lower index wins.
    assert salient_tokens(torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64), 1) == [0]
    assert salient_tokens(torch.tensor([1.0, 1.0 + 1e-6], dtype=torch.float64), 1) == [1]
