import pytest

from benchmarks.measured.spread import Spread


def test_spread_of_a_known_sample():
    spread = Spread.of([10.0, 0.0, 5.0, 2.0, 8.0])
    assert (spread.p20, spread.p50, spread.p80) == pytest.approx((1.6, 5.0, 8.4))
