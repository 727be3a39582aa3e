"""Long videos are computed in blocks; here blocks are small, so that an error at any boundary shows."""

from __future__ import annotations

import pytest
import torch

from fastvid_kernels import explain
from fastvid_kernels.eager import merge, pipeline
from tests.eager.test_parity import SHAPES, own_distances, video
from tests.stages import check_against_oracle


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "_BLOCK_ELEMENTS", 1)
    monkeypatch.setattr(pipeline, "_DISTANCE_ELEMENTS", 1)


@pytest.mark.parametrize("name", SHAPES)
def test_every_stage_matches_the_oracle(name: str) -> None:
    frames, n, dim, hyperparameters = SHAPES[name]
    tokens, attn, features = video(frames, n, dim, torch.float32, seed=len(name))
    explanation = explain(tokens, attn, features, **hyperparameters)
    check_against_oracle(tokens, attn, features, None, hyperparameters, explanation, own_distances)


def test_sums_near_the_largest_number() -> None:
    tokens = torch.full((6, 10, 4), torch.finfo(torch.float32).max)
    explanation = explain(tokens, torch.zeros(6, 10), retention_ratio=0.2, dtm_ratio=1.0, min_segments=1)
    assert torch.equal(explanation.tokens, tokens.flatten(0, 1)[explanation.indices])
