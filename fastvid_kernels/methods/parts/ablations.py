"""Replacements for parts of FastVID, from the ablations of its paper (tables 2 and 4)."""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from torch import Tensor

from fastvid_kernels.config import PruneConfig
from fastvid_kernels.eager.budgets import Segment, plan_segment
from fastvid_kernels.eager.dyseg import mean_frame_features, segment_lengths, transition_similarity
from fastvid_kernels.methods.method import VideoTokens
from fastvid_kernels.methods.parts.clusters import density_peak_clusters


def segments(video: VideoTokens, segmentation: str, config: PruneConfig) -> tuple[Tensor, list[Segment]]:
    """The order of the frames, int64 `[F]`, and the segments of the frames in that order, with their budgets."""
    frames, n, _ = video.tokens.shape
    features = mean_frame_features(video.tokens) if video.given_features is None else video.given_features
    order = torch.arange(frames, device=video.tokens.device)
    if segmentation == "dynamic":
        lengths = segment_lengths(transition_similarity(features).tolist(), config.min_segments, config.tau)
    elif segmentation == "fixed":
        bounds = [place * frames // config.min_segments for place in range(config.min_segments + 1)]
        lengths = [end - start for start, end in pairwise(bounds) if end > start]
    else:
        _, cluster = density_peak_clusters(features, min(config.min_segments, frames), config.num_neighbors)
        order = torch.sort(cluster, stable=True).indices
        lengths = torch.bincount(cluster).tolist()
    starts = accumulate(lengths[:-1], initial=0)
    return order, [plan_segment(start, length, n, config) for start, length in zip(starts, lengths, strict=True)]


def evenly_placed_anchors(salient: Tensor, plan: list[Segment]) -> Tensor:
    """Take every max(1, floor(M / C))-th of an anchor frame's M candidates, up to C of them: bool `[F, N]`."""
    anchors = torch.zeros_like(salient)
    for segment in plan:
        for frame, count in zip(segment.anchor_frames, segment.n_context, strict=True):
            candidates = (~salient[frame]).nonzero().squeeze(1)
            if count > 0:
                anchors[frame, candidates[:: max(1, len(candidates) // count)][:count]] = True
    return anchors


def last_places(salient: Tensor, anchors: Tensor, plan: list[Segment]) -> Tensor:
    """The last places of each segment without a salient token, as many as it has anchors: bool `[F, N]`."""
    places = torch.zeros_like(salient)
    for segment in plan:
        frames = slice(segment.start, segment.end)
        free = (~salient[frames]).flatten().nonzero().squeeze(1)
        count = int(anchors[frames].sum())
        places[frames].view(-1)[free[len(free) - count :]] = True
    return places
