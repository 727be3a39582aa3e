"""The whole method on one or several videos; every intermediate result is kept (SPEC sections 1-6)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from .budgets import SegmentBudget, segment_budget, tokens_per_frame
from .dyseg import mean_frame_features, quantised_transitions, segments_between, select_cuts
from .merge import aggregate, anchor_weights, assign, pool_of_anchor_frame, similarities
from .peaks import (
    density_peaks,
    mean_squared_neighbour_distance,
    peak_scores,
    squared_delta,
    squared_distances,
)
from .rounding import round_once
from .salient import salient_tokens


@dataclass
class AnchorFrame:
    """What happened in one anchor frame. Index lists are int64 tensors, ascending; the rest is float64.

    Raw squared distances are undivided sums over channels, D times SPEC's `d_ij**2` and `delta_i**2`.
    """

    frame: int
    """Global frame index."""
    segment: int
    """Index into `PruneResult.segments`."""
    candidates: Tensor
    """`[M]`, in-frame indices of the tokens ATS did not take."""
    squared_distances: Tensor
    """`[M, M]`, raw, between candidates."""
    s: Tensor
    """`[M]`, minus the logarithm of Eq. 3's density."""
    squared_delta: Tensor
    """`[M]`, raw."""
    scores: Tensor
    """`[M]`, `log(delta) - s`."""
    anchors: Tensor
    """`[A]`, in-frame indices."""
    pool: Tensor
    """`[P]`, flat indices."""
    similarities: Tensor
    """`[P, A]`."""
    assignment: Tensor
    """`[P]`, int64 indices into `anchors`, one per pool token."""
    weights: Tensor
    """`[A]`, weight of the anchor in its merged row; where it is 1 the anchor is kept unchanged."""
    merged: Tensor
    """`[A, D]`, merged rows before rounding."""


@dataclass
class PruneResult:
    """Pruned tokens and all intermediate results. Frames and flat indices (`frame * N + position`) are global."""

    tokens: Tensor
    """`[F*K, D]` float64, before rounding to the input's dtype."""
    indices: Tensor
    """`[F*K]` int64 flat indices, strictly ascending."""
    salient: Tensor
    """int64 flat indices of the tokens kept by ATS, ascending."""
    segments: list[tuple[int, int]]
    """Frame ranges `(start, end)`, of all videos in order."""
    budgets: list[SegmentBudget]
    """One per segment."""
    transitions: list[list[int | float]]
    """Per video, its quantised transitions (`reference.quantised_transitions`)."""
    anchor_frames: list[AnchorFrame]
    """Anchor frames that have anchors, by ascending frame."""
    source: Tensor = field(repr=False)
    """`[F*K, D]`, the input's rows at `indices`, in the input's dtype."""
    blended: Tensor = field(repr=False)
    """`[F*K]` bool, rows that are a mixture (w < 1) and not a copy of their source."""

    def rounded(self) -> Tensor:
        """`tokens` in the input's dtype: mixtures rounded once, all other rows copied bit for bit."""
        rounded = round_once(self.tokens, self.source.dtype)
        return torch.where(self.blended[:, None], rounded, self.source)


def prune(
    tokens: Tensor,
    attn: Tensor,
    frame_features: Tensor | None = None,
    cu_frames: Sequence[int] | Tensor | None = None,
    *,
    retention_ratio: float = 0.1,
    min_segments: int = 8,
    tau: float = 0.9,
    dtm_ratio: float = 0.4,
    anchor_interval: int = 4,
    beta: float = 0.6,
    num_neighbors: int = 4,
) -> PruneResult:
    """FastVID in float64, step by step.

    `tokens [F, N, D]` (float64, float32, bfloat16 or float16), `attn [F, N]`, `frame_features [F, G]` (each
    frame's mean token by default), `cu_frames [B+1]` where each video starts (a single video by default).
    Hyperparameters as in SPEC's table; they are not validated here. Raises ValueError if K = 0 or if
    `cu_frames` is not an ascending sequence from 0 to F.
    """
    num_frames, num_tokens, dim = tokens.shape
    kept_per_frame = tokens_per_frame(num_tokens, retention_ratio)
    features = mean_frame_features(tokens) if frame_features is None else frame_features
    tokens64 = tokens.double()

    segments: list[tuple[int, int]] = []
    transitions: list[list[int | float]] = []
    for first, last in video_ranges(cu_frames, num_frames):
        video_transitions = quantised_transitions(features[first:last])
        cuts = select_cuts(video_transitions, min_segments, tau)
        transitions.append(video_transitions)
        segments += [(first + start, first + end) for start, end in segments_between(cuts, last - first)]

    budgets: list[SegmentBudget] = []
    salient: list[int] = []
    anchor_frames: list[AnchorFrame] = []
    for segment_index, segment in enumerate(segments):
        start, end = segment
        budget = segment_budget(end - start, num_tokens, kept_per_frame, dtm_ratio, anchor_interval)
        segment_salient = [
            frame * num_tokens + index
            for frame, count in zip(range(start, end), budget.salient_per_frame, strict=True)
            for index in salient_tokens(attn[frame], count)
        ]
        budgets.append(budget)
        salient += segment_salient
        for position in budget.anchor_positions:
            num_anchors = budget.context_per_frame[position]
            if num_anchors > 0:
                record = merge_into_anchor_frame(
                    tokens64,
                    frame=start + position,
                    segment=segment,
                    segment_index=segment_index,
                    salient=segment_salient,
                    num_anchors=num_anchors,
                    beta=beta,
                    num_neighbors=num_neighbors,
                )
                anchor_frames.append(record)

    merged_rows: dict[int, Tensor] = {}
    weights: dict[int, float] = {}
    for record in anchor_frames:
        flat_anchors = (record.frame * num_tokens + record.anchors).tolist()
        merged_rows |= zip(flat_anchors, record.merged, strict=True)
        weights |= zip(flat_anchors, record.weights.tolist(), strict=True)

    kept = sorted([*salient, *merged_rows])
    indices = index_tensor(kept)
    pruned = tokens64.reshape(num_frames * num_tokens, dim)[indices]
    for row, index in enumerate(kept):
        if index in merged_rows:
            pruned[row] = merged_rows[index]
    return PruneResult(
        tokens=pruned,
        indices=indices,
        salient=index_tensor(salient),
        segments=segments,
        budgets=budgets,
        transitions=transitions,
        anchor_frames=anchor_frames,
        source=tokens.reshape(num_frames * num_tokens, dim)[indices],
        blended=torch.tensor([weights.get(index, 1.0) < 1 for index in kept], dtype=torch.bool),
    )


def index_tensor(indices: Sequence[int]) -> Tensor:
    """`indices` as an int64 tensor, even if there are none."""
    return torch.tensor(indices, dtype=torch.int64)


def video_ranges(cu_frames: Sequence[int] | Tensor | None, num_frames: int) -> list[tuple[int, int]]:
    """Frame ranges of the videos of a ragged batch; ValueError if they do not tile the frames in order."""
    if cu_frames is None:
        return [(0, num_frames)]
    boundaries = [int(boundary) for boundary in cu_frames]
    if boundaries != sorted(boundaries) or boundaries[:1] != [0] or boundaries[-1] != num_frames:
        raise ValueError(f"cu_frames must ascend from 0 to {num_frames}, got {boundaries}")
    return list(pairwise(boundaries))


def merge_into_anchor_frame(
    tokens: Tensor,
    *,
    frame: int,
    segment: tuple[int, int],
    segment_index: int,
    salient: Sequence[int],
    num_anchors: int,
    beta: float,
    num_neighbors: int,
) -> AnchorFrame:
    """DTM in one anchor frame: its peaks, and the segment's tokens merged into them (SPEC sections 4-5).

    `tokens [F, N, D]` float64; `salient` are the flat indices of the segment's salient tokens.
    """
    num_tokens, dim = tokens.shape[1:]
    first_token = frame * num_tokens
    taken = set(salient)
    candidates = index_tensor([index for index in range(num_tokens) if first_token + index not in taken])
    raw = squared_distances(tokens[frame, candidates])
    s = mean_squared_neighbour_distance(raw, num_neighbors, dim)
    delta = squared_delta(raw, s)
    scores = peak_scores(delta, s, dim)
    anchors = candidates[density_peaks(scores, num_anchors)]

    flat_anchors = (first_token + anchors).tolist()
    pool = index_tensor(pool_of_anchor_frame(segment, num_tokens, salient, flat_anchors))
    anchor_rows = tokens[frame, anchors]
    pool_rows = tokens.reshape(-1, dim)[pool]
    similarity = similarities(pool_rows, anchor_rows)
    assignment = assign(similarity)
    return AnchorFrame(
        frame=frame,
        segment=segment_index,
        candidates=candidates,
        squared_distances=raw,
        s=s,
        squared_delta=delta,
        scores=scores,
        anchors=anchors,
        pool=pool,
        similarities=similarity,
        assignment=assignment,
        weights=anchor_weights(assignment, num_anchors, beta),
        merged=aggregate(anchor_rows, pool_rows, assignment, beta),
    )
