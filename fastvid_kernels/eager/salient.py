"""ATS: keep the tokens of a frame that [CLS] attends to most (SPEC section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

_INT32 = torch.iinfo(torch.int32)


def salient_mask(attn: Tensor, n_salient: Tensor) -> Tensor:
    """Which tokens are salient: attention `[F, N]` and the number to take in each frame `[F]` -> bool `[F, N]`.

    Attention is compared as float32; ties go to the lower index.
    """
    order = torch.sort(_attention_key(attn), dim=1, descending=True, stable=True).indices
    taken = torch.arange(attn.shape[1], device=attn.device) < n_salient[:, None]
    return torch.zeros_like(taken).scatter_(1, order, taken)


def _attention_key(attn: Tensor) -> Tensor:
    """An int32 that orders like the float32: -0 equals +0, NaN lies below -inf."""
    attn = attn.to(torch.float32)
    bits = attn.contiguous().view(torch.int32)
    key = torch.where(bits < 0, bits ^ _INT32.max, bits)
    negative_zero = bits == _INT32.min
    return key.masked_fill(negative_zero, 0).masked_fill(attn.isnan(), _INT32.min)
