"""Substitutes for [CLS] attention, for models whose vision tower has no head that gives it.

They are not part of the paper, which does not tell how well FastVID works with them; so FastVID uses one only if the
user chooses it. The global features of frames are then their mean tokens (`frame_features=None` of `prune`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def norm(patches: Tensor) -> Tensor:
    """The L2 norm of each patch: `[F, P, H]` -> float32 `[F, P]`.

    Large where the vision model's features are strong; in some towers, a few background patches are strong too.
    """
    norms: Tensor = torch.linalg.vector_norm(patches, dim=2, dtype=torch.float32)
    return norms


def similarity(patches: Tensor) -> Tensor:
    """The cosine of each patch to its frame's mean patch: `[F, P, H]` -> float32 `[F, P]`, in -1 to 1.

    Large where a patch is typical of its frame.
    """
    patches = patches.float()
    return functional.cosine_similarity(patches, patches.mean(dim=1, keepdim=True), dim=2)


def uniform(patches: Tensor) -> Tensor:
    """No preference: `[F, P, H]` -> float32 `[F, P]`. Salient tokens are then the first of each frame, its upper rows.

    The values are zeros, because only zeros stay exactly equal through any pooling.
    """
    return torch.zeros(patches.shape[:2], dtype=torch.float32, device=patches.device)


ATTENTION_SUBSTITUTES: dict[str, Callable[[Tensor], Tensor]] = {
    "norm": norm,
    "similarity": similarity,
    "uniform": uniform,
}
"""Functions by name: patches `[F, P, H]` that enter the projector -> attention, float32 `[F, P]`, to be pooled."""
