"""DTM's density peaks among the candidates of one anchor frame (Eq. 3-4, SPEC section 4).

Squared distances are kept as raw sums over channels, D times the square of SPEC's `d_ij`, and divided as late
as possible: for small integers every quantity up to the ordering by density is exact, ties included.

Functions take and return ranks among the candidates, 0 to M-1; the caller knows which tokens they are.
"""

import math

import torch
from torch import Tensor


def squared_distances(candidates: Tensor) -> Tensor:
    """Raw squared distances `sum_c (x_ic - x_jc)**2` between the candidates `[M, D]`: `[M, M]` float64.

    Tokens are subtracted before squaring, so nothing cancels as in a Gram matrix. A NaN or infinite distance
    counts as +inf, also that of a non-finite token to itself; a finite token's distance to itself is 0.
    """
    candidates = candidates.double()
    raw = torch.empty(len(candidates), len(candidates), dtype=torch.float64)
    for rank, candidate in enumerate(candidates):
        raw[rank] = (candidates - candidate).square().sum(dim=1)
    return torch.where(raw.isfinite(), raw, math.inf)


def mean_squared_neighbour_distance(raw: Tensor, num_neighbors: int, dim: int) -> Tensor:
    """`s_i = -log(rho_i)` of Eq. 3: mean of the squares of the smallest `min(k, M)` distances, `[M]` float64.

    `raw [M, M]` are the undivided sums of `squared_distances`, `dim` is D.
    """
    spread = []
    for row in raw.tolist():
        nearest = sorted(row)[:num_neighbors]
        spread.append(sum(nearest) / (len(nearest) * dim))
    return torch.tensor(spread, dtype=torch.float64)


def density_order(s: Tensor) -> list[int]:
    """Ranks of the candidates, the densest first: by ascending `s`, ties by lower rank (SPEC section 4)."""
    values = s.tolist()
    return sorted(range(len(values)), key=lambda rank: (values[rank], rank))


def squared_delta(raw: Tensor, s: Tensor) -> Tensor:
    """`D * delta_i**2`: raw squared distance to the nearest denser candidate (Eq. 4), `[M]` float64.

    The densest candidate takes the largest distance between any two candidates of the frame.
    """
    rows = raw.tolist()
    order = density_order(s)
    delta = [0.0] * len(rows)
    for place, rank in enumerate(order):
        denser = order[:place]
        delta[rank] = min(rows[rank][other] for other in denser) if denser else max(map(max, rows))
    return torch.tensor(delta, dtype=torch.float64)


def peak_scores(delta: Tensor, s: Tensor, dim: int) -> Tensor:
    """`log(rho * delta) = log(delta) - s` of every candidate (SPEC section 4), `[M]` float64.

    `delta` is the raw result of `squared_delta`. A delta of 0 scores -inf, and so does NaN (inf - inf).
    """
    scores = []
    for raw, spread in zip(delta.tolist(), s.tolist(), strict=True):
        mean_square = raw / dim
        score = 0.5 * math.log(mean_square) - spread if mean_square > 0 else -math.inf
        scores.append(-math.inf if math.isnan(score) else score)
    return torch.tensor(scores, dtype=torch.float64)


def density_peaks(scores: Tensor, count: int) -> list[int]:
    """The `count` candidates with the largest scores (ties: lower rank), as ascending ranks."""
    values = scores.tolist()
    by_score = sorted(range(len(values)), key=lambda rank: (-values[rank], rank))
    return sorted(by_score[:count])
