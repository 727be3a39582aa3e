"""Fast inner products in full float32 precision."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_lock = threading.Lock()


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


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Inside, autocast and TF32 are off: with the 10 bits of TF32, distances would select other anchors.

    On the CPU `inner_products` computes in float32, whatever precision the process has set for its own products.
    """
    with torch.autocast(device_type, enabled=False):
        if device_type != "cuda":
            yield
            return
        # The setting belongs to the process: the lock keeps two threads from restoring each other's value.
        with _lock:
            precision = torch.backends.cuda.matmul.fp32_precision
            torch.backends.cuda.matmul.fp32_precision = "ieee"
            try:
                yield
            finally:
                torch.backends.cuda.matmul.fp32_precision = precision


def first_equal(x: Tensor) -> Tensor:
    """For each row of `[P, D]`, the index of the first row equal to it, int64 `[P]`; its own if it is not finite."""
    index = torch.arange(len(x), device=x.device)
    finite = x.isfinite().all(1)
    candidate = torch.where(finite, index, len(x))
    _, kind = torch.unique(torch.where(finite[:, None], x, 0.0), dim=0, return_inverse=True)
    first = torch.full_like(index, len(x)).scatter_reduce_(0, kind, candidate, "amin")
    return torch.where(finite, first[kind], index)
