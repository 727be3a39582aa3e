"""The Triton backend, compiled and emulated, on any bits, whatever its memory held before and whatever the batch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import reference
from fastvid_kernels.kernels.pipeline import Call
from tests.eager.test_any_input import any_call, check_any_input
from tests.eager.test_parity import video
from tests.kernels.explained import check_call, check_selection, explanation_of, own_distances, run_kernels
from tests.stages import assert_same_bits, check_assignment, check_merged_rows

pytestmark = pytest.mark.runs_kernels

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ONE_SEGMENT = {"min_segments": 1, "tau": -1.5}


def assert_same_result(call: Call, other: Call) -> None:
    assert torch.equal(call.indices, other.indices)
    assert_same_bits(call.output, other.output)


def check_hostile_call(
    tokens: Tensor,
    attn: Tensor,
    features: Tensor | None,
    hyperparameters: dict[str, Any],
    run: Callable[..., Call] = run_kernels,
) -> None:
    """Check what holds for any bits: the oracle's plan and salient tokens, scores in a total order, no stray NaN."""
    call = run(tokens, attn, features, **hyperparameters)
    explanation = explanation_of(call)
    kept = reference.tokens_per_frame(tokens.shape[1], hyperparameters["retention_ratio"])
    check_any_input(tokens, explanation, kept)
    oracle = reference.prune(tokens, attn, features, **hyperparameters)
    assert [tuple(segment) for segment in explanation.segments.tolist()] == oracle.segments
    assert torch.equal(explanation.salient, oracle.salient)
    for ours, exact in zip(explanation.anchor_frames, oracle.anchor_frames, strict=True):
        assert len(ours.anchors) == len(exact.anchors)
        check_selection(call, ours, exact.candidates)
        barred = torch.isin(ours.joined, torch.cat([explanation.salient, ours.anchors]))
        first, end = oracle.segments[exact.segment]
        assert not barred.any()
        n = tokens.shape[1]
        in_segment = explanation.salient[(explanation.salient >= first * n) & (explanation.salient < end * n)]
        assert len(ours.joined) == (end - first) * n - len(in_segment) - len(ours.anchors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_raw_bit_patterns(dtype: torch.dtype) -> None:
    @settings(max_examples=40, deadline=None, database=None, derandomize=True)
    @given(any_call(dtype))
    def check(call: tuple[Tensor, Tensor, Tensor | None, dict[str, Any]]) -> None:
        check_hostile_call(*call)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_raw_bit_patterns(dtype: torch.dtype) -> None:
    @settings(max_examples=500, deadline=None, database=None, derandomize=True)
    @given(any_call(dtype))
    def check(call: tuple[Tensor, Tensor, Tensor | None, dict[str, Any]]) -> None:
        check_hostile_call(*call)

    check()


@pytest.mark.parametrize("tau", [-2.0, -1e308])
def test_a_transition_that_is_not_finite_is_below_every_tau(tau: float) -> None:
    features = torch.tensor([[1.0], [float("inf")], [1.0], [1.0]])
    call = run_kernels(torch.rand(4, 6, 3), torch.rand(4, 6), features, retention_ratio=0.5, min_segments=1, tau=tau)
    assert explanation_of(call).segments.tolist() == [[0, 1], [1, 2], [2, 4]]


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), float("-inf"), 3e38, 1e-45])
def test_constant_videos(value: float) -> None:
    tokens, attn = torch.full((5, 12, 7), value), torch.full((5, 12), value)
    check_hostile_call(tokens, attn, None, {"retention_ratio": 0.5})


@pytest.mark.parametrize("scale", [2.0**-66, 2.0**-64, 2.0**60])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tokens_join_the_most_similar_anchor_whatever_their_scale(dtype: torch.dtype, scale: float) -> None:
    """Also where squared norms are subnormal: a root that takes them for 0 makes every token join the first anchor."""
    tokens, attn, features = video(8, 40, 64, dtype, seed=9)
    squared_norms = (tokens.float() * scale).square().sum(-1)
    assert (squared_norms.min() < torch.finfo(torch.float32).tiny) == (scale < 2.0**-65)
    call = run_kernels(tokens * scale, attn, features, retention_ratio=0.3, dtm_ratio=0.5, **ONE_SEGMENT)
    for record in explanation_of(call).anchor_frames:
        assert len(record.joined_anchor.unique()) > 5
        # A power of two changes no cosine; subnormal norms have lost some of their digits.
        check_assignment(record, tokens, record.joined, cosine_margin=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("beta", [0.0, 0.6])
def test_finite_tokens_have_a_finite_mean_even_at_the_largest_number(dtype: torch.dtype, beta: float) -> None:
    """Sums of float32 and bfloat16 overflow, and are added up again, token by token and scaled down."""
    tokens, attn, _ = video(6, 10, 4, dtype, seed=15)
    tokens = tokens.sign() * torch.finfo(dtype).max
    call = run_kernels(tokens, attn, retention_ratio=0.2, dtm_ratio=1.0, beta=beta, **ONE_SEGMENT)
    assert call.output.isfinite().all()
    explanation = explanation_of(call)
    for record in explanation.anchor_frames:
        rows = call.output[torch.isin(call.indices, record.anchors)]
        check_merged_rows(record, tokens, rows, beta)


@pytest.mark.parametrize("beta", [0.0, 0.6])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_nan_spoils_one_row_in_each_anchor_frame(dtype: torch.dtype, beta: float) -> None:
    """Other rows keep their digits, also in a channel of tiny numbers."""
    tokens, attn, _ = video(8, 60, 70, dtype, seed=16)
    tokens[..., 9] *= torch.finfo(dtype).smallest_normal * 2**8
    clean = tokens.clone()
    tokens[5, 7, 2] = float("nan")
    attn[5, 7] = 0.0
    hyperparameters = {"retention_ratio": 0.35, "dtm_ratio": 0.43, "beta": beta, **ONE_SEGMENT}
    call = run_kernels(tokens, attn, torch.ones(8, 3), **hyperparameters)
    explanation = explanation_of(call)
    assert [record.frame for record in explanation.anchor_frames] == [3, 7]
    assert [len(record.anchors) for record in explanation.anchor_frames] == [36, 36]
    spoilt = []
    for record in explanation.anchor_frames:
        spoilt.append(record.joined_anchor[record.joined == 307].item())
        rows = call.output[torch.isin(call.indices, record.anchors)]
        check_merged_rows(record, tokens, rows, beta)
    assert call.indices[call.output.isnan().any(1)].tolist() == spoilt
    # Without the NaN, the same tokens are kept.
    assert torch.equal(call.indices, run_kernels(clean, attn, torch.ones(8, 3), **hyperparameters).indices)


def test_not_even_nan_reaches_an_anchor_when_beta_is_one() -> None:
    tokens, _, _ = video(6, 12, 4, torch.float32, seed=4)
    tokens[:, 5] = float("nan")
    call = run_kernels(tokens, torch.zeros(6, 12), retention_ratio=0.25, dtm_ratio=1.0, beta=1.0)
    assert_same_bits(call.output, tokens.flatten(0, 1)[call.indices])


@pytest.mark.parametrize("poison", [0x00, 0x01, 0x7F])
def test_what_memory_held_before_does_not_matter(poison: int) -> None:
    tokens, attn, features = video(9, 21, 16, torch.bfloat16, seed=17)
    for hyperparameters in ({}, {"dtm_ratio": 0.0}, {"dtm_ratio": 1.0, "beta": 1.0}):
        expected = run_kernels(tokens, attn, features, retention_ratio=0.3, **hyperparameters)
        assert_same_result(
            run_kernels(tokens, attn, features, retention_ratio=0.3, poison=poison, **hyperparameters), expected
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_repeats_give_the_same_bits(dtype: torch.dtype) -> None:
    tokens, attn, features = video(8, 50, 64, dtype, seed=9)
    first = run_kernels(tokens, attn, features, retention_ratio=0.2)
    assert_same_result(run_kernels(tokens, attn, features, retention_ratio=0.2), first)


@pytest.mark.parametrize("given_features", [True, False], ids=["features", "mean features"])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 0)])
def test_a_video_alone_or_in_company_gives_the_same_bits(order: tuple[int, ...], given_features: bool) -> None:
    tokens, attn, features = video(19, 30, 40, torch.float32, seed=6)
    spans = list(pairwise([0, 7, 8, 11, 19]))
    hyperparameters = {"retention_ratio": 0.4, "min_segments": 3}

    def arguments(frames: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        return tokens[frames], attn[frames], features[frames] if given_features else None

    alone = [run_kernels(*arguments(torch.arange(*span)), **hyperparameters) for span in spans]
    frames = torch.cat([torch.arange(*spans[video]) for video in order])
    starts = torch.tensor([0] + [spans[video][1] - spans[video][0] for video in order]).cumsum(0)
    together = run_kernels(*arguments(frames), starts.int(), **hyperparameters)
    offsets = starts[:-1].tolist()
    indices = [alone[video].indices + 30 * offset for video, offset in zip(order, offsets, strict=True)]
    assert torch.equal(together.indices, torch.cat(indices))
    assert_same_bits(together.output, torch.cat([alone[video].output for video in order]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chunks_change_nothing_where_a_token_is_not_finite(dtype: torch.dtype) -> None:
    """Which anchors are merged together depends on the chunks: those of four frames in 64 channels, of one in 128."""
    tokens, attn, _ = video(9, 20, 150, dtype, seed=18)
    tokens[4, 3, 70] = float("nan")
    arguments = (tokens, attn, torch.ones(9, 2))
    hyperparameters = {"retention_ratio": 0.3, "anchor_interval": 1, "beta": 0.1, **ONE_SEGMENT}
    whole = run_kernels(*arguments, **hyperparameters)
    assert 0 < whole.output.isnan().sum() <= 9
    assert_same_result(run_kernels(*arguments, ordinals_per_chunk=1, **hyperparameters), whole)


@pytest.mark.parametrize("frames_per_chunk", [1, 2, 4])
@pytest.mark.parametrize("ordinals_per_chunk", [1, 2, 3])
def test_chunks_change_nothing(frames_per_chunk: int, ordinals_per_chunk: int) -> None:
    """Segments of one and of three anchor frames: the last chunk is full, or not, or without the first segment."""
    tokens, attn, features = video(7, 20, 24, torch.float16, seed=18)
    features[:2], features[2:] = 1, -1
    hyperparameters = {"retention_ratio": 0.3, "anchor_interval": 2, "min_segments": 2, "tau": -1.5}
    whole = run_kernels(tokens, attn, features, **hyperparameters)
    assert [end - start for start, end in check_call(whole).segments.tolist()] == [2, 5]
    chunks = {"frames_per_chunk": frames_per_chunk, "ordinals_per_chunk": ordinals_per_chunk}
    assert_same_result(run_kernels(tokens, attn, features, **chunks, **hyperparameters), whole)


def test_more_than_256_tokens_go_in_chunks() -> None:
    """Here in chunks of one frame, since a frame's Gram matrix is larger than its tokens."""
    tokens, attn, features = video(3, 257, 16, torch.bfloat16, seed=19)
    hyperparameters = {"retention_ratio": 0.1, "anchor_interval": 2, **ONE_SEGMENT}
    chunked = run_kernels(tokens, attn, features, **hyperparameters)
    assert chunked.shapes.frames_per_chunk == 1
    whole = run_kernels(tokens, attn, features, frames_per_chunk=3, **hyperparameters)
    check_call(whole)
    assert_same_result(chunked, whole)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens_per_frame", [7, 33, 70])
def test_equal_tokens_are_at_distance_zero_whatever_the_size(tokens_per_frame: int, dtype: torch.dtype) -> None:
    """In every tile of the Gram matrix, and with its channels split in two."""
    embedding = torch.linspace(-1.7, 2.3, 1030).to(dtype)
    tokens = embedding.expand(1, tokens_per_frame, 1030).clone()
    tokens[:, 1] += 1.0
    call = run_kernels(tokens, torch.zeros(1, tokens_per_frame), retention_ratio=0.3, dtm_ratio=1.0)
    equal = torch.arange(tokens_per_frame) != 1
    assert (own_distances(call, 0)[equal][:, equal] == 0).all()
    assert call.indices[:2].tolist() == [0, 1]
