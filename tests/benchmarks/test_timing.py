import pytest

from benchmarks.timing import Spread, paired_ratio, time_interleaved


def test_every_round_gives_all_arms_the_same_input_and_takes_turns():
    calls = []
    arms = {name: lambda one, name=name: calls.append((name, one)) for name in "abc"}
    seconds = time_interleaved(arms, [10, 20], rounds=4)
    assert {name: len(sample) for name, sample in seconds.items()} == {"a": 4, "b": 4, "c": 4}
    warm_up, measured = calls[:6], calls[6:]
    assert sorted(warm_up) == [(name, one) for name in "abc" for one in (10, 20)]
    rounds = [measured[start : start + 3] for start in range(0, 12, 3)]
    assert [{one for _, one in each} for each in rounds] == [{10}, {20}, {10}, {20}]
    assert ["".join(name for name, _ in each) for each in rounds] == ["abc", "bca", "cab", "abc"]


def test_spread_of_a_known_sample():
    spread = Spread.of([10.0, 0.0, 5.0, 2.0, 8.0])
    assert (spread.p20, spread.p50, spread.p80) == pytest.approx((1.6, 5.0, 8.4))


def test_paired_ratio_ignores_what_slows_a_whole_round():
    baseline = [1.0, 50.0, 2.0]
    assert paired_ratio([3.0, 150.0, 6.0], baseline) == pytest.approx(3.0)
