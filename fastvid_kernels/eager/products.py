"""Inner products in full float32, as fast as this CPU allows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_lock = threading.Lock()


def inner_products(x: Tensor, y: Tensor) -> Tensor:
    """`x @ y.T` of `[P, D]` and `[Q, D]`."""
    # PyTorch's own mm asks MKL for float32, which keeps off AVX-512 on AMD: oneDNN is twice as fast there and as
    # fast elsewhere. This is the operator by which Inductor reaches it.
    if x.dtype == torch.float32 and x.device.type == "cpu" and torch.backends.mkldnn.is_available():
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, y, None, "none", [], "")
        return product
    return x @ y.T


def gram_matrix(x: Tensor) -> Tensor:
    """`x @ x.T` of `[P, D]`, exactly symmetric, for three quarters of the price."""
    half = len(x) // 2
    gram = x.new_empty(len(x), len(x))
    gram[half:] = inner_products(x[half:], x)
    gram[:half, :half] = inner_products(x[:half], x[:half])
    gram[:half, half:] = gram[half:, :half].T
    return gram


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """No autocast and no TF32 inside: 10 bits of a distance would pick other anchors.

    On the CPU the products above are float32 whatever the process has asked of its own.
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
