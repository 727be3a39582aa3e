"""ATS: the salient tokens of a frame (SPEC section 3)."""

import math

from torch import Tensor


def salient_tokens(attention: Tensor, count: int) -> list[int]:
    """The `count` tokens of a frame with the largest [CLS] attention `[N]`, as ascending in-frame indices.

    Attention is compared as float32, -0 equal to +0; ties go to the lower index, and NaN ranks below -inf
    (SPEC sections 3 and 7).
    """
    values = attention.float().tolist()

    def rank(index: int) -> tuple[bool, float, int]:
        value = values[index]
        is_nan = math.isnan(value)
        return is_nan, 0.0 if is_nan else -value, index

    return sorted(sorted(range(len(values)), key=rank)[:count])
