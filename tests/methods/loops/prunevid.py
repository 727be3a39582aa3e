"""Density-peak clusters, and prunevid, which replaces such clusters by their means (its first stage)."""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

import reference

from .common import CuFrames, Result, cosine, first_largest, mean, result, videos

Rows = dict[int, Tensor]
"""Rows `[D]` by flat index."""


def dpc_knn(points: Tensor, count: int, num_neighbors: int) -> list[list[int]]:
    """Clusters of `points [M, C]` by density peaks, each as ascending places, in the order of their centres.

    The `count` centres are SPEC section 4's peaks among all M points (`min(num_neighbors, M)` neighbours, the
    point itself included). A centre is in its own cluster; any other point is in the cluster of the nearest centre
    by Euclidean distance (of equal ones, the first). So no cluster is empty.
    """
    raw = reference.squared_distances(points)
    s = reference.mean_squared_neighbour_distance(raw, num_neighbors, points.shape[1])
    scores = reference.peak_scores(reference.squared_delta(raw, s), s, points.shape[1])
    centers = reference.density_peaks(scores, count)
    clusters: list[list[int]] = [[] for _ in centers]
    for place in range(len(points)):
        if place in centers:
            nearest = centers.index(place)
        else:
            nearest = first_largest([-raw[place, center].item() for center in centers])
        clusters[nearest].append(place)
    return clusters


def labels_of(clusters: Sequence[Sequence[int]], size: int) -> list[int]:
    """The cluster of every place."""
    labels = [0] * size
    for label, members in enumerate(clusters):
        for place in members:
            labels[place] = label
    return labels


def runs(labels: Sequence[int]) -> list[tuple[int, int]]:
    """Half-open ranges of equal neighbouring labels."""
    starts = [place for place in range(len(labels)) if place == 0 or labels[place] != labels[place - 1]]
    return list(zip(starts, [*starts[1:], len(labels)], strict=True))


def refined(labels: Sequence[int]) -> list[int]:
    """Labels as the published code smooths them: a cluster keeps only its longest runs, of two frames or more.

    From the left, each stretch of frames that lost its label takes the label of the longer neighbouring run (of equal
    ones, the left), or label 0 if it has no neighbour.
    """
    lengths: dict[int, int] = {}
    for start, end in runs(labels):
        lengths[labels[start]] = max(lengths.get(labels[start], 0), end - start)
    new = list(labels)
    for start, end in runs(labels):
        longest = lengths[labels[start]]
        if longest == 1 or end - start < longest:
            new[start:end] = [-1] * (end - start)
    for start, end in runs(new):
        if new[start] == -1:
            left = [run for run in runs(new) if run[1] == start]
            right = [run for run in runs(new) if run[0] == end]
            neighbours = sorted(left + right, key=lambda run: (run[0] - run[1], run[0]))
            new[start:end] = [new[neighbours[0][0]] if neighbours else 0] * (end - start)
    return new


def condensed(rows: Rows, num_neighbors: int) -> Rows:
    """Up to 14 rows unchanged; n > 14 rows as the means of `floor(n / 2)` clusters, each at its first member."""
    if len(rows) <= 14:
        return rows
    indices = sorted(rows)
    points = torch.stack([rows[index] for index in indices])
    clusters = dpc_knn(points, len(indices) // 2, num_neighbors)
    return {indices[members[0]]: mean([points[place] for place in members]) for members in clusters}


def is_static(window: Tensor, place: int) -> bool:
    """Whether the mean cosine at `place` over all pairs of a window's frames exceeds 0.8; never for a single frame."""
    cosines = [cosine(a[place], b[place]) for a, b in combinations(list(window), 2)]
    return bool(cosines) and sum(cosines) / len(cosines) > 0.8


def prunevid(
    tokens: Tensor,
    attn: Tensor | None,
    frame_features: Tensor | None,
    cu_frames: CuFrames,
    ratio: float,
    *,
    num_neighbors: int = 5,
    refine: bool = False,
) -> Result:
    """PruneVid's first stage; `ratio`, `attn` and `frame_features` are not used.

    The frames' mean tokens (float64) fall into `max(1, floor(F / 4))` clusters; a window is a run of frames of one
    cluster. `refine` smooths the labels first, as the published code does. In a window, each static position becomes
    its mean over the window's frames, at its place in the first of them; these means are condensed as one set. The
    other tokens of each frame are condensed as a set of their own.
    """
    _, size, dim = tokens.shape
    output: Rows = {}
    for start, x in videos(tokens, cu_frames):
        means = torch.stack([mean(list(frame)) for frame in x])
        labels = labels_of(dpc_knn(means, max(1, len(x) // 4), num_neighbors), len(x))
        for first, after in runs(refined(labels) if refine else labels):
            window = x[first:after]
            static = [place for place in range(size) if is_static(window, place)]
            offset = (start + first) * size
            averages = {offset + place: mean([frame[place] for frame in window]) for place in static}
            output |= condensed(averages, num_neighbors)
            for number, frame in enumerate(window):
                offset = (start + first + number) * size
                moving = {offset + place: frame[place] for place in range(size) if place not in static}
                output |= condensed(moving, num_neighbors)
    return result(output, dim)
