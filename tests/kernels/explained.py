"""Reads what the kernels decided from the scratch of a call, and checks it stage by stage against the oracle.

As in `tests.stages`, each stage is checked on the previous stage's own output. The eager backend computes s and scores
in float64, the kernels in float32. So the kernels' density peaks are checked in three steps: s from the call's
distances and scores from its s and distances, each within a few roundings, then the anchors exactly from its scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import reference
from fastvid_kernels import AnchorFrame, Explanation, PruneConfig
from fastvid_kernels.kernels import launch, pipeline
from fastvid_kernels.kernels.overlap import OVERLAPPING
from fastvid_kernels.kernels.pipeline import Call
from tests.emulator.lane import INTERPRETED
from tests.stages import COSINE_MARGIN, DISTANCE_ERROR, ROUNDING, check_against_oracle

POISON = 0xFF
"""The byte that scratch and outputs are filled with: every float is NaN, every integer -1."""
DIVISION_ERROR = 2.0**-22
"""Relative error of a float32 division, which hardware approximates to two units in the last place."""
LOG_ERROR = 2.0**-21
"""Absolute error, near 1, of the float32 logarithm that hardware approximates."""
_LOWEST_KEY = -(2**31)


def run_kernels(
    tokens: Tensor,
    attn: Tensor,
    frame_features: Tensor | None = None,
    cu_frames: Tensor | None = None,
    *,
    poison: int = POISON,
    frames_per_chunk: int | None = None,
    ordinals_per_chunk: int | None = None,
    **hyperparameters: Any,
) -> Call:
    """Run a call, its scratch and outputs filled with `poison` first; chunk sizes that are given replace its own."""
    chunks = {"frames_per_chunk": frames_per_chunk, "ordinals_per_chunk": ordinals_per_chunk}
    call = pipeline.prepare(tokens, attn, frame_features, cu_frames, PruneConfig(**hyperparameters), **chunks)
    for memory in (call.workspace._bytes, call.output, call.indices):
        memory.view(-1).view(torch.uint8).fill_(poison)
    pipeline.launch(call)
    return call


@contextmanager
def overlapping() -> Iterator[None]:
    """In this context the launches of a call may start before earlier ones have ended."""
    pipeline.recipe_for.cache_clear()
    try:
        with mock.patch.dict(launch.OPTIONS, OVERLAPPING):
            yield
    finally:
        pipeline.recipe_for.cache_clear()


def explanation_of(call: Call) -> Explanation:
    """Why a finished call kept what it kept."""
    n = call.shapes.tokens_per_frame
    state = call.workspace["state"][:, :n].flatten()
    anchors = (state > 0).nonzero().flatten()
    segments = torch.stack([call.workspace["segment_start"], call.workspace["segment_end"]], dim=1).long()
    frames = (anchors // n).unique().tolist()
    return Explanation(
        tokens=call.output,
        indices=call.indices,
        segments=segments.unique(dim=0),
        salient=(state == -1).nonzero().flatten(),
        anchors=anchors,
        anchor_frames=tuple(_anchor_frame(call, frame, anchors[anchors // n == frame]) for frame in frames),
    )


def _anchor_frame(call: Call, frame: int, anchors: Tensor) -> AnchorFrame:
    n = call.shapes.tokens_per_frame
    start, end = (int(call.workspace[name][frame]) for name in ("segment_start", "segment_end"))
    ordinal = (end - 1 - frame) // call.config.anchor_interval
    shapes = call.shapes
    first = (start * shapes.ordinals_per_chunk + ordinal * (end - start)) * shapes.padded
    nearest = call.workspace["nearest"][first : first + (end - start) * n].long()
    joined = (nearest >= 0).nonzero().flatten()
    # Other kernels read the same anchors from other arrays, which must agree.
    slots = torch.arange(len(anchors))
    assert torch.equal(call.workspace["state"][:, :n].flatten()[anchors].long(), slots + 1)
    assert torch.equal(call.workspace["anchor"][frame, slots].long(), anchors - frame * n)
    counts = torch.bincount(nearest[joined], minlength=len(anchors))
    assert torch.equal(call.workspace["count"][frame, slots].long(), counts)
    return AnchorFrame(frame=frame, anchors=anchors, joined=joined + start * n, joined_anchor=anchors[nearest[joined]])


def own_distances(call: Call, frame: int) -> Tensor:
    """Squared distances `[N, N]` float32 of an anchor frame, bit for bit as the kernels compute them.

    The frame must be in the last chunk: scratch no longer holds the Gram matrices of the others.
    """
    shapes = call.shapes
    first_frame = (shapes.frames - 1) // shapes.frames_per_chunk * shapes.frames_per_chunk
    assert frame >= first_frame
    n = shapes.tokens_per_frame
    gram = torch.zeros(n, n)
    for split in call.workspace["gram"][frame - first_frame, :, :n, :n]:
        gram = gram + split
    norms = gram.diagonal()
    distances = norms[:, None] + norms[None, :] - 2 * gram
    return torch.where(distances.isnan(), torch.inf, distances.clamp(min=0))


def decode_keys(keys: Tensor) -> Tensor:
    """The float32 values that int32 keys, which sort in the same order, stand for; NaN for the lowest key."""
    values = torch.where(keys < 0, keys ^ 0x7FFFFFFF, keys).view(torch.float32)
    return torch.where(keys == _LOWEST_KEY, torch.nan, values)


def check_s(s: Tensor, distances: Tensor, dim: int, num_neighbors: int) -> None:
    """`s [M]` from the candidates' own squared distances `[M, M]`: a sum of k terms, and one division."""
    exact = reference.mean_squared_neighbour_distance(distances.double(), num_neighbors, dim)
    rtol = min(num_neighbors, len(s)) * ROUNDING + DIVISION_ERROR
    torch.testing.assert_close(s.double(), exact, rtol=rtol, atol=2.0**-149)


def check_scores(scores: Tensor, s: Tensor, distances: Tensor, dim: int) -> None:
    """`scores [M]` from the candidates' own s `[M]` and squared distances `[M, M]`.

    The densest candidate has no such score: the kernel gives it an infinite one (`delta_kernel` says why).
    """
    # Equal tokens count as equally dense, even if an asymmetric product gives them a different s.
    density = s.double()[(distances == 0).int().argmax(1)]
    delta = reference.squared_delta(distances.double(), density)
    densest = reference.density_order(density)[0]
    half_log = 0.5 * (delta.float() / dim).double().log()
    exact = half_log - s.double()
    exact = torch.where(exact.isnan(), -torch.inf, exact)
    assert not scores.isnan().any()
    assert scores[densest] == (-torch.inf if s[densest].isinf() else torch.inf)
    others = torch.arange(len(s)) != densest
    infinite = exact.isinf() & others
    assert torch.equal(scores[infinite].double(), exact[infinite])
    finite = exact.isfinite() & others
    bound = LOG_ERROR + 4 * ROUNDING * (half_log.abs() + s.double())
    assert ((scores.double() - exact).abs() <= bound)[finite].all()


def check_peaks(call: Call, record: AnchorFrame, distances: Tensor, candidates: Tensor) -> None:
    """Density, score and anchors of a frame, each from what the kernels computed before it."""
    n, dim = call.shapes.tokens_per_frame, call.shapes.channels
    distances = distances[candidates][:, candidates]
    s = call.workspace["s"][record.frame, candidates]
    check_s(s, distances, dim, call.config.num_neighbors)
    keys = call.workspace["key"][record.frame, :n]
    check_scores(decode_keys(keys[candidates]), s, distances, dim)
    check_selection(call, record, candidates)


def check_selection(call: Call, record: AnchorFrame, candidates: Tensor) -> None:
    """Anchors are the first candidates by key, ties by index."""
    n = call.shapes.tokens_per_frame
    keys = call.workspace["key"][record.frame, :n]
    peaks = candidates[reference.density_peaks(keys[candidates].double(), len(record.anchors))]
    assert torch.equal(record.anchors - record.frame * n, peaks)


def product_errors(call: Call) -> tuple[float, float]:
    """Errors of sums on tensor cores: of squared distances, relative to the sum of both squared norms; of cosines.

    In one step a tensor core adds at least 8 products of 16-bit numbers to a running sum. It truncates each product at
    2**-24 of the largest, and then the sum to float32, towards zero: by at most 2**-23 of the sum. The D / 8 steps of a
    norm, whose running sum grows steadily to |x|^2, lose at most D / 16 * 2**-23 * |x|^2 = D / 8 * 2**-24 * |x|^2; with
    the channels split, each split has its share of the steps and of the sum. The inner product may be off by as much in
    the other direction: together D / (4 * splits). Truncation within the steps, at most 18, is well within the rest of
    the bound (87). Three TF32 products make a float32 one: their large parts come in a third of the steps, and the
    measured error is below 10.
    """
    if INTERPRETED or call.tokens.dtype == torch.float32:
        steps = 0.0
    else:
        steps = call.shapes.channels / (4 * call.shapes.gram_splits)
    cosine = 0.0 if INTERPRETED else call.shapes.channels / 16 * ROUNDING
    return DISTANCE_ERROR + steps * ROUNDING, COSINE_MARGIN + cosine


def check_call(call: Call, cu_frames: Tensor | None = None, *, cosine_margin: float | None = None) -> Explanation:
    """Check all stages of a finished call, of finite tokens and in one chunk, against the oracle.

    `cu_frames` replaces the call's own for the oracle. `cosine_margin` is how close two cosines must be for either
    anchor to be accepted; by default, the error of the kernels' products.
    """
    explanation = explanation_of(call)
    distance_error, product_margin = product_errors(call)
    check_against_oracle(
        call.tokens,
        call.attn,
        call.frame_features,
        call.cu_frames if cu_frames is None else cu_frames,
        vars(call.config),
        explanation,
        lambda _, frame: own_distances(call, frame),
        check_peaks=partial(check_peaks, call),
        cosine_margin=product_margin if cosine_margin is None else cosine_margin,
        distance_error=distance_error,
    )
    return explanation
