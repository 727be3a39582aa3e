"""Attention of a [CLS] token to the patches of its frame, from the queries and keys of a block."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvid_kernels.eager.products import full_precision


def cls_attention(query: Tensor, keys: Tensor, num_heads: int) -> Tensor:
    """How much [CLS] attends to each patch: the mean over heads of `softmax_j(q . k_j / sqrt(d))`.

    The softmax is over [CLS] and all patches, as in the block itself; [CLS]'s attention to itself is then left out.

    Args:
        query: `[F, H * d]`, the query of each frame's [CLS].
        keys: `[F, 1 + P, H * d]`, the keys of [CLS] and of the patches after it.
        num_heads: H, the number of heads.

    Returns:
        float32 `[F, P]`.

    Source: the attention of CLIP's blocks. FastVID (arXiv 2503.11187, section 3) takes it from a SigLIP head, since
    SigLIP's blocks have no [CLS].
    """
    with full_precision(query.device.type):
        queries = query.float().unflatten(-1, (num_heads, -1))
        scores = torch.einsum("fhd,fnhd->fhn", queries, keys.float().unflatten(-1, (num_heads, -1)))
        attention: Tensor = (scores * queries.shape[-1] ** -0.5).softmax(dim=-1).mean(dim=1)
        return attention[:, 1:]
