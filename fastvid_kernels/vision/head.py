"""SigLIP's attention-pooling head: the attention of its [CLS]-like probe, and the global feature of each frame."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastvid_kernels.vision.config import SiglipHeadConfig


class HeadOutput(NamedTuple):
    """The outputs of the vision model that FastVID needs.

    Attributes:
        attention: float32 `[F, P]`, the probe's attention to each patch, averaged over heads; each row sums to 1.
        features: `[F, H]` in the head's dtype, the global feature of each frame (SigLIP's pooled output).
    """

    attention: Tensor
    features: Tensor


class SiglipHead(nn.Module):
    """The head of a SigLIP vision model, with its layer norm: `x -> (attention, features)` in one pass.

    `y, w = attention(probe, post_layernorm(x))`, `features = y + mlp(layernorm(y))`. Parameters are named as in a
    checkpoint, without the prefix `head.`. A new head has random weights; `load_siglip_head` loads one.

    Args:
        config: the sizes of the head.

    Source: SigLIP, arXiv 2303.15343; `SiglipMultiheadAttentionPoolingHead` of transformers.
    """

    def __init__(self, config: SiglipHeadConfig) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.layer_norm_eps
        self.config = config
        self.post_layernorm = nn.LayerNorm(hidden, eps=eps)
        self.probe = nn.Parameter(torch.randn(1, 1, hidden))
        self.attention = _ProbeAttention(hidden, config.num_attention_heads)
        self.layernorm = nn.LayerNorm(hidden, eps=eps)
        self.mlp = _Mlp(hidden, config.intermediate_size)

    def forward(self, x: Tensor) -> HeadOutput:
        """Attend to the patches of every frame.

        Args:
            x: `[F, P, H]`, F frames of P patches: the tensor that enters LLaVA's `multi_modal_projector`, before
                `post_layernorm`. Any floating dtype, cast to the head's; on the head's device.

        Returns:
            `(attention, features)`: float32 `[F, P]`, and `[F, H]` in the head's dtype.

        Raises:
            ValueError: `x` has another shape.
        """
        hidden = self.config.hidden_size
        if x.dim() != 3 or x.shape[2] != hidden:
            raise ValueError(f"x must be of shape [F, P, H] with H = {hidden}, got {list(x.shape)}")
        y, attention = self.attention(self.probe, self.post_layernorm(x.to(self.probe.dtype)))
        return HeadOutput(attention, y + self.mlp(self.layernorm(y)))


class _ProbeAttention(nn.Module):
    """Multi-head attention of one query, the same for all frames: `(probe, x [F, P, H]) -> (y [F, H], w [F, P])`.

    With one query, keys and values need not be computed. For the scores, `q·(Kx + b) = (Kᵀq)·x + q·b`, where the last
    term is the same for every patch, so softmax ignores it. The mean of the values is the value of the mean,
    `V(Σwx) + b`. This is H/heads times less work than projecting every patch twice.
    """

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, hidden // heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden, hidden))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden))
        self.out_proj = nn.Linear(hidden, hidden)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, probe: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        query_weight, key_weight, value_weight = self.in_proj_weight.chunk(3)
        query_bias, _, value_bias = self.in_proj_bias.chunk(3)
        query = nn.functional.linear(probe.flatten(), query_weight, query_bias) * self.width**-0.5  # [H]

        per_head = (self.heads, self.width, -1)
        direction = query.view(self.heads, 1, self.width) @ key_weight.view(per_head)  # [heads, 1, H]
        scores = x @ direction[:, 0].T  # [F, P, heads]
        weights = torch.softmax(scores, dim=1, dtype=torch.float32)

        mean_patch = weights.to(x.dtype).transpose(1, 2) @ x  # [F, heads, H]
        value = torch.einsum("fhc,hwc->fhw", mean_patch, value_weight.view(per_head)).flatten(1) + value_bias  # [F, H]
        return self.out_proj(value), weights.mean(dim=2)


class _Mlp(nn.Module):
    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden, intermediate)
        self.fc2 = nn.Linear(intermediate, hidden)

    def forward(self, y: Tensor) -> Tensor:
        wide: Tensor = self.fc1(y)
        narrow: Tensor = self.fc2(nn.functional.gelu(wide, approximate="tanh"))
        return narrow
