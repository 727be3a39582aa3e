"""Means of groups of tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fastvid_kernels.methods.parts.ranking import normalized, settled


def group_means(rows: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Means of the rows of each group, summed in the order of the rows so that every run gives the same result.

    Args:
        rows: `[P, D]`, float32 or float64.
        group: int64 `[P]`, the group of each row.
        groups: number of groups.

    Returns:
        `[groups, D]`, zeros where a group is empty; and int64 `[groups]`, how many rows each has.
    """
    counts = torch.bincount(group, minlength=groups)
    members = torch.sort(group, stable=True).indices
    sums = functional.embedding_bag(members, rows, counts.cumsum(0) - counts, mode="sum")
    return sums / counts.clamp(min=1)[:, None], counts


def most_similar(rows: Tensor, targets: Tensor) -> Tensor:
    """For each row of `[P, D]`, the target of `[C, D]` with the largest cosine: int64 `[P]`; ties go to the first."""
    return settled(normalized(rows.double()) @ normalized(targets.double()).T).argmax(1)
