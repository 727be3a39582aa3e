"""Fast inner products in full float32 precision."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor


def inner_products(x: Tensor, y: Tensor) -> Tensor:
    """`x @ y.T` of `[P, D]` and `[Q, D]`."""
    # For float32, PyTorch's own mm calls MKL, which does not use AVX-512 on AMD CPUs. oneDNN is twice as fast there
    # and equally fast elsewhere. Inductor calls oneDNN through this operator too.
    if x.dtype == torch.float32 and x.device.type == "cpu" and torch.backends.mkldnn.is_available():
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, y, None, "none", [], "")
        return product
    return x @ y.T


def gram_matrix(x: Tensor) -> Tensor:
    """`x @ x.T` of `[P, D]`, exactly symmetric, with three quarters of the work."""
    half = len(x) // 2
    gram = x.new_empty(len(x), len(x))
    gram[half:] = inner_products(x[half:], x)
    gram[:half, :half] = inner_products(x[:half], x[:half])
    gram[:half, half:] = gram[half:, :half].T
    return gram


class _Ieee:
    """Keeps a device's float32 products in float32 while any thread is inside; the setting belongs to the process.

    Args:
        settings: of the backend that multiplies on the device; has `fp32_precision`.
    """

    def __init__(self, settings: Any) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._inside = 0
        self._before = ""

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = self._settings.fp32_precision
                self._settings.fp32_precision = "ieee"
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                # What was inherited from a wider setting is inherited again.
                self._settings.fp32_precision = "none"
                if self._settings.fp32_precision != self._before:
                    self._settings.fp32_precision = self._before


_backends: Any = torch.backends
_IEEE = {"cpu": _Ieee(_backends.mkldnn.matmul), "cuda": _Ieee(_backends.cuda.matmul)}


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Inside, autocast is off, and so are TF32 and bfloat16 for float32: distances would select other anchors.

    A process may set these for its own products. CPUs with bfloat16 units then use them.
    """
    with torch.autocast(device_type, enabled=False), _IEEE.get(device_type, nullcontext()):
        yield


def first_equal(x: Tensor) -> Tensor:
    """For each row of `[P, D]`, the index of the first row equal to it, int64 `[P]`; its own if it is not finite."""
    index = torch.arange(len(x), device=x.device)
    finite = x.isfinite().all(1)
    candidate = torch.where(finite, index, len(x))
    _, kind = torch.unique(torch.where(finite[:, None], x, 0.0), dim=0, return_inverse=True)
    first = torch.full_like(index, len(x)).scatter_reduce_(0, kind, candidate, "amin")
    return torch.where(finite, first[kind], index)
