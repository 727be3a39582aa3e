"""Transitions, cuts and segments, worked out by hand."""

import math

import pytest
import torch

from reference import (
    BELOW_ALL,
    mean_frame_features,
    quantise,
    quantised_transitions,
    segments_between,
    select_cuts,
)

# Cosines of neighbours: 3/5, (12 + 12)/25, 0 (zero vector), 0 (zero vector), 1.
FEATURES = torch.tensor([[1.0, 0.0], [3.0, 4.0], [4.0, 3.0], [0.0, 0.0], [0.0, 5.0], [0.0, 1.0]])
TRANSITIONS = [quantise(value) for value in (0.6, 0.96, 0.0, 0.0, 1.0)]


def test_transitions_are_cosines_in_units_of_two_to_the_minus_40() -> None:
    # 2**40 = 1099511627776; times 0.6 is ...976665.6, times 0.96 is ...162664.96; both round up.
    assert quantised_transitions(FEATURES) == [659706976666, 1055531162665, 0, 0, 1099511627776]


@pytest.mark.parametrize("feature_scale", [1e-30, 1.0, 1e30])
def test_scale_of_the_features_does_not_change_transitions(feature_scale: float) -> None:
    assert quantised_transitions(FEATURES.double() * feature_scale) == TRANSITIONS


@pytest.mark.parametrize(
    ("min_segments", "tau", "expected"),
    [
        (1, -1.0, []),
        (2, -1.0, [2]),  # transitions 2 and 3 tie at 0: the lower frame first
        (3, -1.0, [2, 3]),
        (4, -1.0, [0, 2, 3]),
        (100, -1.0, [0, 1, 2, 3, 4]),  # min(c - 1, F - 1) places
        (1, 0.9, [0, 2, 3]),
        (2, 0.9, [0, 2, 3]),  # the union of both conditions
        (1, 0.6, [2, 3]),  # equal to tau is not below it
        (1, 0.6 + 1e-13, [2, 3]),  # ...976665.6 + 0.11 still rounds to the same integer
        (1, 0.6 + 1e-12, [0, 2, 3]),  # ...976665.6 + 1.1 does not
        (1, 1.0, [0, 1, 2, 3]),
        (1, 1e300, [0, 1, 2, 3, 4]),
        (2, -1e300, [2]),
    ],
)
def test_cuts_are_the_smallest_transitions_and_those_below_tau(
    min_segments: int, tau: float, expected: list[int]
) -> None:
    assert select_cuts(TRANSITIONS, min_segments, tau) == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_transition_at_a_non_finite_feature_takes_one_of_the_places(bad: float) -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [bad, 1.0], [0.0, 0.0]])
    # 0, 1/sqrt(2), then frame 3 spoils both of its transitions, also the one to the zero vector.
    transitions = quantised_transitions(features)
    assert transitions == [0, quantise(math.sqrt(0.5)), BELOW_ALL, BELOW_ALL]
    assert select_cuts(transitions, 3, -1.0) == [2, 3]
    assert select_cuts(transitions, 4, -1.0) == [0, 2, 3]
    assert select_cuts(transitions, 1, -1e300) == [2, 3]


def test_segments_are_the_runs_between_cuts() -> None:
    assert segments_between([0, 2, 3], 6) == [(0, 1), (1, 3), (3, 4), (4, 6)]
    assert segments_between([], 6) == [(0, 6)]
    assert segments_between([0], 2) == [(0, 1), (1, 2)]
    assert segments_between([], 1) == [(0, 1)]
    assert segments_between([], 0) == []


def test_frame_features_default_to_the_mean_summed_in_float64() -> None:
    # 2**24 + 1 - 2**24 is 0 in float32; the mean is 1/3, rounded to float32 at the end.
    tokens = torch.tensor([[[2.0**24], [1.0], [-(2.0**24)]]])
    features = mean_frame_features(tokens)
    assert features.dtype == torch.float32
    assert features.tolist() == [[torch.tensor(1 / 3, dtype=torch.float32).item()]]
