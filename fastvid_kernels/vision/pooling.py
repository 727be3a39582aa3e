"""Pool attention from the vision model's patches to the model's tokens, as the tokens themselves are pooled."""

from __future__ import annotations

import math
from typing import Literal, get_args

from torch import Tensor
from torch.nn import functional

PoolingMode = Literal["bilinear", "average", "max"]


def pool_to_grid(attention: Tensor, grid: tuple[int, int], mode: PoolingMode = "bilinear", stride: int = 2) -> Tensor:
    """Pool the attention of patches to the grid of tokens that the model pools them to.

    Args:
        attention: `[F, h * w]`, one value a patch, row by row; any floating dtype.
        grid: `(h, w)`, rows and columns of patches in a frame.
        mode: "bilinear" resizes to `ceil(h / stride)` by `ceil(w / stride)`, as LLaVA-OneVision does (27 -> 14);
            "average" and "max" pool whole `stride` by `stride` windows and drop what is left over at the right and
            the bottom, as LLaVA-Video does (27 -> 13).
        stride: patches per token in each direction, `mm_spatial_pool_stride` of llava; 1 pools nothing.

    Returns:
        float32 `[F, N]`, one value a token, row by row; N is the product of `pooled_grid(grid, mode, stride)`.

    Raises:
        TypeError: attention is not a floating-point tensor, or a size is not an integer.
        ValueError: attention does not have the shape of the grid, the mode is unknown, or no token would be left.

    Source: `apply_pooling` of transformers' LLaVA-OneVision; `get_2dPool` of llava.
    """
    rows, columns = pooled_grid(grid, mode, stride)
    if not isinstance(attention, Tensor) or not attention.is_floating_point():
        raise TypeError(f"attention must be a floating-point tensor, got {_kind(attention)}")
    height, width = grid
    if attention.dim() != 2 or attention.shape[1] != height * width:
        raise ValueError(
            f"attention must be of shape [F, {height * width}], {height} by {width} patches a frame, "
            f"got {list(attention.shape)}"
        )
    patches = attention.float().reshape(-1, 1, height, width)
    if mode == "bilinear":
        pooled = functional.interpolate(patches, size=(rows, columns), mode="bilinear")
    elif mode == "average":
        pooled = functional.avg_pool2d(patches, stride)
    else:
        pooled = functional.max_pool2d(patches, stride)
    return pooled.flatten(1)


def pooled_grid(grid: tuple[int, int], mode: PoolingMode = "bilinear", stride: int = 2) -> tuple[int, int]:
    """Rows and columns of tokens in a frame after pooling; see `pool_to_grid` for the arguments and errors."""
    if mode not in get_args(PoolingMode):
        raise ValueError(f"mode must be 'bilinear', 'average' or 'max', got {mode!r}")
    for name, size in (("rows of grid", grid[0]), ("columns of grid", grid[1]), ("stride", stride)):
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"{name} must be an integer, got {size!r}")
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    height, width = grid
    if mode == "bilinear":
        return math.ceil(height / stride), math.ceil(width / stride)
    if min(height, width) < stride:
        raise ValueError(f"stride must fit into the grid of {height} by {width} patches, got {stride}")
    return height // stride, width // stride


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
