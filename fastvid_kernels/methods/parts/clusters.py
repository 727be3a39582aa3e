"""Clusters around density peaks (DPC-kNN)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvid_kernels.eager.peaks import anchor_mask, squared_distances
from fastvid_kernels.eager.products import full_precision


def density_peak_clusters(points: Tensor, clusters: int, num_neighbors: int) -> tuple[Tensor, Tensor]:
    """Clusters of points around the highest density peaks (Eq. 3-4 of FastVID, first by Rodriguez and Laio).

    Args:
        points: `[P, D]`.
        clusters: how many, 1 ... P.
        num_neighbors: neighbours in the density, the point itself included.

    Returns:
        int64 `[clusters]`, the points that are centers, ascending; and int64 `[P]`, the cluster of each point: that of
        the nearest center, the first of equally near ones.
    """
    everyone = torch.ones(1, len(points), dtype=torch.bool, device=points.device)
    with full_precision(points.device.type):
        count = torch.tensor([clusters], device=points.device)
        is_center = anchor_mask(points[None], [0], count, everyone, num_neighbors)[0]
        centers = is_center.nonzero().squeeze(1)
        nearest = squared_distances(points[None], [0])[0][:, centers].argmin(1)
    nearest[centers] = torch.arange(clusters, device=points.device)
    return centers, nearest
