"""Attention of tokens, from the queries and keys of a block in a vision tower without a [CLS] token.

A token is merged from several patches, which are adjacent in the tower's order. Nothing here depends on a model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastvid_kernels.eager.products import full_precision

TowerScore = Callable[[Tensor, Tensor, int], Tensor]
"""Maps queries and keys `[F, P, H, d]` and the number of patches per token to attention, float32 `[F, P / patches]`."""

# Number of queries whose attention to a frame is in memory at once: 256 x 1,024 patches x 16 heads are 16 MiB.
_QUERIES_AT_ONCE = 256


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply a rotary embedding, which rotates channel i of the first half with channel i of the second half.

    Args:
        x: queries or keys, `[F, P, H, d]`.
        cos: `[F, P, d]`, cosines of the angles.
        sin: `[F, P, d]`, sines of the angles.

    Returns:
        float32 `[F, P, H, d]`.
    """
    x, cos, sin = x.float(), cos.float()[:, :, None], sin.float()[:, :, None]
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def mean_query(queries: Tensor, keys: Tensor, patches_per_token: int) -> Tensor:
    """How much a frame's mean query attends to each token: the mean over heads of `softmax_j(q . k_j / sqrt(d))`.

    q is the mean of the frame's queries, k_j the mean of the keys of token j's patches. `[F, P, H, d]` -> float32
    `[F, N]`.

    Source: the published FastVID for Qwen2.5-VL, which computes it in the tower's last block.
    """
    with full_precision(queries.device.type):
        query = queries.float().mean(dim=1)
        token_keys = _of_tokens(keys.float(), patches_per_token)
        scores = torch.einsum("fhd,fnhd->fhn", query, token_keys) * queries.shape[-1] ** -0.5
        attention: Tensor = scores.softmax(dim=-1).mean(dim=1)
        return attention


def received(queries: Tensor, keys: Tensor, patches_per_token: int) -> Tensor:
    """How much attention the patches of a token get from the frame, on average: `[F, P, H, d]` -> float32 `[F, N]`.

    This is the mean over heads, queries and the token's patches of `softmax_j(q_i . k_j / sqrt(d))`.
    """
    frames, patches, heads, _ = queries.shape
    total = torch.zeros(frames, patches, dtype=torch.float32, device=queries.device)
    with full_precision(queries.device.type):
        # One frame and some queries at a time, so that the whole attention matrix is never in memory.
        for frame in range(frames):
            own_keys = keys[frame].float().permute(1, 2, 0) * queries.shape[-1] ** -0.5
            for some in queries[frame].float().transpose(0, 1).split(_QUERIES_AT_ONCE, dim=1):
                total[frame] += (some @ own_keys).softmax(dim=-1).sum(dim=(0, 1))
    return _of_tokens(total, patches_per_token) / (heads * patches)


def _of_tokens(patches: Tensor, patches_per_token: int) -> Tensor:
    """Means over the patches of each token: `[F, P, ...]` -> `[F, P / patches, ...]`."""
    means: Tensor = patches.unflatten(1, (-1, patches_per_token)).mean(dim=2)
    return means


TOWER_ATTENTION: dict[str, TowerScore] = {"mean_query": mean_query, "received": received}
"""The scores by name."""
