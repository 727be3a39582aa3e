"""DTM's anchors: the density peaks of an anchor frame (Eq. 3-4; SPEC section 4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastvid_kernels.eager.products import first_equal, gram_matrix

# The error of a squared distance from a float32 Gram matrix is at most 87 * 2**-24 * (|x_i|^2 + |x_j|^2). So the
# distance of equal tokens is always below this multiple of |x_i|^2 + |x_j|^2.
_NEARLY_EQUAL = 2.0**-16
# Up to this many neighbours, repeated minima cost less than topk.
_FEW_NEIGHBORS = 8


def squared_distances(tokens: Tensor, frames: list[int]) -> Tensor:
    """`|x_i - x_j|^2` between the tokens of each given frame: `[F, N, D]` -> `[A, N, N]`, float32 or float64.

    Exactly 0 between equal tokens; +inf where it is NaN or infinite, on the diagonal too.
    """
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    # One product per frame: its shape, and so its bits, do not depend on the other frames.
    gram = torch.stack([gram_matrix(tokens[frame].to(dtype)) for frame in frames])
    norms = gram.diagonal(dim1=1, dim2=2).clone()
    norm_sums = norms[:, :, None] + norms[:, None, :]
    distances = gram.mul_(-2).add_(norm_sums).clamp_(min=0).nan_to_num_(nan=math.inf, posinf=math.inf)
    own = torch.where(norms.isfinite(), 0.0, math.inf)
    distances.diagonal(dim1=1, dim2=2).copy_(own)
    return _merge_equal_tokens(distances, norm_sums, tokens, frames)


def _merge_equal_tokens(distances: Tensor, norm_sums: Tensor, tokens: Tensor, frames: list[int]) -> Tensor:
    """Give equal tokens of a frame the same distances, those of the first of them; rounding may make them differ.

    Otherwise rounding would decide which token of a letterbox's black bars is the densest.
    """
    near = (distances <= _NEARLY_EQUAL * norm_sums).logical_and_(distances < math.inf).tril_(-1)
    for row in near.any((1, 2)).nonzero().flatten().tolist():
        first = first_equal(tokens[frames[row]].to(distances.dtype))
        distances[row] = distances[row][first][:, first]
    return distances


def neighbor_mean(distances: Tensor, candidates: Tensor, dim: int, num_neighbors: int) -> Tensor:
    """s of Eq. 3, where exp(-s) is the density: the mean of a candidate's k smallest squared distances, divided by D.

    Takes distances `[A, N, N]` and candidates, bool `[A, N]`; returns float64 `[A, N]`.
    """
    count = min(num_neighbors, distances.shape[1])
    remaining = torch.where(candidates[:, None, :], distances, math.inf)
    if count <= _FEW_NEIGHBORS:
        nearest = []
        for _ in range(count):
            smallest, position = remaining.min(2)
            remaining.scatter_(2, position[:, :, None], math.inf)
            nearest.append(smallest)
    else:
        nearest = [*remaining.topk(count, dim=2, largest=False).values.unbind(2)]
    # At least 1: a frame without candidates has no anchors, and is not among these.
    counted = candidates.sum(1, keepdim=True).clamp(max=count)
    total = torch.zeros(distances.shape[:2], dtype=torch.float64, device=distances.device)
    for place, values in enumerate(nearest):
        total += torch.where(place < counted, values.to(torch.float64), 0.0)
    return total / (counted * dim)


def peak_score(distances: Tensor, s: Tensor, candidates: Tensor, dim: int) -> Tensor:
    """log(density * delta) = log(delta) - s (Eq. 4): float64 `[A, N]`, -inf for tokens that are not candidates.

    delta is the distance to the nearest denser candidate; for the densest, the largest between any two candidates.
    """
    order = torch.sort(s.masked_fill(~candidates, math.inf), dim=1, stable=True).indices
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(s.shape[1], device=s.device).expand_as(order))
    denser = (rank[:, None, :] < rank[:, :, None]) & candidates[:, None, :]
    nearest_denser = torch.where(denser, distances, math.inf).amin(2)
    pairs = candidates[:, None, :] & candidates[:, :, None]
    largest = torch.where(pairs, distances, 0.0).amax((1, 2))
    delta = torch.where(rank == 0, largest[:, None], nearest_denser).to(torch.float64)
    score = 0.5 * torch.log(delta / dim) - s
    # A candidate that scores -inf (delta = 0) or NaN (inf - inf) must still rank above tokens that are not candidates.
    lowest = torch.finfo(torch.float64).min
    return score.nan_to_num(nan=lowest, neginf=lowest).masked_fill(~candidates, -math.inf)


def anchor_mask(tokens: Tensor, frames: list[int], n_context: Tensor, candidates: Tensor, num_neighbors: int) -> Tensor:
    """The `n_context` highest density peaks of each given frame.

    Args:
        tokens: `[F, N, D]`.
        frames: A anchor frames.
        n_context: `[A]`, how many anchors each provides.
        candidates: bool `[A, N]`, the tokens that ATS did not take.
        num_neighbors: k of Eq. 3.

    Returns:
        bool `[A, N]`; ties of the score go to the lower index.
    """
    dim = tokens.shape[2]
    distances = squared_distances(tokens, frames)
    s = neighbor_mean(distances, candidates, dim, num_neighbors)
    score = peak_score(distances, s, candidates, dim)
    order = torch.sort(score, dim=1, descending=True, stable=True).indices
    taken = torch.arange(tokens.shape[1], device=tokens.device) < n_context[:, None]
    return torch.zeros_like(taken).scatter_(1, order, taken)
