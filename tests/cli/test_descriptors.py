"""The descriptors suit DySeg and DTM: similar pictures have near descriptors, different ones distant ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from fastvid_kernels import explain
from fastvid_kernels.cli.common.descriptors import GRID, TOKENS_PER_FRAME, Descriptors, describe
from fastvid_kernels.cli.videos.video import SampledVideo, default_clip, sample_video
from tests.cli.clips import pan, scenery, static, write_clip

BIKES_CUTS = (30, 76, 137, 187, 242)  # first frames of the clip's second to sixth shot


def transitions(described: Descriptors) -> torch.Tensor:
    features = described.frame_features.double()
    return functional.cosine_similarity(features[:-1], features[1:], dim=1)


def transitions_at(cuts: tuple[int, ...], sampled: SampledVideo) -> list[int]:
    """The transitions between sampled frames that have a cut in them."""
    pairs = list(zip(sampled.source_indices, sampled.source_indices[1:], strict=False))
    return [next(i for i, (before, after) in enumerate(pairs) if before < cut <= after) for cut in cuts]


@pytest.fixture(scope="module")
def bikes() -> tuple[SampledVideo, Descriptors]:
    sampled = sample_video(default_clip(), 32)
    return sampled, describe(sampled.frames)


def test_shapes_and_dtypes() -> None:
    described = describe(np.stack([scenery(1), scenery(2), scenery(3)]))

    assert described.tokens.shape[:2] == described.attn.shape == (3, TOKENS_PER_FRAME)
    assert described.frame_features.shape[0] == 3
    for tensor in (described.tokens, described.attn, described.frame_features):
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()
    torch.testing.assert_close(described.frame_features.norm(dim=1), torch.ones(3))


def test_tokens_distance_runs_from_zero_to_root_two() -> None:
    tokens = describe(np.stack([scenery(4), np.zeros_like(scenery(4)), np.full_like(scenery(4), 255)])).tokens
    channels = tokens.shape[-1]
    flat = tokens.flatten(0, 1)

    distances = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist") / channels**0.5

    torch.testing.assert_close(flat.norm(dim=1) / channels**0.5, torch.ones(len(flat)))
    assert distances.max() <= 2**0.5 + 1e-5
    # Black and white share no colour; the half of the descriptor for gradients is the same, since both are flat.
    torch.testing.assert_close(distances[TOKENS_PER_FRAME, 2 * TOKENS_PER_FRAME], torch.tensor(1.0))


def test_attention_is_the_contrast_of_the_patch() -> None:
    frame = np.full((GRID * 16, GRID * 16, 3), 100, np.uint8)
    frame[5 * 16 : 6 * 16, 3 * 16 : 4 * 16][::2] = 200  # stripes in one patch
    frame[9 * 16 : 10 * 16, 3 * 16 : 4 * 16][::2] = 120

    attention = describe(frame[None]).attn[0].reshape(GRID, GRID)

    assert attention[5, 3] == pytest.approx(50 / 255, abs=1e-3)
    assert attention[9, 3] == pytest.approx(10 / 255, abs=1e-3)
    assert attention.flatten().sort(descending=True).values[2] < 1e-6


@pytest.mark.parametrize("turned", [False, True])
def test_gradient_orientation_is_seen_and_its_sign_is_not(turned: bool) -> None:
    rows = np.zeros((GRID * 16, GRID * 16, 3), np.uint8)
    rows[::8] = rows[1::8] = rows[2::8] = rows[3::8] = 200
    columns = rows.swapaxes(0, 1)
    first, second = (columns, rows) if turned else (rows, columns)

    tokens = describe(np.stack([first, second, first[::-1, ::-1]])).tokens
    tokens = tokens / tokens.shape[-1] ** 0.5
    inner = TOKENS_PER_FRAME // 2 + GRID // 2

    assert tokens[0, inner] @ tokens[2, inner] > 0.99
    assert tokens[0, inner] @ tokens[1, inner] < 0.6


def test_all_cuts_of_the_default_clip_are_its_least_similar_transitions(
    bikes: tuple[SampledVideo, Descriptors],
) -> None:
    sampled, described = bikes
    similarity = transitions(described)
    at_cuts = transitions_at(BIKES_CUTS, sampled)

    assert sampled.num_source_frames == 250
    assert set(similarity.argsort()[:5].tolist()) == set(at_cuts)
    assert similarity[at_cuts].max() < 0.9 - 0.02  # below the default tau, and not by a hair
    assert similarity.median() > 0.95


def test_dyseg_finds_all_cuts_of_the_default_clip(bikes: tuple[SampledVideo, Descriptors]) -> None:
    sampled, described = bikes

    segments = explain(described.tokens, described.attn, described.frame_features).segments.tolist()

    starts = {start for start, _ in segments}
    assert {i + 1 for i in transitions_at(BIKES_CUTS, sampled)} <= starts
    assert len(segments) <= 12


@pytest.mark.parametrize("seed", [0, 100, 200])
def test_cuts_of_a_synthetic_clip_stand_apart_from_a_slow_pan(tmp_path: Path, seed: int) -> None:
    shots = [static(seed, 60), pan(seed + 1, 70), static(seed + 2, 30), static(seed + 3, 25), static(seed + 4, 40)]
    cuts = tuple(sum(map(len, shots[:i])) for i in range(1, len(shots)))
    sampled = sample_video(write_clip(tmp_path / "shots.mp4", [frame for shot in shots for frame in shot]), 32)

    described = describe(sampled.frames)
    similarity = transitions(described)
    at_cuts = transitions_at(cuts, sampled)
    elsewhere = [i for i in range(len(similarity)) if i not in at_cuts]

    assert similarity[at_cuts].max() < 0.8
    assert similarity[elsewhere].min() > 0.95
    found = explain(described.tokens, described.attn, described.frame_features, min_segments=1).segments
    assert found[1:, 0].tolist() == [i + 1 for i in at_cuts]


def test_progress_counts_frames() -> None:
    seen: list[tuple[int, int]] = []

    describe(np.stack(static(6, 3)), lambda done, total: seen.append((done, total)))

    assert seen == [(1, 3), (2, 3), (3, 3)]
