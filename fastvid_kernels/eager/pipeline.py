"""The stages of the eager backend, put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from fastvid_kernels.config import PruneConfig
from fastvid_kernels.eager.budgets import Segment, plan_segment
from fastvid_kernels.eager.dyseg import mean_frame_features, segment_lengths, transition_similarity
from fastvid_kernels.eager.merge import Joined, merge_tokens
from fastvid_kernels.eager.peaks import anchor_mask
from fastvid_kernels.eager.products import full_precision
from fastvid_kernels.eager.salient import salient_mask

# Elements of the distance matrices in memory at once, for a video of any length.
_DISTANCE_ELEMENTS = 2**19


@dataclass
class Trace:
    """Why tokens were kept, and where the others went.

    Attributes:
        plan: the segments, in order.
        anchors: int64 `[C]`, flat indices of the anchors, ascending.
        joined: which token joined which anchor, block by block.
    """

    plan: list[Segment] = field(default_factory=list)
    anchors: Tensor | None = None
    joined: list[Joined] = field(default_factory=list)


@dataclass(frozen=True)
class Choice:
    """What a prune keeps.

    Attributes:
        plan: the segments, in order.
        salient: bool `[F, N]`, the tokens kept for their attention.
        kept: bool `[F, N]`, the salient tokens and the anchors.
        anchors: int64 `[C]`, flat indices of the anchors, ascending.
    """

    plan: list[Segment]
    salient: Tensor
    kept: Tensor
    anchors: Tensor


def prune(
    tokens: Tensor,
    attn: Tensor,
    frame_features: Tensor | None,
    video_starts: Sequence[int],
    config: PruneConfig,
    trace: Trace | None = None,
) -> tuple[Tensor, Tensor]:
    """Prune checked arguments.

    Args:
        tokens: `[F, N, D]`.
        attn: `[F, N]`.
        frame_features: `[F, G]`, or None for the frames' mean tokens.
        video_starts: 0 = first frame of the first video, ..., F; ascending.
        config: the hyperparameters.
        trace: receives the reasons.

    Returns:
        The kept tokens `[F * K, D]` and their flat indices, int64 `[F * K]`, ascending.
    """
    with torch.no_grad(), full_precision(tokens.device.type):
        choice = choose(tokens, attn, frame_features, video_starts, config)
        kept, anchors = choice.kept, choice.anchors
        indices = kept.flatten().nonzero().squeeze(1)
        output = tokens.flatten(0, 1).index_select(0, indices) if tokens.is_contiguous() else tokens[kept]

        joined = None if trace is None else trace.joined
        merged, changed = merge_tokens(tokens, choice.salient, kept, anchors, choice.plan, float(config.beta), joined)
        rows = torch.searchsorted(indices, anchors)
        output[rows[changed]] = merged.to(output.dtype)[changed]
        if trace is not None:
            trace.plan, trace.anchors = choice.plan, anchors
        return output, indices


def choose(
    tokens: Tensor,
    attn: Tensor,
    frame_features: Tensor | None,
    video_starts: Sequence[int],
    config: PruneConfig,
) -> Choice:
    """The tokens to keep, and why; arguments as in `prune`."""
    if frame_features is None:
        frame_features = mean_frame_features(tokens)
    plan = plan_videos(frame_features, video_starts, tokens.shape[1], config)
    n_salient = torch.tensor([count for segment in plan for count in segment.n_salient], device=tokens.device)
    salient = salient_mask(attn, n_salient)
    is_anchor = density_peaks(tokens, salient, plan, config)
    return Choice(plan, salient, salient | is_anchor, is_anchor.flatten().nonzero().squeeze(1))


def plan_videos(
    frame_features: Tensor, video_starts: Sequence[int], tokens_per_frame: int, config: PruneConfig
) -> list[Segment]:
    """Segments and budgets of every video, in order."""
    similarity = transition_similarity(frame_features).tolist()
    plan = []
    for start, end in pairwise(video_starts):
        for length in segment_lengths(similarity[start : end - 1], config.min_segments, config.tau):
            plan.append(plan_segment(start, length, tokens_per_frame, config))
            start += length
    return plan


def density_peaks(tokens: Tensor, salient: Tensor, plan: list[Segment], config: PruneConfig) -> Tensor:
    """Which tokens are anchors, bool `[F, N]`: a few anchor frames at a time, to bound the memory."""
    budgets = [budget for segment in plan for budget in zip(segment.anchor_frames, segment.n_context, strict=True)]
    budgets = [(frame, count) for frame, count in budgets if count > 0]
    mask = torch.zeros_like(salient)
    step = max(1, _DISTANCE_ELEMENTS // tokens.shape[1] ** 2)
    for first in range(0, len(budgets), step):
        frames = [frame for frame, _ in budgets[first : first + step]]
        n_context = torch.tensor([count for _, count in budgets[first : first + step]], device=tokens.device)
        mask[frames] = anchor_mask(tokens, frames, n_context, ~salient[frames], config.num_neighbors)
    return mask
