"""The hyperparameters of FastVID, checked once, in one place."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import TypedDict

from typing_extensions import Unpack

MILLION = 1_000_000


class Hyperparameters(TypedDict, total=False):
    """Keyword arguments that every entry point accepts; see `PruneConfig` for what they mean."""

    retention_ratio: float
    min_segments: int
    tau: float
    dtm_ratio: float
    anchor_interval: int
    beta: float
    num_neighbors: int


@dataclass(frozen=True)
class PruneConfig:
    """Hyperparameters of FastVID pruning (SPEC, "Symbols"); the defaults are the paper's.

    Attributes:
        retention_ratio: R, the fraction of tokens kept, 0 < R <= 1, read as a decimal to 1e-6.
        min_segments: c >= 1, the minimum number of segments a video is cut into.
        tau: a transition between frames less similar than this cosine is always a cut; finite.
        dtm_ratio: d, the share of a segment's budget spent on density merging, 0 <= d <= 1, read to 1e-6.
        anchor_interval: p >= 1, every p-th frame of a segment, counted from its last, is an anchor frame.
        beta: the weight of the anchor in a merged token, 0 <= beta <= 1.
        num_neighbors: k >= 1, neighbours in the density estimate, the token itself included.

    Raises:
        TypeError: a value is not a number, or an integer parameter is not an integer.
        ValueError: a value lies outside its range.
    """

    retention_ratio: float = 0.1
    min_segments: int = 8
    tau: float = 0.9
    dtm_ratio: float = 0.4
    anchor_interval: int = 4
    beta: float = 0.6
    num_neighbors: int = 4

    def __post_init__(self) -> None:
        checked = {
            "retention_ratio": _real("retention_ratio", self.retention_ratio, "in (0, 1]", lambda r: 0 < r <= 1),
            "min_segments": _integer("min_segments", self.min_segments),
            "tau": _real("tau", self.tau, "finite", lambda t: -math.inf < t < math.inf),
            "dtm_ratio": _real("dtm_ratio", self.dtm_ratio, "in [0, 1]", lambda d: 0 <= d <= 1),
            "anchor_interval": _integer("anchor_interval", self.anchor_interval),
            "beta": _real("beta", self.beta, "in [0, 1]", lambda b: 0 <= b <= 1),
            "num_neighbors": _integer("num_neighbors", self.num_neighbors),
        }
        # NumPy's scalars become Python's numbers: theirs overflow, and Triton does not take them.
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def replace(self, **changes: Unpack[Hyperparameters]) -> PruneConfig:
        """A copy with some hyperparameters changed; an unknown name is a `TypeError`."""
        return replace(self, **changes)

    def values(self) -> tuple[float, int, float, float, int, float, int]:
        """The hyperparameters in the order of the operator's schema."""
        return (
            self.retention_ratio,
            self.min_segments,
            self.tau,
            self.dtm_ratio,
            self.anchor_interval,
            self.beta,
            self.num_neighbors,
        )

    def kept_per_frame(self, tokens_per_frame: int) -> int:
        """K: tokens kept per frame on average. Integer arithmetic: 0.29 of 100 tokens is 29, not 28."""
        return tokens_per_frame * self.retention_millionths // MILLION

    @property
    def retention_millionths(self) -> int:
        """R in units of 1e-6."""
        return round(MILLION * self.retention_ratio)

    @property
    def dtm_millionths(self) -> int:
        """d in units of 1e-6."""
        return round(MILLION * self.dtm_ratio)

    def context_share(self, kept: int) -> int:
        """floor(kept * d): how many of `kept` tokens go to density merging, before the cap by anchor frames."""
        return kept * self.dtm_millionths // MILLION


def resolve_config(config: PruneConfig, hyperparameters: Hyperparameters) -> PruneConfig:
    """`config` with the hyperparameters that were given by name.

    Raises:
        TypeError: `config` is no `PruneConfig`, or there is no such hyperparameter.
        ValueError: a value lies outside its range.
    """
    if not isinstance(config, PruneConfig):
        raise TypeError(f"config must be a PruneConfig, got {config!r}")
    unknown = sorted(hyperparameters.keys() - vars(config).keys())
    if unknown:
        raise TypeError(f"hyperparameters must be among {', '.join(vars(config))}, got {', '.join(unknown)}")
    return config.replace(**hyperparameters) if hyperparameters else config


def _real(name: str, value: object, expected: str, accept: Callable[[float], bool]) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not accept(number):
        raise ValueError(f"{name} must be {expected}, got {value!r}")
    return number


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if int(value) < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}")
    if int(value) >= 2**63:
        raise ValueError(f"{name} must be below 2**63, got {value!r}")
    return int(value)
