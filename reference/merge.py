"""DTM's assignment to anchors and anchor-centric aggregation (Eq. 5, SPEC section 5)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LEAST_EXPONENT = -1000
"""Lower bound of the exponent by which an anchor is scaled: 2**1000 is still within float64's range."""


def pool_of_anchor_frame(
    segment: tuple[int, int], num_tokens: int, salient: Sequence[int], anchors: Sequence[int]
) -> list[int]:
    """Tokens of a segment that join the anchors of one of its anchor frames, as ascending flat indices.

    `segment` is a frame range `(start, end)`; `salient` are the flat indices of the salient tokens of all its
    frames, `anchors` those of the anchors of this anchor frame. Other anchor frames' anchors are in the pool.
    """
    start, end = segment
    left_out = {*salient, *anchors}
    return [index for index in range(start * num_tokens, end * num_tokens) if index not in left_out]


def normalised(anchor: Tensor) -> Tensor:
    """`anchor [D]` divided by its norm, in float64; a zero anchor stays zero.

    It is first brought near magnitude 1 by a power of two, so that its squares neither overflow nor vanish.
    """
    anchor = anchor.double()
    largest = anchor.abs().max().item()
    if largest == 0:
        return anchor
    if math.isfinite(largest):
        exponent = max(math.frexp(largest)[1], LEAST_EXPONENT)
        anchor = anchor * 2.0**-exponent
    return anchor / anchor.square().sum().sqrt()


def similarities(pool: Tensor, anchors: Tensor) -> Tensor:
    """Dot product of every pool token `[P, D]` with every normalised anchor `[A, D]`: `[P, A]` float64.

    A token's own norm does not change which anchor it joins. NaN counts as -inf. Each dot product is summed by
    itself: in a matrix product, those with equal anchors could differ in the last bit.
    """
    directions = torch.stack([normalised(anchor) for anchor in anchors])
    result = torch.empty(len(pool), len(anchors), dtype=torch.float64)
    for row, token in enumerate(pool.double()):
        result[row] = (directions * token).sum(dim=1)
    return torch.where(result.isnan(), -math.inf, result)


def assign(similarity: Tensor) -> Tensor:
    """The most similar anchor of every pool token, `[P]` int64, from `similarity [P, A]` without NaN.

    Ties go to the lower index; if all are -inf that is the first anchor.
    """
    nearest = [max(range(len(row)), key=row.__getitem__) for row in similarity.tolist()]
    return torch.tensor(nearest, dtype=torch.int64)


def anchor_weights(assignment: Tensor, num_anchors: int, beta: float) -> Tensor:
    """`w = max(beta, 1 / (n + 1))` of every anchor, where n tokens joined it, `[A]` float64 (SPEC section 5)."""
    joined = torch.bincount(assignment, minlength=num_anchors).tolist()
    return torch.tensor([max(beta, 1 / (count + 1)) for count in joined], dtype=torch.float64)


def mean(tokens: Tensor) -> Tensor:
    """Mean of `tokens [n, D]`, n > 0, float64; finite wherever all n values are.

    The terms are scaled by a power of two, so that the sum does not overflow even for the largest float64 values.
    """
    count = len(tokens)
    scale = 2.0 ** -count.bit_length()
    return (tokens * scale).sum(dim=0) / count / scale


def aggregate(anchors: Tensor, pool: Tensor, assignment: Tensor, beta: float) -> Tensor:
    """Merged anchors `w * a + (1 - w) * mean(b)` (Eq. 5), `[A, D]` float64.

    `assignment [P]` says which of `anchors [A, D]` each token of `pool [P, D]` joined. Where w = 1 the anchor
    is returned unchanged, whatever joined it. Finite tokens give finite rows.
    """
    anchors, pool = anchors.double(), pool.double()
    merged = anchors.clone()
    for index, weight in enumerate(anchor_weights(assignment, len(anchors), beta).tolist()):
        if weight < 1:
            anchor, joined_mean = anchors[index], mean(pool[assignment == index])
            merged[index] = weight * anchor + (1 - weight) * joined_mean
    return merged
