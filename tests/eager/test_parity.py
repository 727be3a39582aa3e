"""The eager backend against the float64 oracle, over shapes, dtypes, batches and strides."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import reference
from fastvid_kernels import explain, prune
from fastvid_kernels.eager.peaks import squared_distances
from tests.stages import assert_same_bits, check_against_oracle

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

# frames, tokens a frame, channels, hyperparameters
SHAPES: dict[str, tuple[int, int, int, dict[str, Any]]] = {
    "plain": (16, 30, 20, {"retention_ratio": 0.2}),
    "odd sizes": (13, 29, 37, {"retention_ratio": 0.3}),
    "one token a frame": (9, 1, 8, {"retention_ratio": 1.0}),
    "two tokens a frame": (9, 2, 8, {"retention_ratio": 0.5, "dtm_ratio": 1.0}),
    "one channel": (10, 12, 1, {"retention_ratio": 0.4}),
    "one frame": (1, 40, 16, {"retention_ratio": 0.25}),
    "two frames": (2, 17, 16, {"retention_ratio": 0.25}),
    "segments shorter than the interval": (12, 20, 16, {"retention_ratio": 0.3, "anchor_interval": 9}),
    "one segment": (14, 20, 16, {"retention_ratio": 0.2, "min_segments": 1, "tau": -1.5}),
    "all cuts": (10, 20, 16, {"retention_ratio": 0.2, "tau": 1.5}),
    "more segments than frames": (5, 20, 16, {"retention_ratio": 0.2, "min_segments": 99}),
    "attention only": (12, 20, 16, {"retention_ratio": 0.25, "dtm_ratio": 0.0}),
    "merging only": (12, 20, 16, {"retention_ratio": 0.25, "dtm_ratio": 1.0}),
    "every frame an anchor frame": (12, 20, 16, {"retention_ratio": 0.25, "anchor_interval": 1}),
    "mean of anchor and tokens": (12, 20, 16, {"retention_ratio": 0.25, "beta": 0.0}),
    "anchors unchanged": (12, 20, 16, {"retention_ratio": 0.25, "beta": 1.0}),
    "one neighbour": (12, 20, 16, {"retention_ratio": 0.25, "num_neighbors": 1}),
    "more neighbours than tokens": (12, 20, 16, {"retention_ratio": 0.25, "num_neighbors": 50}),
    "half kept": (12, 20, 16, {"retention_ratio": 0.5, "dtm_ratio": 0.7}),
    "nearly all kept": (12, 20, 16, {"retention_ratio": 0.95, "dtm_ratio": 0.9, "min_segments": 2, "tau": -1.5}),
    "all kept": (12, 20, 16, {"retention_ratio": 1.0}),
}


def video(frames: int, n: int, dim: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Shots that drift, so that every stage has something to decide."""
    generator = torch.Generator().manual_seed(seed)
    shot = torch.randint(0, 4, (frames,), generator=generator).sort().values
    scenes = torch.randn(4, n, dim, generator=generator)
    tokens = scenes[shot] + 0.3 * torch.randn(frames, n, dim, generator=generator)
    attn = torch.rand(frames, n, generator=generator)
    features = torch.randn(4, 24, generator=generator)[shot] + 0.2 * torch.randn(frames, 24, generator=generator)
    return tokens.to(dtype), attn.to(dtype), features.to(dtype)


RAGGED = {"retention_ratio": 0.3, "min_segments": 3}


def ragged_batch(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens, attention, features and `cu_frames` of four videos, of one frame and of several."""
    return *video(23, 20, 16, dtype, seed=5), torch.tensor([0, 1, 9, 10, 23], dtype=torch.int32)


def small_integers(seed: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Tokens and attention full of ties, whose distances are exact in float32; and hyperparameters."""
    generator = torch.Generator().manual_seed(seed)
    frames, n, dim = (
        int(torch.randint(low, high, (), generator=generator)) for low, high in ((1, 13), (2, 25), (1, 9))
    )
    hyperparameters = {
        "retention_ratio": (0.5, 0.7, 1.0)[seed % 3],
        "min_segments": (1, 3, 8)[seed // 3 % 3],
        "tau": (-0.5, 0.3, 0.9)[seed // 9 % 3],
        "dtm_ratio": (0.4, 0.7, 1.0)[seed // 2 % 3],
        "anchor_interval": (1, 2, 4)[seed // 4 % 3],
        "num_neighbors": (1, 4, 30)[seed // 5 % 3],
    }
    tokens = torch.randint(-2, 3, (frames, n, dim), generator=generator).float()
    attn = torch.randint(0, 4, (frames, n), generator=generator).float()
    return tokens, attn, hyperparameters


def own_distances(tokens: Tensor, frame: int) -> Tensor:
    return squared_distances(tokens, [frame])[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("given_features", [True, False], ids=["features", "mean features"])
def test_every_stage_matches_the_oracle(name: str, dtype: torch.dtype, given_features: bool) -> None:
    frames, n, dim, hyperparameters = SHAPES[name]
    tokens, attn, features = video(frames, n, dim, dtype, seed=len(name))
    chosen = features if given_features else None
    explanation = explain(tokens, attn, chosen, **hyperparameters)
    check_against_oracle(tokens, attn, chosen, None, hyperparameters, explanation, own_distances)
    pruned = prune(tokens, attn, chosen, **hyperparameters)
    assert torch.equal(pruned.indices, explanation.indices)
    assert_same_bits(pruned.tokens, explanation.tokens)


@pytest.mark.parametrize("seed", range(60))
def test_small_integers_match_index_for_index(seed: int) -> None:
    """Up to the choice of anchors rounding decides nothing, so even ties match."""
    tokens, attn, hyperparameters = small_integers(seed)
    n = tokens.shape[1]
    explanation = explain(tokens, attn, **hyperparameters)
    oracle = reference.prune(tokens, attn, **hyperparameters)
    assert torch.equal(explanation.indices, oracle.indices)
    for ours, exact in zip(explanation.anchor_frames, oracle.anchor_frames, strict=True):
        distances = own_distances(tokens, ours.frame)[exact.candidates][:, exact.candidates]
        assert torch.equal(distances.double(), exact.squared_distances)
        assert torch.equal(ours.anchors - ours.frame * n, exact.anchors)
    check_against_oracle(tokens, attn, None, None, hyperparameters, explanation, own_distances)


@pytest.mark.parametrize("num_neighbors", [1, 4])
@pytest.mark.parametrize("seed", range(20))
def test_small_integers_among_non_finite_tokens(seed: int, num_neighbors: int) -> None:
    """What SPEC says of NaN and infinity leaves nothing open, so all indices and assignments are the oracle's."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(-2, 3, (7, 16, 5), generator=generator).float()
    for value in (float("nan"), float("inf"), float("-inf")):
        tokens[torch.rand(7, 16, 5, generator=generator) < 0.01] = value
    attn = torch.rand(7, 16, generator=generator)
    features = torch.randn(7, 3, generator=generator)
    hyperparameters = {"retention_ratio": 0.5, "dtm_ratio": 0.8, "min_segments": 2, "num_neighbors": num_neighbors}
    explanation = explain(tokens, attn, features, **hyperparameters)
    check_against_oracle(tokens, attn, features, None, hyperparameters, explanation, own_distances)
    assert torch.equal(explanation.indices, reference.prune(tokens, attn, features, **hyperparameters).indices)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_of_equal_anchors_the_first_is_joined(seed: int, dtype: torch.dtype) -> None:
    """All tokens of the last frame are equal, so only their index tells its anchors apart."""
    tokens, attn, features = video(4, 27, 333, dtype, seed)
    tokens[3] = tokens[3, :1]
    hyperparameters = {"retention_ratio": 0.5, "dtm_ratio": 0.5, "min_segments": 1, "tau": -2.0, "beta": 0.0}
    explanation = explain(tokens, attn, features, **hyperparameters)
    (frame,) = explanation.anchor_frames
    assert frame.joined_anchor.unique().tolist() == frame.anchors[:1].tolist()
    check_against_oracle(tokens, attn, features, None, hyperparameters, explanation, own_distances)


def test_many_nearly_equal_tokens_cost_no_more_than_others() -> None:
    """Every pair of tokens is so close that it is compared again, and no pair is equal."""
    tokens = torch.ones(4, 400, 64) + 1e-4 * torch.randn(4, 400, 64, generator=torch.Generator().manual_seed(0))
    attn = torch.rand(4, 400, generator=torch.Generator().manual_seed(1))
    explanation = explain(tokens, attn, anchor_interval=1)
    assert len(explanation.indices) == 160


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ragged_batch_matches_the_oracle(dtype: torch.dtype) -> None:
    tokens, attn, features, cu_frames = ragged_batch(dtype)
    explanation = explain(tokens, attn, features, cu_frames, **RAGGED)
    check_against_oracle(tokens, attn, features, cu_frames, RAGGED, explanation, own_distances)


def test_a_video_alone_or_in_company_keeps_the_same_tokens() -> None:
    tokens, attn, features = video(40, 30, 24, torch.float32, seed=6)
    bounds = [0, 7, 8, 20, 40]
    together = prune(tokens, attn, features, torch.tensor(bounds, dtype=torch.int32), retention_ratio=0.2)
    alone = [
        prune(tokens[start:end], attn[start:end], features[start:end], retention_ratio=0.2)
        for start, end in pairwise(bounds)
    ]
    indices = [video.indices + start * 30 for video, start in zip(alone, bounds, strict=False)]
    assert torch.equal(together.indices, torch.cat(indices))
    assert_same_bits(together.tokens, torch.cat([video.tokens for video in alone]))


def test_dense_batch_equals_its_videos() -> None:
    tokens, attn, features = video(24, 30, 24, torch.float32, seed=7)
    batch = [x.unflatten(0, (3, 8)) for x in (tokens, attn, features)]
    together = prune(*batch, retention_ratio=0.2)
    for index in range(3):
        alone = prune(*(x[index] for x in batch), retention_ratio=0.2)
        assert torch.equal(together.indices[index], alone.indices)
        assert_same_bits(together.tokens[index], alone.tokens)


def strided_views(tokens: Tensor) -> dict[str, Tensor]:
    """The same values in other memory layouts."""
    frames, n, dim = tokens.shape
    with_newline = torch.full((frames, n + 1, dim), float("nan"), dtype=tokens.dtype)
    with_newline[:, :n] = tokens
    every_other = torch.full((frames, n, 2 * dim), float("nan"), dtype=tokens.dtype)
    every_other[..., ::2] = tokens
    return {
        "a column of tokens left out": with_newline[:, :n],
        "every other channel": every_other[..., ::2],
        "channels first": tokens.transpose(1, 2).contiguous().transpose(1, 2),
        "tokens first": tokens.transpose(0, 1).contiguous().transpose(0, 1),
        "a broadcast frame": tokens[:1].expand(frames, n, dim),
    }


@pytest.mark.parametrize("layout", strided_views(torch.zeros(1, 1, 1)))
def test_strides_do_not_matter(layout: str) -> None:
    tokens, attn, features = video(11, 19, 15, torch.float32, seed=8)
    view = strided_views(tokens)[layout]
    attn_view = torch.stack([attn, attn], dim=-1)[..., 0]
    contiguous = prune(view.contiguous(), attn, features, retention_ratio=0.3)
    strided = prune(view, attn_view, features.T.contiguous().T, retention_ratio=0.3)
    assert torch.equal(strided.indices, contiguous.indices)
    assert_same_bits(strided.tokens, contiguous.tokens)
    assert torch.equal(strided.indices, reference.prune(view, attn, features, retention_ratio=0.3).indices)


def test_repeats_give_the_same_bits() -> None:
    tokens, attn, features = video(20, 50, 64, torch.bfloat16, seed=9)
    first = prune(tokens, attn, features, retention_ratio=0.2)
    for _ in range(10):
        again = prune(tokens, attn, features, retention_ratio=0.2)
        assert torch.equal(again.indices, first.indices)
        assert_same_bits(again.tokens, first.tokens)


def test_keeping_everything_returns_the_input() -> None:
    tokens, attn, features = video(9, 20, 16, torch.float16, seed=10)
    pruned = prune(tokens, attn, features, retention_ratio=1.0)
    assert torch.equal(pruned.indices, torch.arange(180))
    assert_same_bits(pruned.tokens, tokens.flatten(0, 1))


def test_inputs_are_left_alone() -> None:
    tokens, attn, features = video(12, 20, 16, torch.float32, seed=11)
    copies = [x.clone() for x in (tokens, attn, features)]
    prune(tokens, attn, features, retention_ratio=0.3)
    for ours, copy in zip((tokens, attn, features), copies, strict=True):
        assert torch.equal(ours, copy)
