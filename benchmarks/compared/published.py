"""The two published forms of FastVID, rebuilt as the baseline that speed claims are measured against.

Written anew from the structure of the authors' release: the same large tensor operations in the same dtypes,
the same Python loops, and the same points at which the host waits for the device. Nothing is made faster or
slower than in the release. What a language model needs besides (text, newline tokens, masks, rotary tables) is
left out, which favours the baseline.

* `llava_video_form` computes SPEC sections 1-6, frame by frame inside segment by segment.
* `onevision_form` is the parallelised variant: every frame's densities at once, then a loop over the
  segments.

SPEC section 8 lists where the second differs from the first. Both keep the release's limits: they fail for
fewer than `min_segments` frames and for a video without a cut; `llava_video_form` also fails where a segment
is left without salient or without context tokens (`dtm_ratio` 0 or 1). Neither checks its arguments.
"""

from itertools import pairwise

import torch
from torch import Tensor


def llava_video_form(
    tokens: Tensor,
    attn: Tensor,
    frame_features: Tensor,
    *,
    retention_ratio: float,
    min_segments: int,
    tau: float,
    dtm_ratio: float,
    anchor_interval: int,
    beta: float,
    num_neighbors: int = 4,
    noise: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Prune as the LLaVA-Video release does: one frame, then one anchor frame, at a time.

    Args:
        tokens: `[F, N, D]`, float32, bfloat16 or float16, on any device.
        attn: `[F, N]` [CLS] attention.
        frame_features: `[F, G]` global features.
        noise: scale of the uniform tie-break added to the densities; 0 makes the result repeatable.

    The other arguments are the hyperparameters of SPEC's table of symbols.

    Returns:
        `(tokens [F·K, D], indices [F·K] int64)`, ascending in `frame·N + position`.
    """
    num_frames, tokens_per_frame, _ = tokens.shape
    kept_per_frame = int(tokens_per_frame * retention_ratio)
    cuts = _cuts(frame_features, min_segments, tau)
    # As in the release, every cut is read from the device twice: as a segment's end and before the next segment.
    lengths = [int(cuts[0].item()) + 1]
    lengths += [int(end.item() - start.item()) for start, end in pairwise(cuts)]
    lengths += [num_frames - 1 - int(cuts[-1].item())]

    pruned_tokens, pruned_indices = [], []
    first_index = 0
    for segment, segment_attn in zip(torch.split(tokens, lengths), torch.split(attn, lengths), strict=True):
        kept = kept_per_frame * len(segment)
        num_context = int(kept * dtm_ratio)
        salient, anchors_by_frame = _select_in_segment(
            segment, segment_attn, kept - num_context, num_context, anchor_interval, num_neighbors, noise
        )
        merged = _merge_segment(segment.flatten(0, 1), salient, anchors_by_frame, beta)
        indices = torch.cat([salient, *anchors_by_frame])
        rows = torch.cat([segment.flatten(0, 1)[salient], merged])
        order = indices.argsort()
        pruned_tokens.append(rows[order])
        pruned_indices.append(indices[order] + first_index)
        first_index += len(segment) * tokens_per_frame
    return torch.cat(pruned_tokens), torch.cat(pruned_indices)


def onevision_form(
    tokens: Tensor,
    attn: Tensor,
    frame_features: Tensor,
    *,
    retention_ratio: float,
    min_segments: int,
    tau: float,
    dtm_ratio: float,
    anchor_interval: int,
    beta: float,
    num_neighbors: int = 4,
    noise: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Prune as the LLaVA-OneVision release does: densities of all frames at once, then merging.

    Arguments as in `llava_video_form`. Remainders of divisions are dropped, so that fewer than `F·K` tokens
    may come back (SPEC section 8).

    Returns:
        `(tokens [T, D], indices [T] int64)`, ascending in `frame·N + position`, with T at most F·K.
    """
    num_frames, tokens_per_frame, dim = tokens.shape
    device = tokens.device
    kept_per_frame = int(tokens_per_frame * retention_ratio)
    num_salient = kept_per_frame - int(kept_per_frame * dtm_ratio)
    num_context = kept_per_frame - num_salient
    cuts = _cuts(frame_features, min_segments, tau)
    before_first, last_frame = cuts.new_full((1,), -1), cuts.new_full((1,), num_frames - 1)
    lengths = torch.diff(cuts, prepend=before_first, append=last_frame).tolist()
    anchors_per_frame = _equal_anchor_shares(lengths, num_context, anchor_interval, device)  # [F]

    frame = torch.arange(num_frames, device=device)[:, None]
    position = torch.arange(tokens_per_frame, device=device).expand(num_frames, -1)
    salient = attn.topk(num_salient, dim=1).indices
    is_candidate = torch.ones_like(position, dtype=torch.bool).scatter_(1, salient, False)
    candidate = position[is_candidate].view(num_frames, -1)  # [F, M]
    candidate_tokens = tokens[frame, candidate]  # [F, M, D]
    candidate_index = frame * tokens_per_frame + candidate
    score = _density_score(candidate_tokens, num_neighbors, noise)

    # Every frame is merged within itself, although the result is used only for segments of one frame.
    peaks = score.topk(num_context, dim=-1).indices
    directions = candidate_tokens / candidate_tokens.norm(dim=-1, keepdim=True)
    merged = _merge_by_similarity(
        candidate_tokens, directions, candidate_tokens[frame, peaks], directions[frame, peaks], beta
    )
    is_alone = anchors_per_frame == num_context
    pruned_tokens = [tokens[frame, salient].view(-1, dim), merged[is_alone].view(-1, dim)]
    pruned_indices = [
        (frame * tokens_per_frame + salient).view(-1),
        candidate_index[frame, peaks][is_alone].view(-1),
    ]

    start = 0
    for length in lengths:
        if length > 1:
            segment = slice(start, start + length)
            share = anchors_per_frame[segment]
            rows, indices = _merge_whole_segment(
                candidate_tokens[segment],
                candidate_index[segment],
                score[segment],
                is_anchor_frame=share > num_context,
                anchors_each=share[-1],
                beta=beta,
            )
            pruned_tokens.append(rows)
            pruned_indices.append(indices)
        start += length

    indices = torch.cat(pruned_indices)
    order = indices.argsort()
    return torch.cat(pruned_tokens)[order], indices[order]


def _cuts(frame_features: Tensor, min_segments: int, tau: float) -> Tensor:
    """Frames `[cuts]` after which the video is cut, ascending (Eq. 1-2), in the precision of the features."""
    directions = frame_features / frame_features.norm(dim=1, keepdim=True)
    similarity = (directions[:-1] * directions[1:]).sum(dim=1)
    least_similar = similarity.topk(min_segments - 1, largest=False).indices
    dissimilar = torch.nonzero(similarity < tau).squeeze(1)
    cuts: Tensor = torch.unique(torch.cat([least_similar, dissimilar])).sort().values
    return cuts


def _density_score(candidates: Tensor, num_neighbors: int, noise: float) -> Tensor:
    """Density-peak score `[B, M]` of the candidates `[B, M, D]` of B frames (Eq. 3-4), float32 throughout."""
    scale = candidates.shape[-1] ** 0.5
    distances: Tensor = torch.cdist(candidates.float(), candidates.float()) / scale  # [B, M, M]
    nearest = distances.topk(num_neighbors, dim=-1, largest=False).values
    density = (-(nearest**2).mean(dim=-1)).exp()
    density = density + torch.rand_like(density) * noise
    denser = (density[:, None, :] > density[:, :, None]).to(candidates.dtype)
    farthest = distances.flatten(1).max(dim=-1).values[:, None, None]
    separation = (distances * denser + farthest * (1 - denser)).min(dim=-1).values
    return separation * density


def _merge_by_similarity(
    pool: Tensor, pool_directions: Tensor, anchors: Tensor, anchor_directions: Tensor, beta: float
) -> Tensor:
    """Anchors `[..., A, D]` with each token of the pool `[..., P, D]` merged into its nearest (Eq. 5)."""
    similarity = pool_directions @ anchor_directions.mT  # [..., P, A]
    one_hot = torch.zeros_like(similarity).scatter_(-1, similarity.argmax(dim=-1, keepdim=True), 1)
    anchor_weight = (1 / (one_hot.sum(dim=-2).unsqueeze(-1) + 1)).clamp(min=beta)
    joined = one_hot.sum(dim=-2).clamp(min=1).unsqueeze(-1)
    mean = one_hot.mT @ pool / joined
    return anchor_weight * anchors + (1 - anchor_weight) * mean


def _select_in_segment(
    segment: Tensor,
    attn: Tensor,
    num_salient: int,
    num_context: int,
    anchor_interval: int,
    num_neighbors: int,
    noise: float,
) -> tuple[Tensor, list[Tensor]]:
    """Salient tokens, and anchors by anchor frame: indices into the `L·N` tokens of a segment `[L, N, D]`."""
    length, tokens_per_frame, _ = segment.shape
    salient_shares = _shares(num_salient, length)
    anchor_shares = [0] * length
    anchor_shares[::-anchor_interval] = _shares(num_context, -(-length // anchor_interval))

    salient, anchors = [], []
    for frame, (salient_share, anchor_share) in enumerate(zip(salient_shares, anchor_shares, strict=True)):
        first_index = frame * tokens_per_frame
        frame_salient = attn[frame].topk(salient_share).indices
        if anchor_share > 0:
            positions = torch.arange(tokens_per_frame, device=segment.device)
            candidates = positions[~torch.isin(positions, frame_salient)]
            score = _density_score(segment[frame][candidates].unsqueeze(0), num_neighbors, noise)
            peaks = score.topk(anchor_share, dim=-1).indices[0].sort().values
            anchors.append(candidates[peaks] + first_index)
        if salient_share > 0:
            salient.append(frame_salient + first_index)
    return torch.cat(salient), anchors


def _shares(total: int, parts: int) -> list[int]:
    """Split `total` as evenly as integers allow, the larger shares first."""
    share, remainder = divmod(total, parts)
    return [share + (part < remainder) for part in range(parts)]


def _merge_segment(tokens: Tensor, salient: Tensor, anchors_by_frame: list[Tensor], beta: float) -> Tensor:
    """Merged anchors of all anchor frames of a segment, whose tokens come flattened to `[L·N, D]`."""
    everything = torch.arange(len(tokens), device=tokens.device)
    directions = tokens / tokens.norm(dim=-1, keepdim=True)
    merged = []
    for anchors in anchors_by_frame:
        pool = everything[~torch.isin(everything, torch.cat([salient, anchors]))]
        merged_anchors = _merge_by_similarity(
            tokens[pool], directions[pool], tokens[anchors], directions[anchors], beta
        )
        merged.append(merged_anchors)
    return torch.cat(merged)


def _equal_anchor_shares(
    lengths: list[int], context_per_frame: int, anchor_interval: int, device: torch.device
) -> Tensor:
    """Anchors per frame `[F]`: a segment's context tokens over its anchor frames, the remainder dropped."""
    shares = torch.zeros(sum(lengths), dtype=torch.int, device=device)
    start = 0
    for length in lengths:
        share = context_per_frame * length // -(-length // anchor_interval)
        from_last = torch.arange(length - 1, -1, -1, device=device)
        shares[start : start + length][from_last % anchor_interval == 0] = share
        start += length
    return shares


def _merge_whole_segment(
    candidates: Tensor,
    candidate_index: Tensor,
    score: Tensor,
    *,
    is_anchor_frame: Tensor,
    anchors_each: Tensor,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """Merge a segment's candidates `[L, M, D]` into the anchors of all its anchor frames, as one batch.

    The pool is every candidate of the segment, repeated and normalised again for each anchor frame; an anchor
    is in the pool too, and joins itself.
    """
    dim = candidates.shape[-1]
    # Both counts live on the device, and the host waits for one wherever it serves as a size: six times a
    # segment in the release, four times here.
    anchor_frames = is_anchor_frame.sum()
    anchor_candidates = candidates[is_anchor_frame]
    anchor_index = candidate_index[is_anchor_frame]
    peaks = score[is_anchor_frame].topk(int(anchors_each), dim=-1).indices  # [A, n]
    frame = torch.arange(len(candidates), device=candidates.device)[: int(anchor_frames), None]
    frame = frame.expand(-1, int(anchors_each))
    anchors = anchor_candidates[frame, peaks]

    pool = candidates.view(1, -1, dim).expand(int(anchor_frames), -1, -1)  # [A, L·M, D]
    pool_directions = pool / pool.norm(dim=-1, keepdim=True)
    anchor_directions = anchors / anchors.norm(dim=-1, keepdim=True)
    merged = _merge_by_similarity(pool, pool_directions, anchors, anchor_directions, beta)
    return merged.view(-1, dim), anchor_index[frame, peaks].view(-1)
