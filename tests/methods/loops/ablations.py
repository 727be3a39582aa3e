"""FastVID with one of its parts replaced, as in the paper's tables 2 and 4."""

from collections.abc import Sequence

from torch import Tensor

import reference

from .common import CuFrames, Result, result, videos
from .prunevid import dpc_knn


def fixed_segments(num_frames: int, count: int) -> list[list[int]]:
    """Frames `floor(s F / count)` to `floor((s+1) F / count) - 1` for each s; empty segments are left out."""
    bounds = [s * num_frames // count for s in range(count + 1)]
    return [list(range(bounds[s], bounds[s + 1])) for s in range(count) if bounds[s] < bounds[s + 1]]


def segments_of(features: Tensor, segmentation: str, count: int, tau: float, num_neighbors: int) -> list[list[int]]:
    """A video's segments as ascending frames, from its features `[F, G]`; clusters need not be contiguous."""
    if segmentation == "fixed":
        return fixed_segments(len(features), count)
    if segmentation == "cluster":
        return dpc_knn(features.double(), min(count, len(features)), num_neighbors)
    cuts = reference.select_cuts(reference.quantised_transitions(features), count, tau)
    return [list(range(start, end)) for start, end in reference.segments_between(cuts, len(features))]


def targets_of(x: Tensor, candidates: Sequence[int], count: int, merging: str, num_neighbors: int) -> list[int]:
    """Positions in a frame `[N, D]` that the segment's tokens merge into, ascending.

    "uniform": every `max(1, floor(M / count))`-th of the M candidates, the first `count`; else the density peaks.
    """
    if merging == "uniform":
        return list(candidates[:: max(1, len(candidates) // count)][:count])
    raw = reference.squared_distances(x[list(candidates)])
    s = reference.mean_squared_neighbour_distance(raw, num_neighbors, x.shape[1])
    scores = reference.peak_scores(reference.squared_delta(raw, s), s, x.shape[1])
    return [candidates[rank] for rank in reference.density_peaks(scores, count)]


def fastvid(
    tokens: Tensor,
    attn: Tensor | None,
    frame_features: Tensor | None,
    cu_frames: CuFrames,
    ratio: float,
    *,
    segmentation: str = "dyseg",
    merging: str = "dtm",
    min_segments: int = 8,
    tau: float = 0.9,
    dtm_ratio: float = 0.4,
    anchor_interval: int = 4,
    beta: float = 0.6,
    num_neighbors: int = 4,
) -> Result:
    """SPEC's method, budgets, salient tokens and pools included, except for what these two arguments replace.

    `segmentation`: "fixed", `min_segments` equal parts; "cluster", `min_segments` clusters of the unchanged
    frame features (DPC-kNN with `num_neighbors`), where each cluster is one segment with its frames in order.
    `merging`: "uniform", evenly spaced targets in place of density peaks; "cluster", peaks and joined tokens as in
    DTM, but a row is the plain mean of the peak and what joined it (Eq. 5 with beta = 0), and its position is lost:
    the means of a segment, by anchor frame and peak, are appended, at its C last flat indices that are not salient.
    """
    if attn is None:
        raise ValueError("fastvid needs attn")
    _, size, dim = tokens.shape
    count = reference.tokens_per_frame(size, ratio)
    features = reference.mean_frame_features(tokens) if frame_features is None else frame_features
    rows: dict[int, Tensor] = {}
    for start, x in videos(tokens, cu_frames):
        flat = x.flatten(0, 1)
        video_features = features[start : start + len(x)]
        for frames in segments_of(video_features, segmentation, min_segments, tau, num_neighbors):
            budget = reference.segment_budget(len(frames), size, count, dtm_ratio, anchor_interval)
            salient = [
                frame * size + n
                for frame, share in zip(frames, budget.salient_per_frame, strict=True)
                for n in reference.salient_tokens(attn[start + frame], share)
            ]
            others = [frame * size + n for frame in frames for n in range(size) if frame * size + n not in salient]
            context: dict[int, Tensor] = {}
            for frame, share in zip(frames, budget.context_per_frame, strict=True):
                if share == 0:
                    continue
                candidates = [index - frame * size for index in others if index // size == frame]
                chosen = targets_of(x[frame], candidates, share, merging, num_neighbors)
                targets = [frame * size + n for n in chosen]
                pool = [index for index in others if index not in targets]
                weight = 0.0 if merging == "cluster" else beta
                similarity = reference.similarities(flat[pool], flat[targets])
                merged = reference.aggregate(flat[targets], flat[pool], reference.assign(similarity), weight)
                context |= zip(targets, merged, strict=True)
            places = others[len(others) - len(context) :] if merging == "cluster" else list(context)
            for index, row in [*((i, flat[i]) for i in salient), *zip(places, context.values(), strict=True)]:
                rows[start * size + index] = row
    return result(rows, dim)
