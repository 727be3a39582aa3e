"""The loops themselves, on cases small enough to compute by hand, and against the oracle where it computes the same."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import reference

from . import loops
from .loops.ablations import fixed_segments
from .loops.prunevid import dpc_knn, is_static, refined
from .loops.shares import by_largest_fraction, in_proportion, rounded_total
from .loops.simple_cluster import rotated

HALF = math.sqrt(0.5)


def video(*frames: list[list[float]]) -> Tensor:
    return torch.tensor(frames, dtype=torch.float64)


def column(*values: float) -> Tensor:
    """One frame of tokens of one channel, `[1, N, 1]`."""
    return torch.tensor(values, dtype=torch.float64)[None, :, None]


def test_uniform_takes_evenly_spaced_positions_of_every_frame() -> None:
    tokens = torch.arange(10, dtype=torch.float64).view(2, 5, 1)
    values, indices = loops.uniform(tokens, None, None, None, 0.6)
    assert indices.tolist() == [0, 1, 3, 5, 6, 8]  # floor(5k / 3) = 0, 1, 3
    assert values[:, 0].tolist() == indices.tolist()


def test_what_random_must_give_can_fail() -> None:
    tokens = torch.arange(8, dtype=torch.float64).view(2, 4, 1)
    flat = tokens.flatten(0, 1)
    good = torch.tensor([1, 3, 4, 7])
    loops.check_random((flat[good], good), tokens, 0.5)
    for bad in ([1, 1, 4, 7], [3, 1, 4, 7], [1, 2, 3, 7]):
        with pytest.raises(AssertionError):
            loops.check_random((flat[torch.tensor(bad)], torch.tensor(bad)), tokens, 0.5)
    with pytest.raises(AssertionError):
        loops.check_random((flat[good] + 1, good), tokens, 0.5)


def test_pool_averages_contiguous_runs() -> None:
    values, indices = loops.pool(column(1, 2, 4, 8, 16), None, None, None, 0.4)
    assert indices.tolist() == [0, 2]  # floor(5k / 2) = 0, 2, 5
    assert values[:, 0].tolist() == [1.5, 28 / 3]


def test_attention_keeps_the_largest_and_of_equal_ones_the_first() -> None:
    tokens = column(10, 11, 12, 13)
    _, indices = loops.attention(tokens, torch.tensor([[0.1, 0.3, 0.2, 0.2]]), None, None, 0.5)
    assert indices.tolist() == [1, 2]


def test_visionzip_adds_the_mean_of_what_joined_to_its_target() -> None:
    # K = 4: S = floor((4 * 54 + 32) / 64) = 3, C = 1. Of the others (1, 3, 4) the first is the target.
    tokens = video([[9, 0], [1, 0], [8, 0], [2, 2], [0, 4], [7, 0]])
    attn = torch.tensor([[0.5, 0, 0.5, 0, 0, 0.5]])
    values, indices = loops.visionzip(tokens, attn, None, None, 0.67)
    assert indices.tolist() == [0, 1, 2, 5]
    assert values.tolist() == [[9, 0], [2, 3], [8, 0], [7, 0]]


def test_visionzip_assigns_by_cosine_and_spaces_its_targets() -> None:
    # N = 21, K = 12: S = floor(680 / 64) = 10, C = 2; of the last eleven every fifth is a target: 10 and 15.
    tokens = torch.zeros(1, 21, 2, dtype=torch.float64)
    tokens[0, 10:] = torch.tensor([0.0, 1.0])
    tokens[0, 10] = torch.tensor([5.0, 0.0])
    tokens[0, 12] = torch.tensor([1.0, 1.0])  # as near to both: joins the first
    attn = torch.cat([torch.ones(1, 10), torch.zeros(1, 11)], dim=1)
    values, indices = loops.visionzip(tokens, attn, None, None, 0.58)
    assert indices.tolist() == [*range(11), 15]
    assert values[-2:].tolist() == [[6, 1], [0, 2]]


def test_visionzip_rounds_its_share_of_dominant_tokens_half_up() -> None:
    # K = 2: floor((108 + 32) / 64) = 2, so nothing is merged.
    values, indices = loops.visionzip(column(1, 2, 3, 4), torch.tensor([[0, 0.3, 0.2, 0.4]]), None, None, 0.5)
    assert indices.tolist() == [1, 3]
    assert values[:, 0].tolist() == [2, 4]


@pytest.mark.parametrize("name", ["attention", "visionzip", "fastvid"])
def test_who_needs_attention_says_so(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} needs attn"):
        getattr(loops, name)(column(1, 2, 3), None, None, None, 0.5)


def test_dycoke_compares_1_with_0_and_3_with_2_and_2_with_0() -> None:
    # R = 1/2 of N = 3: floor(3 * 1/3) = 1 token of every frame but the first of a group.
    e, u = [1.0, 0.0], [0.0, 1.0]
    tokens = video([e, e, e], [u, e, e], [e, e, u], [e, e, e], [e, u, e], [e, u, u])
    _, indices = loops.dycoke(tokens, None, None, None, 0.5)
    # Frame 2 differs from frame 1 first at position 0; frame 3 not at all from frame 0; 4 and 5 are a group of two.
    assert indices.tolist() == [0, 1, 2, 3, 8, 11, 12, 13, 14, 17]


def test_dycoke_keeps_a_quarter_at_least() -> None:
    tokens = torch.ones(5, 3, 2)
    assert loops.dycoke(tokens, None, None, None, 0.1)[1].tolist() == [0, 1, 2, 12, 13, 14]
    assert loops.dycoke(tokens, None, None, [0, 2, 5], 0.25)[1].tolist() == [0, 1, 2, 6, 7, 8]


def test_evs_ranks_changes_over_the_whole_video() -> None:
    e, d, u = [2.0, 0.0], [1.0, 1.0], [0.0, 3.0]
    tokens = video([e, e], [e, d], [u, d])
    # Changes 0, 1 - sqrt(1/2) in frame 1; 1, 0 in frame 2. floor(6 R) of six, two of them the first frame's.
    assert loops.evs(tokens, None, None, None, 0.5)[1].tolist() == [0, 1, 4]
    assert loops.evs(tokens, None, None, None, 0.67)[1].tolist() == [0, 1, 3, 4]
    assert loops.evs(tokens, None, None, None, 0.84)[1].tolist() == [0, 1, 2, 3, 4]  # equal changes: the first
    assert loops.evs(tokens, None, None, None, 0.1)[1].tolist() == [0, 1]


def test_shares_by_largest_fraction() -> None:
    assert by_largest_fraction([1.5, 2.7, 0.8], 5, 9) == [1, 3, 1]
    assert by_largest_fraction([1.5, 1.5], 3, 9) == [2, 1]
    assert by_largest_fraction([5.5, 0.25, 0.25], 6, 3) == [3, 2, 1]


def test_shares_in_proportion_give_on_what_is_over_the_cap() -> None:
    assert in_proportion([0.8, 0.15, 0.05], 8, 4) == [4, 3, 1]
    assert in_proportion([1, 1], 3, 2) == [2, 1]


def test_the_rounded_total_takes_the_even_half() -> None:
    assert [rounded_total(1, 10, ratio) for ratio in (0.05, 0.15, 0.25, 0.26)] == [0, 2, 2, 3]


def test_vidcom2_gives_an_odd_frame_more_and_keeps_odd_tokens() -> None:
    # Channel 1 varies least (0.44 against 20.25): z is its sign. Frame 1 has the only negative one.
    tokens = video([[0, 1], [9, 1], [0, 1], [9, 1]], [[0, 1], [9, 1], [0, -1], [9, 1]])
    # z: seven times 1, once -1: video mean 3/4, frame means 1 and 1/2. v of frame 1 is lower, so p is near (0, 1):
    # shares 2 (1 -+ 1/2) = 1 and 3, from frame 1 the odd one and the first two of the rest.
    assert loops.vidcom2(tokens, None, None, None, 0.5)[1].tolist() == [0, 4, 5, 6]


def test_vidcom2_looks_at_directions() -> None:
    # Channels 0 and 1 stay, 2 and 3 vary more. The longest token points where most do; the odd one is short.
    tokens = video([[1, 1, 99, -99], [1, 0.9, -99, 99], [5, 5, 99, 99], [1, -1, -99, -99]])
    assert loops.vidcom2(tokens, None, None, None, 0.25)[1].tolist() == [3]


def test_vcast_spends_where_the_path_bends() -> None:
    # Frame means 0, 1, 0, 1: curvature 1, 2, 2, 1. softmax(c / 0.7) = .0967, .4033 twice each; of 6 tokens:
    # 0.58, 2.42, 2.42, 0.58: one, two, two, one.
    a, b = [[-1.0], [1.0], [0.0]], [[0.0], [2.0], [1.0]]
    _, indices = loops.vcast(video(a, b, a, b), None, None, None, 0.5)
    # Scores: frames 0 and 2, mean 0: cosine 0 everywhere, norms 1, 1, 0. Frames 1 and 3, mean 1: unlike 1, 0, 0
    # (zero has cosine 0), norms 0, 1, 1/2 of the largest.
    assert indices.tolist() == [0, 3, 4, 6, 7, 9]


def test_vcast_adds_direction_and_length() -> None:
    # The mean is (1, 1): 1 - cos is 0, .29, .68, 0, scaled 0, .43, 1, 0; norms are 1.41, 3, 2.24, 1.41, scaled
    # 0, 1, .52, 0; together 0, 1.43, 1.52, 0.
    tokens = video([[1, 1], [3, 0], [-1, 2], [1, 1]])
    assert loops.vcast(tokens, None, None, None, 0.5)[1].tolist() == [1, 2]
    assert loops.vcast(tokens, None, None, None, 0.25)[1].tolist() == [2]


def test_vcast_prefers_the_longer_of_tokens_alike() -> None:
    assert loops.vcast(video([[1, 1], [3, 3], [2, 2]]), None, None, None, 0.34)[1].tolist() == [1]


def test_vcast_takes_given_frame_features_for_the_path_only() -> None:
    tokens = torch.zeros(3, 4, 1, dtype=torch.float64)
    straight, bent = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [1.0], [0.0]])
    # Curvature 1, 0, 1 or 1, 2, 1, so exp(c / 0.7) is 4.173, 1 or 17.41: of 6 tokens 2.68, .64, 2.68
    # or .97, 4.06, .97; a frame has 4.
    counts = [
        torch.bincount(loops.vcast(tokens, None, features, None, 0.5)[1] // 4, minlength=3).tolist()
        for features in (straight, bent)
    ]
    assert counts == [[3, 0, 3], [1, 4, 1]]


def test_dpc_knn_finds_two_heaps() -> None:
    points = torch.tensor([[0.0], [1.0], [10.0], [11.0], [12.0]], dtype=torch.float64)
    assert dpc_knn(points, 2, 2) == [[0, 1], [2, 3, 4]]


def test_published_labels_keep_only_longest_runs() -> None:
    assert refined([0, 0, 0, 1, 0, 2, 2]) == [0, 0, 0, 0, 0, 2, 2]
    assert refined([0, 1, 1, 2, 2]) == [1, 1, 1, 2, 2]
    assert refined([0, 1, 2]) == [0, 0, 0]


def test_prunevid_averages_what_stands_still() -> None:
    e, u = [1.0, 0.0], [0.0, 1.0]
    tokens = video([e, e, [2.0, 0.0]], [e, u, [4.0, 0.0]])
    assert [is_static(tokens, place) for place in range(3)] == [True, False, True]
    values, indices = loops.prunevid(tokens, None, None, None, 0.5)
    assert indices.tolist() == [0, 1, 2, 4]
    assert values.tolist() == [e, e, [3, 0], u]


def test_prunevid_makes_a_cluster_of_every_four_frames() -> None:
    # Eight frames, two clusters; seven frames, one.
    heaps = torch.tensor([1.0, 1.01, 1.02, 1.03, 9.0, 9.01, 9.02, 9.03], dtype=torch.float64)[:, None, None]
    values, indices = loops.prunevid(heaps, None, None, None, 0.5, num_neighbors=2)
    assert indices.tolist() == [0, 4]
    assert values[:, 0].tolist() == pytest.approx([1.015, 9.015])
    assert loops.prunevid(heaps[:7], None, None, None, 0.5, num_neighbors=2)[1].tolist() == [0]


def test_prunevid_halves_sets_above_fourteen() -> None:
    # One frame, no pairs: all 16 move. Eight pairs of equal tokens far from each other become eight rows.
    spots = torch.arange(16, dtype=torch.float64).div(2, rounding_mode="floor") ** 2 * 10
    values, indices = loops.prunevid(spots[None, :, None], None, None, None, 0.5, num_neighbors=2)
    assert indices.tolist() == list(range(0, 16, 2))
    assert values[:, 0].tolist() == [10.0 * k * k for k in range(8)]
    assert len(loops.prunevid(spots[None, :14, None], None, None, None, 0.5)[1]) == 14


def test_rotation_turns_each_third_by_its_axis() -> None:
    vector = torch.tensor([1, 0, 0, 1, 1, 0, 7], dtype=torch.float64)
    turned = rotated(vector, (1, 2, 3)).tolist()
    expected = [math.cos(1), math.sin(1), -math.sin(2), math.cos(2), math.cos(3), math.sin(3), 7]
    assert turned == pytest.approx(expected, abs=1e-15)
    second = rotated(torch.eye(12, dtype=torch.float64)[2], (5, 0, 0))  # the second pair of two: 5 / 100
    assert second[2:4].tolist() == pytest.approx([math.cos(0.05), math.sin(0.05)], abs=1e-15)


def test_simple_cluster_averages_directions_alike() -> None:
    # Two channels: nothing is rotated. Centres start at tokens 0 and 2.
    tokens = video([[1, 0], [4, 0.5], [0, 2], [0.5, 3]])
    values, indices = loops.simple_cluster(tokens, None, None, None, 0.5)
    assert indices.tolist() == [0, 2]
    assert values.tolist() == [[2.5, 0.25], [0.25, 2.5]]


def test_simple_cluster_moves_its_centres() -> None:
    # Centres at 0 and 40 degrees. In the first round 0 and 15 join 0, the rest 40; with centres at 7.5 and about
    # 62 degrees 25 changes sides, then with 13 and about 74 so does 40.
    degrees = (0, 15, 25, 40, 90, 91)
    tokens = torch.tensor([[[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees]]).double()
    values, indices = loops.simple_cluster(tokens, None, None, None, 0.34)
    assert indices.tolist() == [0, 4]
    assert torch.allclose(values, torch.stack([tokens[0, :4].mean(0), tokens[0, 4:].mean(0)]))


def test_simple_cluster_drops_empty_clusters() -> None:
    _, indices = loops.simple_cluster(torch.ones(1, 4, 2), None, None, None, 0.5)
    assert indices.tolist() == [0]


def test_sink_correction_lowers_what_always_draws_attention() -> None:
    attn = torch.tensor([[0.0, 1.0, 0.5], [0.0, 1.0, 0.5], [3.0, 3.0, 3.0]], dtype=torch.float64)
    corrected = loops.sink_corrected(attn, [0, 2, 3])
    row = [0.0, 0.98, 0.5 - 0.02 * 0.5**1.1]
    assert corrected.flatten().tolist() == pytest.approx([*row, *row, 3, 3, 3], abs=1e-15)


@pytest.fixture(scope="module")
def clip() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens `[13, 12, 8]`, attention and frame features of two videos of 9 and 4 frames."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randn(13, 12, 8, generator=generator, dtype=torch.float64)
    return tokens, torch.rand(13, 12, generator=generator), torch.randn(13, 6, generator=generator)


def test_fastvid_without_a_replaced_part_is_the_oracle(clip: tuple[Tensor, Tensor, Tensor]) -> None:
    tokens, attn, features = clip
    for given in (None, features):
        settings = {"min_segments": 3, "tau": -0.5}
        values, indices = loops.fastvid(tokens, attn, given, [0, 9, 13], 0.5, **settings)
        oracle = reference.prune(tokens, attn, given, [0, 9, 13], retention_ratio=0.5, **settings)
        assert torch.equal(indices, oracle.indices)
        assert torch.equal(values, oracle.tokens)


def test_fixed_segments_leave_none_empty() -> None:
    assert fixed_segments(5, 2) == [[0, 1], [2, 3, 4]]
    assert fixed_segments(3, 8) == [[0], [1], [2]]


def test_fixed_segments_are_what_cuts_at_equal_steps_would_give() -> None:
    # Four frames of two alike pairs, two segments: DySeg cuts in the middle, as equal parts do.
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(4, 6, 3, generator=generator, dtype=torch.float64)
    attn = torch.rand(4, 6, generator=generator)
    features = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    ours = loops.fastvid(tokens, attn, features, None, 0.5, segmentation="fixed", min_segments=2)
    oracle = reference.prune(tokens, attn, features, retention_ratio=0.5, min_segments=2)
    assert oracle.segments == [(0, 2), (2, 4)]
    assert torch.equal(ours[1], oracle.indices)
    assert torch.equal(ours[0], oracle.tokens)


def test_clustered_segments_are_a_video_in_another_order() -> None:
    """Clusters {0, 2} and {1, 3}: as the video of frames 0, 2, 1, 3 cut in the middle, put back in order."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(4, 6, 3, generator=generator, dtype=torch.float64)
    attn = torch.rand(4, 6, generator=generator)
    features = torch.tensor([[1.0, 0], [0, 1], [1, 0.125], [0.125, 1]])
    settings = {"min_segments": 2, "num_neighbors": 2}
    values, indices = loops.fastvid(tokens, attn, features, None, 0.5, segmentation="cluster", **settings)
    order = [0, 2, 1, 3]
    oracle = reference.prune(tokens[order], attn[order], features[order], retention_ratio=0.5, **settings)
    assert oracle.segments == [(0, 2), (2, 4)]
    back = torch.tensor(order)[oracle.indices // 6] * 6 + oracle.indices % 6
    assert torch.equal(indices, back.sort().values)
    assert torch.equal(values, oracle.tokens[back.argsort()])


def test_uniform_merging_spaces_its_targets() -> None:
    # K = 2 and d = 1/2: one salient token (5), one target. The first of the others: 0.6 a + 0.4 mean of the rest.
    attn = torch.tensor([[0, 0, 0, 0, 0, 1.0]])
    tokens = column(1, 2, 3, 4, 5, 6)
    values, indices = loops.fastvid(tokens, attn, None, None, 0.34, merging="uniform", dtm_ratio=0.5)
    assert indices.tolist() == [0, 5]
    assert values[:, 0].tolist() == pytest.approx([0.6 * 1 + 0.4 * 3.5, 6])


def test_uniform_merging_takes_every_second_of_five_for_two() -> None:
    # All of K = 2 context: targets 0 and 2 of five; -3 and -1 join the negative one.
    tokens = column(1, 2, -3, -1, 4)
    values, indices = loops.fastvid(
        tokens, torch.zeros(1, 5), None, None, 0.4, merging="uniform", dtm_ratio=1.0, beta=0.5
    )
    assert indices.tolist() == [0, 2]
    assert values[:, 0].tolist() == [2.0, -2.0]  # (1 + mean(2, 4)) / 2 and (-3 - 1) / 2


def test_cluster_merging_appends_plain_means(clip: tuple[Tensor, Tensor, Tensor]) -> None:
    # One frame, K = 2, one salient token (0); the mean of the other five goes to the last free place.
    attn = torch.tensor([[1.0, 0, 0, 0, 0, 0]])
    values, indices = loops.fastvid(column(9, 1, 2, 3, 4, 5), attn, None, None, 0.34, merging="cluster", dtm_ratio=0.5)
    assert indices.tolist() == [0, 5]
    assert values[:, 0].tolist() == [9, 3]

    # The rows are those of beta = 0, whatever their places.
    tokens, attn, features = clip
    values, _ = loops.fastvid(tokens, attn, features, [0, 9, 13], 0.5, merging="cluster")
    oracle = reference.prune(tokens, attn, features, [0, 9, 13], retention_ratio=0.5, beta=0.0)
    assert sorted(values.tolist()) == sorted(oracle.tokens.tolist())


@pytest.mark.parametrize("name", sorted(set(loops.__all__) - {"check_random", "sink_corrected"}))
def test_videos_are_on_their_own(name: str, clip: tuple[Tensor, Tensor, Tensor]) -> None:
    tokens, attn, features = clip
    method = getattr(loops, name)
    together, indices = method(tokens, attn, features, torch.tensor([0, 9, 9, 13], dtype=torch.int32), 0.5)
    first = method(tokens[:9], attn[:9], features[:9], None, 0.5)
    second = method(tokens[9:], attn[9:], features[9:], None, 0.5)
    assert torch.equal(together, torch.cat([first[0], second[0]]))
    assert torch.equal(indices, torch.cat([first[1], second[1] + 9 * 12]))
