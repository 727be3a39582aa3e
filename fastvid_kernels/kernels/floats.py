"""Tests and keys of floating-point numbers that no compiler optimisation can change.

`x - x == 0` does not test that x is finite: where x is a product, a compiler may fuse it into the subtraction, whose
result is then the product's rounding error. A maximum does not propagate NaN: the hardware's maximum drops it.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST_KEY = tl.constexpr(-2147483648)


@triton.jit
def is_finite(x):
    """Neither NaN nor infinite."""
    return tl.abs(x) < float("inf")


@triton.jit
def float_key(value):
    """An int32 that orders like the float32: -0 equals +0, NaN lies below -inf."""
    bits = value.to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    key = tl.where(bits == LOWEST_KEY, 0, key)
    return tl.where(value != value, LOWEST_KEY, key)
