"""Repairs Triton's interpreter where it runs the tests marked `runs_kernels`: TRITON_INTERPRET=1 from the start.

Its arithmetic is replaced where a GPU's is better (seen in triton 3.9). The interpreter converts float32 to bfloat16 by
truncation, and bfloat16's subnormals to other numbers. The BLAS library behind `tl.dot` adds up the elements of one
product in different orders, so that equal tokens are not at distance 0. Triton 3.6 uses arrays of one element as loop
bounds, which numpy 2.4 no longer accepts as integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest

from tests.emulator.lane import INTERPRETED


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float32_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """To nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def dot(x: np.ndarray, y: np.ndarray, accumulator: np.ndarray) -> np.ndarray:
    """`accumulator + x @ y`, every element added up from the first channel to the last."""
    total = accumulator.copy()
    for k in range(x.shape[1]):
        total += x[:, k : k + 1].astype(total.dtype) * y[k].astype(total.dtype)
    return total


@pytest.fixture(autouse=True, scope="session")
def mended_interpreter() -> Iterator[None]:
    if not INTERPRETED:
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    original_cast = InterpreterBuilder.cast_impl
    original_patch = interpreter._patch_lang_tensor

    def cast(self: Any, source: Any, target: Any) -> Any:
        kinds = source.dtype.scalar, target.scalar
        if kinds == (tl.bfloat16, tl.float32):
            return TensorHandle(bfloat16_to_float32(source.data), tl.float32)
        if kinds == (tl.float32, tl.bfloat16):
            return TensorHandle(float32_to_bfloat16(source.data), tl.bfloat16)
        return original_cast(self, source, target)

    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        return TensorHandle(dot(a.data, b.data, d.data), d.dtype.scalar)

    def patch_tensor(tensor: Any, scope: Any) -> None:
        original_patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    with (
        mock.patch.object(interpreter, "_patch_lang_tensor", patch_tensor),
        mock.patch.object(InterpreterBuilder, "cast_impl", cast),
        mock.patch.object(InterpreterBuilder, "create_dot", create_dot),
        np.errstate(all="ignore"),
    ):
        yield
