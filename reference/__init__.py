"""The oracle: FastVID in float64 and plain loops, to be read beside docs/spec.md and the paper.

`prune` runs the whole method and keeps every intermediate result. Each step is a function that can be called
alone, so that another implementation can be checked stage by stage from its own intermediate results. In the
order of the paper, the modules are `dyseg` (Eq. 1-2), `budgets`, `salient`, `peaks` (Eq. 3-4), `merge` (Eq. 5),
and `pipeline`, which calls the others.
"""

from .budgets import SegmentBudget, anchor_positions, segment_budget, tokens_per_frame
from .dyseg import (
    BELOW_ALL,
    mean_frame_features,
    quantise,
    quantised_transitions,
    segments_between,
    select_cuts,
    transition_similarity,
)
from .merge import aggregate, anchor_weights, assign, normalised, pool_of_anchor_frame, similarities
from .peaks import (
    density_order,
    density_peaks,
    mean_squared_neighbour_distance,
    peak_scores,
    squared_delta,
    squared_distances,
)
from .pipeline import AnchorFrame, PruneResult, prune
from .rounding import round_once
from .salient import salient_tokens

__all__ = [
    "BELOW_ALL",
    "AnchorFrame",
    "PruneResult",
    "SegmentBudget",
    "aggregate",
    "anchor_positions",
    "anchor_weights",
    "assign",
    "density_order",
    "density_peaks",
    "mean_frame_features",
    "mean_squared_neighbour_distance",
    "normalised",
    "peak_scores",
    "pool_of_anchor_frame",
    "prune",
    "quantise",
    "quantised_transitions",
    "round_once",
    "salient_tokens",
    "segment_budget",
    "segments_between",
    "select_cuts",
    "similarities",
    "squared_delta",
    "squared_distances",
    "tokens_per_frame",
    "transition_similarity",
]
