"""What [CLS] attends to, against loops in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastvid_kernels.vision import cls_attention

FRAMES, PATCHES, HEADS, DIM = 3, 12, 4, 8


def some(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    query = 3 * torch.randn(FRAMES, HEADS * DIM, generator=generator)
    keys = torch.randn(FRAMES, 1 + PATCHES, HEADS * DIM, generator=generator)
    return query.to(dtype), keys.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_head_and_patch(dtype: torch.dtype) -> None:
    query, keys = some(dtype)
    expected = torch.zeros(FRAMES, PATCHES, dtype=torch.float64)
    for frame in range(FRAMES):
        for head in range(HEADS):
            own = slice(head * DIM, (head + 1) * DIM)
            scores = [(query[frame, own].double() * key[own].double()).sum() / DIM**0.5 for key in keys[frame]]
            weights = [score.exp() / sum(one.exp() for one in scores) for score in scores]
            for patch in range(PATCHES):
                expected[frame, patch] += weights[1 + patch] / HEADS
    ours = cls_attention(query, keys, HEADS)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-6)


def test_autocast_does_not_matter() -> None:
    query, keys = some()
    expected = cls_attention(query, keys, HEADS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cls_attention(query, keys, HEADS), expected)
