"""The backward pass of a prune: the gradient of the merge, with the choice of tokens and anchors as constants."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvid_kernels.config import PruneConfig
from fastvid_kernels.eager.budgets import Segment
from fastvid_kernels.eager.merge import anchor_weights, nearest_anchors
from fastvid_kernels.eager.pipeline import choose
from fastvid_kernels.eager.products import full_precision


def prune_backward(
    grad: Tensor,
    tokens: Tensor,
    attn: Tensor,
    frame_features: Tensor | None,
    video_starts: Sequence[int],
    config: PruneConfig,
) -> Tensor:
    """Gradient of the tokens, from checked arguments; it repeats the selection and assignment of `prune`.

    Args:
        grad: `[F * K, D]`, gradient of the kept tokens, in the dtype of the tokens.
        tokens: `[F, N, D]`.
        attn: `[F, N]`.
        frame_features: `[F, G]`, or None for the frames' mean tokens.
        video_starts: 0 = first frame of the first video, ..., F; ascending.
        config: the hyperparameters.

    Returns:
        `[F, N, D]`, in the dtype of the tokens: terms added in ascending order of anchor frames in float32 (float64
        for float64 tokens), and rounded once.
    """
    with torch.no_grad(), full_precision(tokens.device.type):
        choice = choose(tokens, attn, frame_features, video_starts, config)
        anchors = choice.anchors
        # The row of `grad` that belongs to each kept token.
        row = choice.kept.flatten().cumsum(0) - 1
        gradient = torch.zeros_like(tokens, memory_format=torch.contiguous_format)
        flat = gradient.flatten(0, 1)
        first_slot = 0
        for segment in choice.plan:
            slots = slice(first_slot, first_slot + sum(segment.n_context))
            first_slot = slots.stop
            if slots.start == slots.stop:
                continue
            anchor_grad = grad[row[anchors[slots]]]
            _add_merged(flat, anchor_grad, tokens, choice.salient, choice.kept, anchors[slots], segment, config)
        salient = choice.salient.flatten().nonzero().squeeze(1)
        flat[salient] = grad[row[salient]]
        return gradient


def _add_merged(
    gradient: Tensor,
    anchor_grad: Tensor,
    tokens: Tensor,
    salient: Tensor,
    kept: Tensor,
    anchors: Tensor,
    segment: Segment,
    config: PruneConfig,
) -> None:
    """Write the gradient of one segment's tokens into `gradient` `[F * N, D]`; that of salient ones is left zero.

    Args:
        gradient: receives it.
        anchor_grad: `[C, D]`, gradient of the merged anchors.
        tokens, salient, kept: as `nearest_anchors` takes them.
        anchors: int64 `[C]`, flat indices of the segment's anchors, ascending.
        segment: their segment.
        config: the hyperparameters.
    """
    n = tokens.shape[1]
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    anchor_tokens = tokens[anchors // n, anchors % n].to(dtype)
    # int32 to save memory: there is one for each token of the segment and each of its anchor frames.
    blocks = [
        (frames, torch.where(pool, nearest, -1).int())
        for frames, _, nearest, pool in nearest_anchors(tokens, salient, kept, anchor_tokens, segment)
    ]
    counts = sum(torch.bincount(nearest[nearest >= 0], minlength=len(anchors)) for _, nearest in blocks)
    assert isinstance(counts, Tensor)
    weight, mean_share = anchor_weights(counts, float(config.beta), dtype)
    # For each anchor, the term that it gets itself; then the term that each token gets that joined it.
    terms = torch.cat([weight * anchor_grad, mean_share * anchor_grad])
    changed = (weight < 1).squeeze(1)
    anchor_frames = [f for f, count in zip(segment.anchor_frames, segment.n_context, strict=True) if count > 0]
    for frames, nearest in blocks:
        # `[A, rows]`: the row of `terms` that each token gets from each anchor frame, or -1.
        term = torch.where((nearest >= 0) & changed[nearest], nearest + len(anchors), -1)
        for position, frame in enumerate(anchor_frames):
            if frame in frames:
                own = ((anchors // n) == frame).nonzero().squeeze(1)
                term[position, anchors[own] - frames.start * n] = own.int()
        bags = term.T
        given = bags >= 0
        ends = given.sum(1).cumsum(0)
        # embedding_bag adds the terms of a bag in order, which is here that of the anchor frames.
        sums = F.embedding_bag(bags[given].long(), terms, ends - given.sum(1), mode="sum")
        gradient[frames.start * n : frames.stop * n] = sums
