"""transformers' FlashAttention code path on the CPU, unpadding and packed sequences included, with plain kernels.

Stand-ins replace only the two functions of the flash-attn package. The code that chooses their arguments, such as masks
sliced from the right and packed sequences found in positions, is transformers' own.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, softmax_scale: float | None = None, **_: Any) -> Tensor:
    """Attention of `[B, S, heads, d]`; a causal mask lets the last query see the last key."""
    rows, columns = q.shape[1], k.shape[1]
    k, v = (one.repeat_interleave(q.shape[2] // one.shape[2], dim=2) for one in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * (softmax_scale or q.shape[-1] ** -0.5)
    if causal:
        scores = scores.masked_fill(torch.ones(rows, columns).triu(columns - rows + 1).bool(), -torch.inf)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, **kwargs: Any
) -> Tensor:
    """Attention of `[tokens, heads, d]`, several sequences one after the other."""
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
    """Make a model's language model take FlashAttention's code path."""
    from transformers import modeling_flash_attention_utils as utils

    kernels = (attention, varlen_attention, None, utils._pad_input, utils._unpad_input)
    # Versions before 5.23 have one function that chooses arguments; later ones have a second, for paged caches.
    has_paged = hasattr(utils, "_process_with_kvcache_kwargs_fn")
    choosing = (chosen_arguments, None) if has_paged else chosen_arguments
    monkeypatch.setattr(utils, "lazy_import_flash_attention", lambda *args, **kwargs: (kernels, choosing))
    # Not by the setter, which requires the flash-attn package; and the vision tower stays as it is.
    for config in (model.config, model.config.text_config):
        config._attn_implementation_internal = "flash_attention_2"
