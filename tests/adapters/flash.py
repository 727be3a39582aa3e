"""transformers' FlashAttention code path on the CPU: unpadding, packed sequences and all, with kernels that are plain.

What is stood in for is the two functions of the flash-attn package; everything that decides what they are given, masks
sliced from the right and packed sequences read from positions, is transformers' own.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, softmax_scale: float | None = None, **_: Any) -> Tensor:
    """`[B, S, heads, d]`; the last query sees the last key."""
    rows, columns = q.shape[1], k.shape[1]
    k, v = (one.repeat_interleave(q.shape[2] // one.shape[2], dim=2) for one in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * (softmax_scale or q.shape[-1] ** -0.5)
    if causal:
        scores = scores.masked_fill(torch.ones(rows, columns).triu(columns - rows + 1).bool(), -torch.inf)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, **kwargs: Any
) -> Tensor:
    """`[tokens, heads, d]` of several sequences one after the other."""
    parts = []
    queries, keys = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for one in range(len(queries) - 1):
        own_q = q[queries[one] : queries[one + 1]]
        own_k, own_v = (x[keys[one] : keys[one + 1]] for x in (k, v))
        parts.append(attention(own_q[None], own_k[None], own_v[None], **kwargs)[0])
    return torch.cat(parts)


def chosen_arguments(*, is_causal: bool, softmax_scale: float | None = None, **_: Any) -> dict[str, Any]:
    return {"causal": is_causal, "softmax_scale": softmax_scale}


def stand_in(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    """Let a model's language model take that path."""
    from transformers import modeling_flash_attention_utils as utils

    kernels = (attention, varlen_attention, None, utils._pad_input, utils._unpad_input)
    # Versions before 5.23 know one way to choose arguments, later ones have another for paged caches.
    has_paged = hasattr(utils, "_process_with_kvcache_kwargs_fn")
    choosing = (chosen_arguments, None) if has_paged else chosen_arguments
    monkeypatch.setattr(utils, "lazy_import_flash_attention", lambda *args, **kwargs: (kernels, choosing))
    # Past the setter, which wants the flash-attn package, and without the vision tower.
    for config in (model.config, model.config.text_config):
        config._attn_implementation_internal = "flash_attention_2"
