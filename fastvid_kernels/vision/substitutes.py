"""What can stand in for [CLS] attention where a model's vision tower has no such head.

None of these is the paper's, and none is ever chosen for the user: how well FastVID works with them is not known
from the paper. The frames' global features are then their mean tokens (`frame_features=None` of `prune`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def norm(patches: Tensor) -> Tensor:
    """The L2 norm of each patch: `[F, P, H]` -> float32 `[F, P]`.

    Large where the vision model makes a feature strong; some towers do so in a few background patches too.
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
    """No preference: `[F, P, H]` -> float32 `[F, P]`. Salient tokens are then each frame's first, its upper rows.

    All zeros, because zeros alone stay exactly equal through any pooling.
    """
    return torch.zeros(patches.shape[:2], dtype=torch.float32, device=patches.device)


ATTENTION_SUBSTITUTES: dict[str, Callable[[Tensor], Tensor]] = {
    "norm": norm,
    "similarity": similarity,
    "uniform": uniform,
}
"""By name: patches `[F, P, H]` as they enter the projector -> attention, float32 `[F, P]`, to be pooled to tokens."""
