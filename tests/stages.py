"""Parity with the oracle, stage by stage (SPEC; the oracle is float64).

A stage's result may differ from the oracle's only by the error of float32 arithmetic in that stage. So each stage is
checked on the previous stage's own output: distances within their error bound; density, score and anchors exactly,
given those distances; assignments exactly wherever the oracle's cosines differ by more than rounding; and merged rows,
given the assignments that were made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import reference
from fastvid_kernels import AnchorFrame, Explanation

ROUNDING = 2.0**-24
"""Relative error of one float32 operation."""
# |error| <= 87 * 2**-24 * (|x_i|^2 + |x_j|^2) for a squared distance from a float32 Gram matrix.
DISTANCE_ERROR = 87 * ROUNDING
# Cosines closer than this may be ordered either way by a float32 dot product.
COSINE_MARGIN = 1e-6
# Relative to the largest value in the sum: the error of float32 sums, and of one rounding to the tokens' dtype.
SUM_ERROR = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def check_plan(explanation: Explanation, oracle: reference.PruneResult) -> None:
    """Segments and salient tokens must be equal, since exact arithmetic decides them."""
    assert [tuple(segment) for segment in explanation.segments.tolist()] == oracle.segments
    assert torch.equal(explanation.salient, oracle.salient)
    counts = [(record.frame, len(record.anchors)) for record in explanation.anchor_frames]
    assert counts == [(record.frame, len(record.anchors)) for record in oracle.anchor_frames]


def check_distances(
    distances: Tensor, candidates: Tensor, exact: Tensor, x: Tensor, distance_error: float = DISTANCE_ERROR
) -> None:
    """Squared distances `[N, N]` of a frame with tokens `x [N, D]` against the candidates' exact ones."""
    norms = x.double().square().sum(1)[candidates]
    bound = distance_error * (norms[:, None] + norms[None, :])
    ours = distances[candidates][:, candidates].double()
    assert torch.equal(ours.isinf(), exact.isinf())
    finite = exact.isfinite()
    assert ((ours - exact).abs() <= bound)[finite].all()
    assert (ours[exact == 0] == 0).all(), "equal tokens must have distance 0"


def check_anchors(
    record: AnchorFrame, distances: Tensor, candidates: Tensor, dim: int, num_neighbors: int, first_token: int
) -> None:
    """Anchors must be those that the oracle selects from the backend's own squared distances `[N, N]`."""
    raw = distances[candidates][:, candidates].double()
    s = reference.mean_squared_neighbour_distance(raw, num_neighbors, dim)
    scores = reference.peak_scores(reference.squared_delta(raw, s), s, dim)
    peaks = candidates[reference.density_peaks(scores, len(record.anchors))]
    assert torch.equal(record.anchors - first_token, peaks)


def check_assignment(
    record: AnchorFrame, tokens: Tensor, oracle_pool: Tensor, cosine_margin: float = COSINE_MARGIN
) -> None:
    """Every pool token joined the anchor of the largest cosine, or one within a margin of it."""
    assert torch.equal(record.joined, oracle_pool)
    flat = tokens.flatten(0, 1).double()
    similarity = reference.similarities(flat[record.joined], flat[record.anchors])
    chosen = torch.searchsorted(record.anchors, record.joined_anchor)
    assert torch.equal(record.anchors[chosen], record.joined_anchor)
    exact = reference.assign(similarity)
    best = similarity.gather(1, exact[:, None])
    got = similarity.gather(1, chosen[:, None])
    margin = cosine_margin * flat[record.joined].norm(dim=1, keepdim=True)
    assert ((chosen[:, None] == exact[:, None]) | (best - got <= margin)).all()
    # Of equal anchors a token must join the first, whatever the rounding.
    anchors = flat[record.anchors]
    has_earlier_twin = (anchors[:, None] == anchors[None, :]).all(2).tril(-1).any(1)
    assert not (has_earlier_twin[chosen] & best.squeeze(1).isfinite()).any()


def check_merged_rows(record: AnchorFrame, tokens: Tensor, rows: Tensor, beta: float) -> None:
    """Merged anchors `rows [n, D]` from the assignment that was made."""
    flat = tokens.flatten(0, 1).double()
    chosen = torch.searchsorted(record.anchors, record.joined_anchor)
    exact = reference.aggregate(flat[record.anchors], flat[record.joined], chosen, beta)
    involved = torch.cat([flat[record.anchors], flat[record.joined]])
    scale = torch.where(involved.isfinite(), involved.abs(), 0.0).amax(0)
    error = (rows.double() - exact).abs()
    half_a_subnormal = torch.finfo(tokens.dtype).smallest_normal * torch.finfo(tokens.dtype).eps / 2
    assert (
        (error <= SUM_ERROR[tokens.dtype] * scale + half_a_subnormal) | (rows.double() == exact) | exact.isnan()
    ).all()
    copied = reference.anchor_weights(chosen, len(record.anchors), beta) == 1
    originals = tokens.flatten(0, 1)[record.anchors[copied]]
    assert_same_bits(rows[copied], originals)


def assert_same_bits(a: Tensor, b: Tensor) -> None:
    """Equal to the bit, NaN payloads included."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    assert a.dtype == b.dtype
    assert torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))


def check_against_oracle(
    tokens: Tensor,
    attn: Tensor,
    frame_features: Tensor | None,
    cu_frames: Tensor | None,
    hyperparameters: dict[str, Any],
    explanation: Explanation,
    distances_of: Callable[[Tensor, int], Tensor],
    *,
    check_peaks: Callable[[AnchorFrame, Tensor, Tensor], None] | None = None,
    cosine_margin: float = COSINE_MARGIN,
    distance_error: float = DISTANCE_ERROR,
) -> None:
    """Check all stages. `distances_of(tokens, frame)` gives the backend's squared distances `[N, N]` of a frame.

    `check_peaks(record, distances, candidates)` checks density, score and anchors, given those distances. Without it
    the anchors must be exactly those that the oracle selects from them.
    """
    oracle = reference.prune(tokens, attn, frame_features, cu_frames, **hyperparameters)
    check_plan(explanation, oracle)
    n, dim = tokens.shape[1:]
    row_of = {index: row for row, index in enumerate(explanation.indices.tolist())}
    flat_salient = set(explanation.salient.tolist())
    for ours, exact in zip(explanation.anchor_frames, oracle.anchor_frames, strict=True):
        distances = distances_of(tokens, ours.frame)
        check_distances(distances, exact.candidates, exact.squared_distances, tokens[ours.frame], distance_error)
        if check_peaks is None:
            num_neighbors = hyperparameters.get("num_neighbors", 4)
            check_anchors(ours, distances, exact.candidates, dim, num_neighbors, ours.frame * n)
        else:
            check_peaks(ours, distances, exact.candidates)
        pool = reference.pool_of_anchor_frame(oracle.segments[exact.segment], n, [*flat_salient], ours.anchors.tolist())
        check_assignment(ours, tokens, torch.tensor(pool, dtype=torch.int64), cosine_margin)
        rows = explanation.tokens[[row_of[index] for index in ours.anchors.tolist()]]
        check_merged_rows(ours, tokens, rows, hyperparameters.get("beta", 0.6))
    salient_rows = [row_of[index] for index in explanation.salient.tolist()]
    assert_same_bits(explanation.tokens[salient_rows], tokens.flatten(0, 1)[explanation.salient])
    assert torch.equal(explanation.indices, torch.cat([explanation.salient, explanation.anchors]).sort().values)
