"""Order by score, so that rounding errors do not decide the order."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Coarse enough that the order of summation in float64 makes no difference.
_UNITS = 2.0**40


def highest(score: Tensor, count: int | Tensor) -> Tensor:
    """Which scores of each row are the highest: bool `[..., P]` of scores `[..., P]`.

    Args:
        score: compared in units of 2**-40; NaN comes last; ties go to the lower index.
        count: how many; `[...]` where rows differ.
    """
    order = descending(score)
    count = torch.as_tensor(count, device=score.device)[..., None]
    taken = (torch.arange(score.shape[-1], device=score.device) < count).expand_as(order)
    return torch.zeros_like(taken).scatter(-1, order, taken)


def descending(score: Tensor) -> Tensor:
    """Places of the scores `[..., P]` from the highest to the lowest, int64; NaN comes last, ties by index."""
    return torch.sort(settled(score), dim=-1, descending=True, stable=True).indices


def settled(score: Tensor) -> Tensor:
    """Scores in units of 2**-40, rounded so that rounding errors do not tell them apart: float64; -inf for NaN."""
    units = (score.to(torch.float64) * _UNITS).round()
    return units.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosine of vectors `[..., D]`, summed in float64: float64 `[...]`; 0 where either vector is zero."""
    dot = (x * y).sum(-1, dtype=torch.float64)
    scale = x.square().sum(-1, dtype=torch.float64) * y.square().sum(-1, dtype=torch.float64)
    return torch.where(scale == 0, 0.0, dot / scale.sqrt())


def normalized(x: Tensor) -> Tensor:
    """Vectors `[..., D]` of length 1; a zero vector stays zero."""
    norm = x.square().sum(-1, keepdim=True, dtype=torch.float64).sqrt()
    return torch.where(norm == 0, 0.0, x / norm).to(x.dtype)


def within_unit(x: Tensor) -> Tensor:
    """Each row of `[..., P]` scaled to 0 ... 1; a constant row becomes 0."""
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    return torch.where(high > low, (x - low) / (high - low), 0.0)
