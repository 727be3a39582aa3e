"""Density peaks, worked out by hand. Candidates lie on a line (D = 1) unless said otherwise."""

import math
from fractions import Fraction

import pytest
import torch

from reference import (
    density_order,
    density_peaks,
    mean_squared_neighbour_distance,
    peak_scores,
    squared_delta,
    squared_distances,
)

INF, NAN = math.inf, math.nan


def on_a_line(*positions: float) -> torch.Tensor:
    return torch.tensor(positions)[:, None]


def test_four_points_on_a_line() -> None:
    raw = squared_distances(on_a_line(0, 1, 3, 7))
    assert raw.tolist() == [[0, 1, 9, 49], [1, 0, 4, 36], [9, 4, 0, 16], [49, 36, 16, 0]]
    # k = 2, the point itself and its nearest: (0 + 1)/2, (0 + 1)/2, (0 + 4)/2, (0 + 16)/2.
    s = mean_squared_neighbour_distance(raw, num_neighbors=2, dim=1)
    assert s.tolist() == [0.5, 0.5, 2.0, 8.0]
    # Points 0 and 1 tie: 0 counts as denser, and as the densest takes 49.
    assert density_order(s) == [0, 1, 2, 3]
    delta = squared_delta(raw, s)
    assert delta.tolist() == [49, 1, 4, 16]
    # log 7 - 0.5 = 1.45, log 1 - 0.5 = -0.5, log 2 - 2 = -1.31, log 4 - 8 = -6.61.
    scores = peak_scores(delta, s, dim=1)
    assert scores.tolist() == pytest.approx([math.log(7) - 0.5, -0.5, math.log(2) - 2, math.log(4) - 8])
    assert density_peaks(scores, 2) == [0, 1]


def test_of_equal_tokens_one_leads() -> None:
    # k = 2: s = 0, 0, 0 and 49/2. Had ties no order, each of the equal tokens would be a leader with 49.
    raw = squared_distances(on_a_line(2, 2, 2, 9))
    s = mean_squared_neighbour_distance(raw, num_neighbors=2, dim=1)
    delta = squared_delta(raw, s)
    assert delta.tolist() == [49, 0, 0, 49]
    scores = peak_scores(delta, s, dim=1)
    assert scores.tolist() == pytest.approx([math.log(7), -INF, -INF, math.log(7) - 24.5])
    assert density_peaks(scores, 2) == [0, 3]
    assert density_peaks(scores, 3) == [0, 1, 3]


def test_densest_takes_the_largest_distance_of_the_frame() -> None:
    # k = 2: s = 16/2, 1/2, 1/2, 25/2. Point 4 is the densest; its own farthest is at 36, but 0 to 10 is 100.
    raw = squared_distances(on_a_line(0, 4, 5, 10))
    s = mean_squared_neighbour_distance(raw, num_neighbors=2, dim=1)
    assert s.tolist() == [8.0, 0.5, 0.5, 12.5]
    assert squared_delta(raw, s).tolist() == [16, 100, 1, 25]


def test_a_non_finite_token_is_infinitely_far_even_from_itself() -> None:
    raw = squared_distances(on_a_line(0, 1, NAN, INF))
    assert raw.tolist() == [[0, 1, INF, INF], [1, 0, INF, INF], [INF] * 4, [INF] * 4]
    s = mean_squared_neighbour_distance(raw, num_neighbors=2, dim=1)
    assert s.tolist() == [0.5, 0.5, INF, INF]
    delta = squared_delta(raw, s)
    assert delta.tolist() == [INF, 1, INF, INF]
    # inf - 0.5, log 1 - 0.5, and inf - inf = NaN, which counts as -inf.
    scores = peak_scores(delta, s, dim=1)
    assert scores.tolist() == [INF, -0.5, -INF, -INF]
    assert density_peaks(scores, 3) == [0, 1, 2]


def test_fewer_candidates_than_neighbours() -> None:
    raw = squared_distances(on_a_line(0, 2))
    assert mean_squared_neighbour_distance(raw, num_neighbors=4, dim=1).tolist() == [2.0, 2.0]


def test_a_single_candidate_is_selected_though_it_scores_minus_infinity() -> None:
    raw = squared_distances(on_a_line(5))
    s = mean_squared_neighbour_distance(raw, num_neighbors=4, dim=1)
    scores = peak_scores(squared_delta(raw, s), s, dim=1)
    assert scores.tolist() == [-INF]
    assert density_peaks(scores, 1) == [0]


def test_distances_are_divided_by_the_number_of_channels() -> None:
    # D = 4, (2, 2, 2, 2) and the origin: raw 16, d**2 = 4; k = 2: s = 16 / (2*4) = 2; score = log 2 - 2.
    raw = squared_distances(torch.tensor([[2.0] * 4, [0.0] * 4]))
    assert raw.tolist() == [[0, 16], [16, 0]]
    s = mean_squared_neighbour_distance(raw, num_neighbors=2, dim=4)
    assert s.tolist() == [2.0, 2.0]
    scores = peak_scores(squared_delta(raw, s), s, dim=4)
    assert scores.tolist() == pytest.approx([math.log(2) - 2] * 2)


@pytest.mark.parametrize("seed", range(5))
def test_small_integers_are_ordered_exactly(seed: int) -> None:
    """Compared with rational arithmetic, on so few different values that many densities and distances tie."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randint(-2, 3, (40, 3), generator=generator)
    exact = [[sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for q in points.tolist()] for p in points.tolist()]
    exact_s = [Fraction(sum(sorted(row)[:4]), 4 * 3) for row in exact]
    assert len(set(exact_s)) < 20

    raw = squared_distances(points.bfloat16())
    assert raw.tolist() == exact
    s = mean_squared_neighbour_distance(raw, num_neighbors=4, dim=3)
    assert s.tolist() == [float(value) for value in exact_s]
    assert density_order(s) == sorted(range(40), key=lambda i: (exact_s[i], i))
    nearest_denser = [
        min(
            (exact[i][j] for j in range(40) if (exact_s[j], j) < (exact_s[i], i)),
            default=max(map(max, exact)),
        )
        for i in range(40)
    ]
    assert squared_delta(raw, s).tolist() == nearest_denser


@pytest.mark.parametrize("dim", [1, 3, 20, 97, 3584])
def test_equal_tokens_have_equal_distances_to_every_other(dim: int) -> None:
    """Ties between equal tokens are exact for any values, wherever the tokens stand."""
    generator = torch.Generator().manual_seed(dim)
    candidates = torch.randn(37, dim, generator=generator)
    candidates[[5, 17, 36]] = candidates[2].clone()
    raw = squared_distances(candidates)
    assert torch.equal(raw, raw.T)
    for twin in (5, 17, 36):
        assert torch.equal(raw[twin], raw[2])
    s = mean_squared_neighbour_distance(raw, num_neighbors=4, dim=dim).tolist()
    assert s[2] == s[5] == s[17] == s[36] == 0


def test_distances_near_the_float32_maximum_stay_finite() -> None:
    largest = torch.finfo(torch.float32).max
    raw = squared_distances(on_a_line(largest, -largest))
    assert raw[0, 1].item() == (2 * largest) ** 2
