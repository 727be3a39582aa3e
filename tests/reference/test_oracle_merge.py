"""Pool, assignment and aggregation, worked out by hand."""

import math

import pytest
import torch

from reference import aggregate, anchor_weights, assign, normalised, pool_of_anchor_frame, similarities

INF, NAN = math.inf, math.nan


def test_pool_leaves_out_salient_tokens_and_only_this_frames_anchors() -> None:
    # Frames 2 and 3 of three tokens are flat 6 to 11. Frame 3's anchors are 9 and 11, frame 2's is 8.
    segment = (2, 4)
    assert pool_of_anchor_frame(segment, 3, salient=[6, 10], anchors=[9, 11]) == [7, 8]
    assert pool_of_anchor_frame(segment, 3, salient=[6, 10], anchors=[8]) == [7, 9, 11]


def test_similarity_is_the_dot_product_with_the_normalised_anchor() -> None:
    anchors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 7.0]])
    pool = torch.tensor([[5.0, 10.0], [-5.0, 0.0]])
    # (5*3 + 10*4)/5 = 11, 0 and 10; (-5*3)/5 = -3, 0 and 0.
    expected = torch.tensor([[11, 0, 10], [-3, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(similarities(pool, anchors), expected, rtol=1e-15, atol=0)


def test_ties_go_to_the_lower_anchor() -> None:
    anchors = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.0, 5.0]])
    pool = torch.tensor([[1.0, 1.0], [0.0, 4.0], [-1.0, -1.0], [0.0, 0.0]])
    # Rows 0, 1, 1, 1: anchor 1; 0, 0, 4, 4: anchor 2; 0, -1, -1, -1: the zero anchor; all 0: anchor 0.
    assert assign(similarities(pool, anchors)).tolist() == [1, 2, 0, 0]


def test_nan_similarity_counts_as_minus_infinity() -> None:
    anchors = torch.tensor([[NAN, 1.0], [-1.0, 0.0], [INF, 1.0]])
    pool = torch.tensor([[1.0, 0.0], [NAN, 0.0]])
    # inf/inf is NaN in the third direction too. The second token has no similarity at all: the first anchor.
    similarity = similarities(pool, anchors)
    assert similarity.tolist() == [[-INF, -1, -INF], [-INF, -INF, -INF]]
    assert assign(similarity).tolist() == [1, 0]


@pytest.mark.parametrize("magnitude", [5e-324, 1e-200, 1.0, 1e200, 1.7e308])
def test_normalising_survives_the_range_of_float64(magnitude: float) -> None:
    anchor = torch.tensor([magnitude, -magnitude], dtype=torch.float64)
    assert normalised(anchor).tolist() == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5)])


def test_merged_anchor_by_hand() -> None:
    anchors = torch.tensor([[10.0], [20.0], [30.0]])
    pool = torch.tensor([[1.0], [5.0], [3.0]])
    assignment = torch.tensor([0, 1, 0])
    # n = 2: w = max(0.6, 1/3), 0.6*10 + 0.4*2 = 6.8; n = 1: w = max(0.6, 1/2), 0.6*20 + 0.4*5 = 14;
    # n = 0: w = 1.
    assert anchor_weights(assignment, 3, 0.6).tolist() == [0.6, 0.6, 1.0]
    assert aggregate(anchors, pool, assignment, beta=0.6).flatten().tolist() == pytest.approx([6.8, 14, 30])
    # beta = 0.4 is below 1/2 where n = 1: (20 + 5)/2 = 12.5.
    assert aggregate(anchors, pool, assignment, beta=0.4).flatten().tolist() == pytest.approx([5.2, 12.5, 30])


def test_beta_zero_averages_anchor_and_joined() -> None:
    anchors = torch.tensor([[10.0, 0.0]])
    pool = torch.tensor([[1.0, 3.0], [4.0, 6.0], [5.0, -1.0]])
    # (10 + 1 + 4 + 5)/4 = 5 and (0 + 3 + 6 - 1)/4 = 2.
    merged = aggregate(anchors, pool, torch.zeros(3, dtype=torch.int64), beta=0.0)
    assert merged.flatten().tolist() == pytest.approx([5, 2])


def test_weight_one_returns_the_anchor_whatever_joined() -> None:
    anchors = torch.tensor([[-0.0, 0.1], [INF, 1e-45]])
    pool = torch.tensor([[NAN, INF]])
    merged = aggregate(anchors, pool, torch.tensor([0]), beta=1.0)
    assert torch.equal(merged.view(torch.int64), anchors.double().view(torch.int64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("joined", range(1, 40))
def test_finite_tokens_merge_to_finite_rows_at_the_largest_value(dtype: torch.dtype, joined: int) -> None:
    largest = torch.finfo(dtype).max
    anchors = torch.tensor([[largest, -largest, 1.0]], dtype=dtype)
    pool = torch.tensor([[largest, -largest, 1.0]] * joined, dtype=dtype)
    for beta in (0.0, 0.1, 0.6, 0.7):
        merged = aggregate(anchors, pool, torch.zeros(joined, dtype=torch.int64), beta)
        assert merged.isfinite().all()
        torch.testing.assert_close(merged, anchors.double(), rtol=1e-14, atol=0)


def test_a_mean_whose_sum_exceeds_float64() -> None:
    # The first two alone sum to infinity. Mean: largest/3; with w = 1/4: (0 + largest)/4.
    largest = torch.finfo(torch.float64).max
    anchors = torch.zeros(1, 1, dtype=torch.float64)
    pool = torch.tensor([[largest], [largest], [-largest]], dtype=torch.float64)
    merged = aggregate(anchors, pool, torch.zeros(3, dtype=torch.int64), beta=0.0)
    assert merged.item() == pytest.approx(largest / 4, rel=1e-15)


def test_nothing_to_merge() -> None:
    anchors, pool = torch.tensor([[1.0, 2.0]]), torch.empty(0, 2)
    assignment = assign(similarities(pool, anchors))
    assert assignment.tolist() == []
    assert aggregate(anchors, pool, assignment, beta=0.0).tolist() == [[1.0, 2.0]]
