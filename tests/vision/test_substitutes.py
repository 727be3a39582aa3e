"""Substitutes for attention: each against its definition, computed in float64 by loops."""

from __future__ import annotations

import pytest
import torch

from fastvid_kernels import prune
from fastvid_kernels.vision import ATTENTION_SUBSTITUTES, pool_to_grid

PATCHES = torch.randn(3, 12, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm(dtype: torch.dtype) -> None:
    patches = PATCHES.to(dtype)
    expected = torch.tensor([[sum(v * v for v in patch) ** 0.5 for patch in frame] for frame in patches.tolist()])
    torch.testing.assert_close(ATTENTION_SUBSTITUTES["norm"](patches), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_similarity(dtype: torch.dtype) -> None:
    patches = PATCHES.to(dtype).double()
    expected = torch.empty(3, 12)
    for f, frame in enumerate(patches):
        typical = sum(frame) / 12
        for p, patch in enumerate(frame):
            expected[f, p] = patch @ typical / (patch @ patch * (typical @ typical)) ** 0.5
    torch.testing.assert_close(ATTENTION_SUBSTITUTES["similarity"](PATCHES.to(dtype)), expected)


@pytest.mark.parametrize("mode", ["bilinear", "average", "max"])
def test_uniform_keeps_the_first_tokens_whatever_the_pooling(mode: str) -> None:
    side = 27
    attention = ATTENTION_SUBSTITUTES["uniform"](torch.randn(2, side * side, 4))
    pooled = pool_to_grid(attention, (side, side), mode)
    tokens = torch.randn(2, pooled.shape[1], 4)
    kept = prune(tokens, pooled, retention_ratio=0.1, dtm_ratio=0.0).indices
    n, k = pooled.shape[1], pooled.shape[1] // 10
    assert kept.tolist() == [*range(k), *range(n, n + k)]


@pytest.mark.parametrize("name", ATTENTION_SUBSTITUTES)
def test_shape_and_dtype(name: str) -> None:
    attention = ATTENTION_SUBSTITUTES[name](PATCHES.half())
    assert (attention.shape, attention.dtype) == ((3, 12), torch.float32)
