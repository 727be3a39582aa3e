"""DySeg's arithmetic: exact units of 2**-40, whatever tau."""

from __future__ import annotations

import pytest
import torch

import reference
from fastvid_kernels.eager.dyseg import mean_frame_features, segment_lengths, transition_similarity


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_units_are_those_of_the_oracle(dtype: torch.dtype) -> None:
    features = torch.randn(200, 37, generator=torch.Generator().manual_seed(0)).to(dtype)
    features[5] = 0
    features[9, 3] = float("nan")
    features[20, 1] = float("inf")
    units = [unit if unit > -(2**62) else reference.BELOW_ALL for unit in transition_similarity(features).tolist()]
    assert units == reference.quantised_transitions(features)


def test_units_round_half_up() -> None:
    """Cosine 2**-41 is half a unit, and 3 * 2**-41 one and a half."""
    for halves, expected in ((1, 1), (3, 2), (-1, 0), (-3, -1)):
        angle = torch.tensor([[1.0, 0.0], [halves * 2.0**-41, 1.0]], dtype=torch.float64)
        assert transition_similarity(angle).tolist() == [expected]


@pytest.mark.parametrize("tau", [1e308, -1e308, 1.0, 0.9, 0.0, -1.0, 2.5, -2.5])
def test_cuts_are_those_of_the_oracle_whatever_tau(tau: float) -> None:
    similarity = [2**40, 2**40 - 1, 0, -(2**40), 989560464999, 989560464998, 989560464998, 2**40]
    for min_segments in (1, 2, 3, 9, 2**62):
        cuts = reference.select_cuts(similarity, min_segments, tau)
        expected = [end - start for start, end in reference.segments_between(cuts, 9)]
        assert segment_lengths(similarity, min_segments, tau) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_mean_features_are_summed_in_float64(dtype: torch.dtype) -> None:
    tokens = torch.randn(3, 100, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    tokens[:, 0] = 1e4
    tokens[:, 1] = -1e4
    assert torch.equal(mean_frame_features(tokens), reference.mean_frame_features(tokens))
