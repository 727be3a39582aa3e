"""Integers stored in channels of an embedding, exact in any floating dtype.

vLLM caches one tensor per video, in the model's dtype. bfloat16 cannot represent 257, but it can represent every digit
in base 256.
"""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 256
DIGITS = 3


def to_digits(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Write numbers as digits in base 256.

    Args:
        numbers: int64 `[rows, n]`, from 0 to 256**3 - 1.
        dtype: bfloat16, float16 or wider.

    Returns:
        `[rows, 3 * n]`, the lowest digit of a number first.

    Raises:
        ValueError: a number is out of range.
    """
    if numbers.numel() and not 0 <= int(numbers.min()) <= int(numbers.max()) < BASE**DIGITS:
        raise ValueError(
            f"numbers must be from 0 to {BASE**DIGITS - 1}, got {int(numbers.min())} to {int(numbers.max())}"
        )
    places = torch.stack([numbers // BASE**place % BASE for place in range(DIGITS)], dim=-1)
    return places.flatten(1).to(dtype)


def from_digits(digits: Tensor) -> Tensor:
    """Read what `to_digits` wrote: `[rows, 3 * n]` -> int64 `[rows, n]`."""
    places = digits.long().unflatten(1, (-1, DIGITS))
    weights = torch.tensor([BASE**place for place in range(DIGITS)], device=digits.device)
    numbers: Tensor = (places * weights).sum(dim=-1)
    return numbers
