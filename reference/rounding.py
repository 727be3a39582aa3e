"""Rounding float64 results to the input's dtype, once (SPEC section 5)."""

import math

import torch
from torch import Tensor


def round_once(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Float64 `values` rounded to nearest even in `dtype`, with one rounding.

    PyTorch converts float64 to a 16-bit format by way of float32, which rounds twice. Rounding to odd on the
    way (an inexact float32 takes whichever neighbour has its last bit set) keeps what the second step needs.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return values.to(dtype)
    nearest = values.float()
    inexact = nearest.double() != values
    last_bit_clear = nearest.view(torch.int32) & 1 == 0
    toward_value = torch.where(values > nearest.double(), math.inf, -math.inf).float()
    to_odd = torch.where(inexact & last_bit_clear, torch.nextafter(nearest, toward_value), nearest)
    return torch.where(values.isnan(), nearest, to_odd).to(dtype)
