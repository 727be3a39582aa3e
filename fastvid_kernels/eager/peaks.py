"""DTM's anchors: the density peaks of an anchor frame (Eq. 3-4; SPEC section 4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastvid_kernels.eager.products import first_equal, gram_matrix

# A Gram matrix in float32 errs by at most 87 * 2**-24 * (|x_i|^2 + |x_j|^2) in a squared distance, so equal
# tokens always fall below this multiple of it.
_NEARLY_EQUAL = 2.0**-16
# So many minima cost less than a topk.
_FEW_NEIGHBORS = 8


def squared_distances(tokens: Tensor, frames: list[int]) -> Tensor:
    """`|x_i - x_j|^2` between the tokens of each given frame: `[F, N, D]` -> `[A, N, N]`, float32 or float64.

    Exactly 0 between equal tokens; +inf where it is NaN or infinite, on the diagonal too.
    """
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    # A product per frame has the same shape, and so the same bits, whatever the frame's company.
    gram = torch.stack([gram_matrix(tokens[frame].to(dtype)) for frame in frames])
    norms = gram.diagonal(dim1=1, dim2=2).clone()
    norm_sums = norms[:, :, None] + norms[:, None, :]
    distances = gram.mul_(-2).add_(norm_sums).clamp_(min=0).nan_to_num_(nan=math.inf, posinf=math.inf)
    own = torch.where(norms.isfinite(), 0.0, math.inf)
    distances.diagonal(dim1=1, dim2=2).copy_(own)
    return _merge_equal_tokens(distances, norm_sums, tokens, frames)


def _merge_equal_tokens(distances: Tensor, norm_sums: Tensor, tokens: Tensor, frames: list[int]) -> Tensor:
    """Give equal tokens of a frame the distances of the first of them, which rounding had set apart.

    Without it rounding decides which token of a letterbox's black bars leads the others.
    """
    near = (distances <= _NEARLY_EQUAL * norm_sums).logical_and_(distances < math.inf).tril_(-1)
    for row in near.any((1, 2)).nonzero().flatten().tolist():
        first = first_equal(tokens[frames[row]].to(distances.dtype))
        distances[row] = distances[row][first][:, first]
    return distances


def neighbor_mean(distances: Tensor, candidates: Tensor, dim: int, num_neighbors: int) -> Tensor:
    """s of Eq. 3, whose density is exp(-s): the mean of a candidate's k smallest squared distances, over D.

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
    # Anchors go to frames that have candidates, and at least one is there to count.
    counted = candidates.sum(1, keepdim=True).clamp(max=count)
    total = torch.zeros(distances.shape[:2], dtype=torch.float64, device=distances.device)
    for place, values in enumerate(nearest):
        total += torch.where(place < counted, values.to(torch.float64), 0.0)
    return total / (counted * dim)


def peak_score(distances: Tensor, s: Tensor, candidates: Tensor, dim: int) -> Tensor:
    """log(density * delta) = log(delta) - s (Eq. 4): float64 `[A, N]`, lowest of all for what is no candidate.

    delta is the distance to the nearest denser candidate; the densest takes the largest between any two candidates.
    """
    order = torch.sort(s.masked_fill(~candidates, math.inf), dim=1, stable=True).indices
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(s.shape[1], device=s.device).expand_as(order))
    denser = (rank[:, None, :] < rank[:, :, None]) & candidates[:, None, :]
    nearest_denser = torch.where(denser, distances, math.inf).amin(2)
    pairs = candidates[:, None, :] & candidates[:, :, None]
    largest = torch.where(pairs, distances, 0.0).amax((1, 2))
    delta = torch.where(rank == 0, largest[:, None], nearest_denser).to(torch.float64)
    score = 0.5 * torch.log(delta / dim) - s
    # Every candidate outranks every other token, also one whose score is -inf (delta = 0) or NaN (inf - inf).
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
