"""Rounding float64 results to the input's dtype, once (SPEC section 5)."""

import math

import torch
from torch import Tensor


def round_once(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Float64 `values` rounded to nearest even in `dtype`, with one rounding.

    PyTorch converts float64 to a 16-bit format through float32, which rounds twice. Here the first step rounds
    to odd: an inexact value becomes the neighbouring float32 whose last bit is set. The second step then rounds
    as it would from float64.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return values.to(dtype)
    nearest = values.float()
    inexact = nearest.double() != values
    last_bit_clear = nearest.view(torch.int32) & 1 == 0
    toward_value = torch.where(values > nearest.double(), math.inf, -math.inf).float()
    to_odd = torch.where(inexact & last_bit_clear, torch.nextafter(nearest, toward_value), nearest)
    return torch.where(values.isnan(), nearest, to_odd).to(dtype)
