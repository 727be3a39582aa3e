"""Rules of SPEC whose alternatives would pass the golden vectors too, with a hand-made video for each."""

from __future__ import annotations

import torch

import reference
from fastvid_kernels import explain, prune
from fastvid_kernels.eager.peaks import neighbor_mean, peak_score


def test_densest_token_takes_the_largest_distance_of_the_frame_not_its_own() -> None:
    """On a line at 0, 1, 2 and 100: the densest, at 1, is 99 away at most, but the frame spans 100.

    Only the score shows it. No selection can: the densest token is first by either rule, since every other
    token's delta is at most its distance to the densest one.
    """
    x = torch.tensor([0.0, 1.0, 2.0, 100.0])
    squared = (x[:, None] - x[None, :]).square()[None]
    candidates = torch.ones(1, 4, dtype=torch.bool)
    s = neighbor_mean(squared, candidates, dim=1, num_neighbors=3)
    assert s[0].argmin() == 1
    assert s[0, 1] == 2 / 3
    score = peak_score(squared, s, candidates, dim=1)
    torch.testing.assert_close(score[0, 1], torch.tensor(100.0, dtype=torch.float64).log() - 2 / 3)


def test_anchors_of_other_anchor_frames_are_merged_too() -> None:
    """Two frames, each an anchor frame with one anchor: each anchor joins the other frame's."""
    tokens = torch.tensor([[[8.0, 0.0], [0.0, 2.0]], [[4.0, 0.0], [0.0, 6.0]]])
    attn = torch.zeros(2, 2)
    explanation = explain(
        tokens, attn, retention_ratio=0.5, dtm_ratio=1.0, anchor_interval=1, min_segments=1, tau=-1.5, beta=0.0
    )
    assert [record.anchors.tolist() for record in explanation.anchor_frames] == [[0], [2]]
    assert explanation.anchor_frames[0].joined.tolist() == [1, 2, 3]
    assert explanation.anchor_frames[1].joined.tolist() == [0, 1, 3]
    # beta = 0 averages the anchor with what joined it: here, all four tokens.
    torch.testing.assert_close(explanation.tokens, torch.tensor([[3.0, 2.0], [3.0, 2.0]]))


def test_context_is_capped_by_what_anchor_frames_can_spare() -> None:
    """K = 8 of N = 10 in 4 frames: d = 1 asks one anchor frame for 32 anchors, but it can spare N - K = 2."""
    generator = torch.Generator().manual_seed(0)
    tokens, attn = torch.randn(4, 10, 6, generator=generator), torch.rand(4, 10, generator=generator)
    hyperparameters = {"retention_ratio": 0.8, "dtm_ratio": 1.0, "min_segments": 1, "tau": -1.5}
    explanation = explain(tokens, attn, **hyperparameters)
    assert len(explanation.anchors) == 2
    assert len(explanation.salient) == 30
    assert torch.bincount(explanation.salient // 10).tolist() == [8, 8, 7, 7]
    assert torch.equal(explanation.indices, reference.prune(tokens, attn, **hyperparameters).indices)


def test_equal_transitions_are_cut_from_the_first() -> None:
    """Four equal transitions, of which c - 1 = 2 are cut: after frames 0 and 1."""
    features = torch.ones(5, 3)
    explanation = explain(torch.rand(5, 4, 2), torch.rand(5, 4), features, retention_ratio=0.5, min_segments=3)
    assert explanation.segments.tolist() == [[0, 1], [1, 2], [2, 5]]


def test_equal_attention_keeps_the_lower_index_and_nan_comes_last() -> None:
    inf, nan = float("inf"), float("nan")
    attn = torch.tensor([[nan, 0.0, -0.0, 0.0, -inf], [nan, -inf, nan, -inf, -inf]])
    explanation = explain(torch.rand(2, 5, 3), attn, retention_ratio=0.4, dtm_ratio=0.0)
    assert explanation.salient.tolist() == [1, 2, 6, 8]


def test_attention_is_compared_as_float32() -> None:
    """In float64 token 1 leads by 1e-12; in float32 they are equal, and token 0 is kept."""
    attn = torch.tensor([[0.5, 0.5 + 1e-12]], dtype=torch.float64)
    assert prune(torch.rand(1, 2, 3), attn, retention_ratio=0.5, dtm_ratio=0.0).indices.tolist() == [0]


def test_among_equally_dense_tokens_the_first_leads() -> None:
    """The corners of a square are equally dense: token 0 gets the diagonal as its delta, the others the side."""
    corners = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [0.0, 3.0], [3.0, 3.0]]])
    explanation = explain(corners, torch.zeros(1, 4), retention_ratio=0.5, dtm_ratio=1.0)
    assert explanation.anchors.tolist() == [0, 1]


def test_a_token_as_close_to_two_anchors_joins_the_first() -> None:
    """Anchors along the axes; the other two tokens lie on the diagonal between them."""
    tokens = torch.tensor([[[9.0, 0.0], [0.0, 9.0], [1.0, 1.0], [2.0, 2.0]]])
    explanation = explain(tokens, torch.zeros(1, 4), retention_ratio=0.5, dtm_ratio=1.0, num_neighbors=1)
    (frame,) = explanation.anchor_frames
    assert frame.anchors.tolist() == [0, 1]
    assert frame.joined_anchor.tolist() == [0, 0]
