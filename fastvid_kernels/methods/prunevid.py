"""PruneVid's first stage: average static places over time, then average similar tokens."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from fastvid_kernels.config import PruneConfig
from fastvid_kernels.methods.method import Kept, Method, VideoTokens
from fastvid_kernels.methods.parts.clusters import density_peak_clusters
from fastvid_kernels.methods.parts.groups import group_means
from fastvid_kernels.methods.parts.ranking import normalized

# Sets of at most this many tokens are not merged.
_FEW = 14
# Neighbours in the density, the point itself included.
_NEIGHBORS = 7


def prunevid(video: VideoTokens, config: PruneConfig, *, threshold: float = 0.8, merged_to: float = 0.5) -> Kept:
    """Merge each static place of a window of frames into one token, then each set of tokens into clusters.

    Args:
        video: the video.
        config: not read: how much is kept follows from the options and the video.
        threshold: a place is static in a window if the mean cosine of its tokens exceeds this.
        merged_to: number of clusters that a set of tokens becomes, as a fraction of the set's size.
    """
    frames, n, _ = video.tokens.shape
    _, cluster = density_peak_clusters(video.exact.mean(1), max(1, frames // 4), _NEIGHBORS)
    borders = (cluster.diff() != 0).nonzero().squeeze(1) + 1
    sets: list[tuple[Tensor, Tensor]] = []
    for own in torch.arange(frames, device=borders.device).tensor_split(borders.cpu()):
        window = video.exact[own]
        static = _mean_pairwise_cosine(window) > threshold
        places = torch.arange(n, device=static.device)
        sets.append((window[:, static].mean(0), own[0] * n + places[static]))
        sets += [(frame[~static], number * n + places[~static]) for frame, number in zip(window, own, strict=True)]
    merged = [_merged(rows, indices, merged_to) for rows, indices in sets]
    rows, indices = (torch.cat(part) for part in zip(*merged, strict=True))
    order = torch.argsort(indices)
    return Kept(rows[order].to(video.tokens.dtype), indices[order])


def _mean_pairwise_cosine(window: Tensor) -> Tensor:
    """Mean cosine between the tokens of each place in a window `[L, N, D]`: float64 `[N]`, 0 for a single frame."""
    length = len(window)
    if length == 1:
        return torch.zeros(window.shape[1], dtype=torch.float64, device=window.device)
    z = normalized(window.double())
    return (z.sum(0).square().sum(-1) - z.square().sum((0, 2))) / (length * (length - 1))


def _merged(rows: Tensor, indices: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Cluster rows `[P, D]` with ascending indices `[P]`; return the means, and the indices of first members."""
    if len(rows) <= _FEW:
        return rows, indices
    clusters = max(1, int(len(rows) * share))
    _, cluster = density_peak_clusters(rows, clusters, _NEIGHBORS)
    means, _ = group_means(rows, cluster, clusters)
    first = torch.full((clusters,), len(rows), device=rows.device)
    first = first.scatter_reduce(0, cluster, torch.arange(len(rows), device=rows.device), "amin")
    return means, indices[first]


def _check(threshold: object = 0.8, merged_to: object = 0.5) -> None:
    for name, value, low, high in (("threshold", threshold, -1, 1), ("merged_to", merged_to, 0, 1)):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, got {value!r}")
        if not low <= float(value) <= high:
            raise ValueError(f"{name} must be in [{low}, {high}], got {value!r}")


METHOD = Method(
    "prunevid",
    prunevid,
    source="PruneVid, arXiv 2412.16117, its first stage",
    deviations="Windows end wherever neighbouring frames are of different clusters, where the published code smooths "
    "the clusters in time first. Its second stage, which prunes inside the language model by the question's "
    "attention, is left out.",
    rows=None,
    reads=(),
    check=_check,
)
