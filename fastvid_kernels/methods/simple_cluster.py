"""Spherical k-means over a whole video, on tokens rotated by their frame, row and column."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastvid_kernels.config import PruneConfig
from fastvid_kernels.methods.method import Kept, Method, VideoTokens
from fastvid_kernels.methods.parts.groups import group_means, most_similar
from fastvid_kernels.methods.parts.ranking import normalized

_ROUNDS = 10
_BASE = 10_000.0


def simple_cluster(video: VideoTokens, config: PruneConfig) -> Kept:
    """Group the video's tokens into F * K clusters; each becomes the mean of its tokens, at the first one's place."""
    frames, n, _ = video.tokens.shape
    clusters = frames * config.kept_per_frame(n)
    rows = video.exact.flatten(0, 1)
    if clusters == len(rows):
        return Kept(video.tokens.flatten(0, 1), torch.arange(len(rows), device=rows.device))
    points = normalized(_rotated(video.exact).flatten(0, 1).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
    centers = points[torch.arange(clusters, device=points.device) * len(points) // clusters]
    cluster = most_similar(points, centers)
    for _ in range(_ROUNDS - 1):
        means, counts = group_means(points, cluster, clusters)
        centers = torch.where(counts[:, None] > 0, normalized(means), centers)
        cluster = most_similar(points, centers)
    means, counts = group_means(rows, cluster, clusters)
    first = torch.full((clusters,), len(rows), device=rows.device)
    first = first.scatter_reduce(0, cluster, torch.arange(len(rows), device=rows.device), "amin")[counts > 0]
    order = torch.argsort(first)
    return Kept(means[counts > 0][order].to(video.tokens.dtype), first[order])


def _rotated(tokens: Tensor) -> Tensor:
    """Rotate tokens `[F, N, D]` as RoPE does: a third of the channels by frame, a third by row, a third by column."""
    frames, n, dim = tokens.shape
    pairs = dim // 6
    width = math.isqrt(n - 1) + 1
    place = torch.arange(n, device=tokens.device)
    frame = torch.arange(frames, device=tokens.device)[:, None].expand(frames, n)
    frequencies = _BASE ** (-torch.arange(pairs, device=tokens.device, dtype=torch.float64) / max(1, pairs))
    rotated = tokens.clone()
    for axis, position in enumerate((frame, place // width, place % width)):
        angle = (position[..., None] * frequencies).to(tokens.dtype)
        own = slice(2 * pairs * axis, 2 * pairs * (axis + 1))
        even, odd = tokens[..., own].unflatten(-1, (pairs, 2)).unbind(-1)
        turned = (even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos())
        rotated[..., own] = torch.stack(turned, -1).flatten(-2)
    return rotated


METHOD = Method(
    "simple_cluster",
    simple_cluster,
    source="spherical k-means, a baseline of token merging",
    deviations="The tokens of a frame are assumed to form a square grid, row by row. An empty cluster gives no token, "
    "so fewer than F * K tokens may be left.",
    rows=None,
)
