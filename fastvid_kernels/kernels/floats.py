"""What of floating-point numbers the kernels rely on, written so that no compiler can turn it round.

Finite is not `x - x == 0`: where x is a product, a compiler may fuse it into the difference, which then is the
product's rounding error. And no maximum carries a NaN: the hardware's drops it.
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
