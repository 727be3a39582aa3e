"""Budgets, worked out by hand and on a grid."""

import math

import pytest

from reference import anchor_positions, segment_budget, tokens_per_frame


def test_ratios_are_read_as_decimals() -> None:
    assert math.floor(100 * 0.29) == 28
    assert tokens_per_frame(100, 0.29) == 29
    # 1e6 * 0.0157 is 15699.99... in float64.
    assert int(1e6 * 0.0157) == 15699
    assert tokens_per_frame(10_000, 0.0157) == 157
    assert tokens_per_frame(196, 0.1) == 19
    assert tokens_per_frame(169, 0.1) == 16
    assert tokens_per_frame(7, 1.0) == 7


def test_keeping_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="keeps none"):
        tokens_per_frame(9, 0.1)


def test_anchor_frames_are_counted_from_the_last() -> None:
    assert anchor_positions(10, 4) == [1, 5, 9]
    assert anchor_positions(8, 4) == [3, 7]
    assert anchor_positions(3, 4) == [2]
    assert anchor_positions(3, 1) == [0, 1, 2]


def test_budget_of_ten_frames() -> None:
    # K*L = 190, C = floor(190 * 0.4) = 76 = 3*25 + 1, the odd one for the last frame; S = 114 = 10*11 + 4.
    budget = segment_budget(10, num_tokens=196, kept_per_frame=19, dtm_ratio=0.4, anchor_interval=4)
    assert budget.anchor_positions == [1, 5, 9]
    assert budget.salient_per_frame == [12, 12, 12, 12, 11, 11, 11, 11, 11, 11]
    assert budget.context_per_frame == [0, 25, 0, 0, 0, 25, 0, 0, 0, 26]
    assert (budget.salient, budget.context) == (114, 76)


def test_context_is_capped_by_what_the_anchor_frames_can_hold() -> None:
    # K = 9 of N = 10: floor(36 * 0.4) = 14 would go to one anchor frame, which has N - K = 1 place; S = 35.
    budget = segment_budget(4, num_tokens=10, kept_per_frame=9, dtm_ratio=0.4, anchor_interval=4)
    assert budget.context_per_frame == [0, 0, 0, 1]
    assert budget.salient_per_frame == [9, 9, 9, 8]


def test_context_share_is_integer_arithmetic() -> None:
    # 90 * 0.7 is 62.99... in float64.
    budget = segment_budget(9, num_tokens=100, kept_per_frame=10, dtm_ratio=0.7, anchor_interval=1)
    assert math.floor(90 * 0.7) == 62
    assert budget.context == 63


def test_an_anchor_frame_may_get_no_context() -> None:
    # floor(3 * 1 * 0.4) = 1 context token for three anchor frames: the last takes it.
    budget = segment_budget(3, num_tokens=5, kept_per_frame=1, dtm_ratio=0.4, anchor_interval=1)
    assert budget.anchor_positions == [0, 1, 2]
    assert budget.context_per_frame == [0, 0, 1]
    assert budget.salient_per_frame == [1, 1, 0]


@pytest.mark.parametrize("dtm_ratio", [0.0, 0.1, 0.4, 0.7, 1.0])
def test_every_budget_is_feasible(dtm_ratio: float) -> None:
    for num_tokens in range(1, 9):
        for kept in range(1, num_tokens + 1):
            for length in range(1, 11):
                for interval in range(1, 12):
                    budget = segment_budget(length, num_tokens, kept, dtm_ratio, interval)
                    per_frame = zip(budget.salient_per_frame, budget.context_per_frame, strict=True)
                    assert all(salient + context <= num_tokens for salient, context in per_frame)
                    assert budget.salient + budget.context == kept * length
                    assert min(budget.salient_per_frame + budget.context_per_frame) >= 0
                    assert len(budget.anchor_positions) == -(-length // interval)


def test_extreme_shares() -> None:
    assert segment_budget(5, 10, 3, 0.0, 4).salient_per_frame == [3, 3, 3, 3, 3]
    assert segment_budget(5, 10, 3, 1.0, 4).context_per_frame == [7, 0, 0, 0, 7]  # 15, capped at 2 * (10 - 3)
    assert segment_budget(5, 10, 10, 1.0, 4).salient_per_frame == [10, 10, 10, 10, 10]
