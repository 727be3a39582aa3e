"""Attention of tokens from a block of a vision tower that has no [CLS] token, from its queries and keys.

Several patches are merged into a token, and stand next to each other in the tower's order. Knows no model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TowerScore = Callable[[Tensor, Tensor, int], Tensor]
"""From queries and keys `[F, P, H, d]` and patches a token to attention, float32 `[F, P / patches]`."""

# Queries whose attention to a frame is held at once: 256 x 1,024 patches x 16 heads are 16 MiB.
_QUERIES_AT_ONCE = 256


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys after a rotary embedding that turns each channel of the first half with its like in the second.

    Args:
        x: `[F, P, H, d]`.
        cos: `[F, P, d]`, of the angles.
        sin: likewise.

    Returns:
        float32 `[F, P, H, d]`.
    """
    x, cos, sin = x.float(), cos.float()[:, :, None], sin.float()[:, :, None]
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def mean_query(queries: Tensor, keys: Tensor, patches_per_token: int) -> Tensor:
    """How much a frame's mean query attends to each token: the mean over heads of `softmax_j(q . k_j / sqrt(d))`.

    The query is the mean of the frame's, the key of a token that of its patches: `[F, P, H, d]` -> float32 `[F, N]`.

    Source: the published FastVID for Qwen2.5-VL, which has it in the tower's last block.
    """
    query = queries.float().mean(dim=1)
    token_keys = _of_tokens(keys.float(), patches_per_token)
    scores = torch.einsum("fhd,fnhd->fhn", query, token_keys) * queries.shape[-1] ** -0.5
    attention: Tensor = scores.softmax(dim=-1).mean(dim=1)
    return attention


def received(queries: Tensor, keys: Tensor, patches_per_token: int) -> Tensor:
    """How much attention each token's patches get from a frame's, on average: `[F, P, H, d]` -> float32 `[F, N]`.

    The mean over heads, queries and the token's patches of `softmax_j(q_i . k_j / sqrt(d))`, some queries at a time.
    """
    frames, patches, heads, _ = queries.shape
    total = torch.zeros(frames, patches, dtype=torch.float32, device=queries.device)
    # A frame at a time: the whole matrix is never held.
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
"""By name."""
