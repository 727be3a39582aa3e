from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastvid_kernels import PruneConfig

NAN, INF = float("nan"), float("inf")


def test_defaults_are_those_of_the_paper() -> None:
    assert PruneConfig().values() == (0.1, 8, 0.9, 0.4, 4, 0.6, 4)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("retention_ratio", 0.0, r"in \(0, 1\]"),
        ("retention_ratio", -0.1, r"in \(0, 1\]"),
        ("retention_ratio", 1.01, r"in \(0, 1\]"),
        ("retention_ratio", NAN, r"in \(0, 1\]"),
        ("min_segments", 0, "at least 1"),
        ("tau", NAN, "finite"),
        ("tau", INF, "finite"),
        ("tau", -INF, "finite"),
        ("dtm_ratio", -0.01, r"in \[0, 1\]"),
        ("dtm_ratio", 1.01, r"in \[0, 1\]"),
        ("dtm_ratio", NAN, r"in \[0, 1\]"),
        ("anchor_interval", 0, "at least 1"),
        ("beta", -0.01, r"in \[0, 1\]"),
        ("beta", 1.01, r"in \[0, 1\]"),
        ("num_neighbors", -3, "at least 1"),
        ("num_neighbors", 2**63, r"below 2\*\*63"),
        ("tau", 10**400, "finite"),
        ("retention_ratio", 10**400, r"in \(0, 1\]"),
    ],
)
def test_values_out_of_range_are_named(name: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be {expected}, got {value!r}$"):
        PruneConfig(**{name: value})


@pytest.mark.parametrize("name", ["retention_ratio", "tau", "dtm_ratio", "beta"])
@pytest.mark.parametrize("value", ["0.5", None, True, 0.5j, [0.5]])
def test_reals_must_be_numbers(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be a number, got "):
        PruneConfig(**{name: value})


@pytest.mark.parametrize("name", ["min_segments", "anchor_interval", "num_neighbors"])
@pytest.mark.parametrize("value", ["4", None, True, 4.0])
def test_counts_must_be_integers(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be an integer, got "):
        PruneConfig(**{name: value})


def test_numpy_scalars_are_numbers() -> None:
    config = PruneConfig(retention_ratio=np.float16(0.25), min_segments=np.int64(3), anchor_interval=np.uint8(4))
    assert config.kept_per_frame(8) == 2
    assert config == PruneConfig(retention_ratio=0.25, min_segments=3, anchor_interval=4)
    # Python's own, since NumPy's overflow: -np.uint8(4) is 252.
    assert [type(one) for one in config.values()] == [float, int, float, float, int, float, int]


def test_replace_changes_what_is_named_and_checks_it() -> None:
    assert PruneConfig(tau=0.5).replace(beta=0.2) == PruneConfig(tau=0.5, beta=0.2)
    with pytest.raises(ValueError, match="beta"):
        PruneConfig().replace(beta=2.0)
    with pytest.raises(TypeError, match="betta"):
        PruneConfig().replace(betta=0.2)  # type: ignore[call-arg]


def test_ratios_are_read_as_decimals() -> None:
    """In float64, 100 * 0.29 is 28.999..., and int() of it keeps 28."""
    assert int(100 * 0.29) == 28
    assert PruneConfig(retention_ratio=0.29).kept_per_frame(100) == 29
    assert PruneConfig(dtm_ratio=0.7).context_share(10) == 7
