"""Attention is pooled exactly as the models pool their tokens."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlavaOnevisionConfig, LlavaOnevisionModel, SiglipVisionConfig
from transformers.models.qwen2 import Qwen2Config

from fastvid_kernels.vision import pool_to_grid, pooled_grid

GRIDS = [(27, 27), (14, 14), (5, 8), (2, 3)]


def attention(grid: tuple[int, int], frames: int = 3) -> Tensor:
    rows, columns = grid
    return torch.randn(frames, rows * columns, generator=torch.Generator().manual_seed(rows)).softmax(dim=1)


@pytest.mark.parametrize(("side", "pooled"), [(27, 14), (6, 3)])
def test_as_llava_onevision_pools_its_tokens(side: int, pooled: int) -> None:
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=side,
            patch_size=1,
        ),
        text_config=Qwen2Config(
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            vocab_size=8,
        ),
    )
    model = LlavaOnevisionModel(config)
    patches = attention((side, side))
    expected = model.apply_pooling(patches[:, :, None])[:, :, 0]
    assert expected.shape == (3, pooled * pooled)
    assert torch.equal(pool_to_grid(patches, (side, side)), expected)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("mode", ["average", "max"])
def test_windows_by_hand(grid: tuple[int, int], stride: int, mode: Any) -> None:
    patches = attention(grid)
    frames = patches.view(3, *grid)
    rows, columns = grid[0] // stride, grid[1] // stride
    windows = [
        frames[:, i * stride : (i + 1) * stride, j * stride : (j + 1) * stride].flatten(1)
        for i in range(rows)
        for j in range(columns)
    ]
    expected = torch.stack([w.mean(dim=1) if mode == "average" else w.amax(dim=1) for w in windows], dim=1)
    assert pooled_grid(grid, mode, stride) == (rows, columns)
    torch.testing.assert_close(pool_to_grid(patches, grid, mode, stride), expected)


@pytest.mark.parametrize("grid", [(11, 11), (5, 8), (9, 4)])
@pytest.mark.parametrize("stride", [2, 3, 4])
def test_bilinear_by_hand(grid: tuple[int, int], stride: int) -> None:
    rows, columns = (interpolation(size, -(-size // stride)) for size in grid)
    patches = attention(grid)
    expected = rows @ patches.view(3, *grid).double() @ columns.T
    assert pooled_grid(grid, "bilinear", stride) == expected.shape[1:]
    torch.testing.assert_close(pool_to_grid(patches, grid, stride=stride), expected.flatten(1).float())


def interpolation(size: int, pooled: int) -> Tensor:
    """Weights `[pooled, size]` in float64: each token interpolates at its centre between the two nearest patches."""
    weights = torch.zeros(pooled, size, dtype=torch.float64)
    for token in range(pooled):
        centre = max((token + 0.5) * size / pooled - 0.5, 0)
        low = int(centre)
        weights[token, low] += 1 - (centre - low)
        weights[token, min(low + 1, size - 1)] += centre - low
    return weights


def test_the_published_models() -> None:
    assert pooled_grid((27, 27)) == (14, 14)
    assert pooled_grid((27, 27), "average") == (13, 13)


def test_low_precision_is_pooled_in_float32() -> None:
    patches = attention((27, 27)).bfloat16()
    pooled = pool_to_grid(patches, (27, 27))
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled, pool_to_grid(patches.float(), (27, 27)))


BAD: dict[str, tuple[tuple[Any, ...], type[Exception], str]] = {
    "not a tensor": (([0.5], (1, 1)), TypeError, "attention must be a floating-point tensor, got list"),
    "integers": ((torch.ones(1, 4, dtype=torch.int64), (2, 2)), TypeError, "floating-point tensor, got torch.int64"),
    "another grid": ((torch.ones(1, 9), (2, 4)), ValueError, "attention must be of shape [F, 8], 2 by 4 patches"),
    "a map": ((torch.ones(1, 2, 2), (2, 2)), ValueError, "attention must be of shape [F, 4]"),
    "an unknown mode": ((torch.ones(1, 4), (2, 2), "nearest"), ValueError, "mode must be 'bilinear', 'average' or"),
    "a fraction": ((torch.ones(1, 4), (2.0, 2)), TypeError, "rows of grid must be an integer, got 2.0"),
    "no columns": ((torch.ones(1, 0), (2, 0)), ValueError, "columns of grid must be at least 1, got 0"),
    "stride 0": ((torch.ones(1, 4), (2, 2), "average", 0), ValueError, "stride must be at least 1, got 0"),
    "nothing left": ((torch.ones(1, 4), (1, 4), "max"), ValueError, "stride must fit into the grid of 1 by 4 patches"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str) -> None:
    arguments, error, message = BAD[name]
    with pytest.raises(error, match=re.escape(message)):
        pool_to_grid(*arguments)
