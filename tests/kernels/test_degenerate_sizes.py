"""Triton compiles an argument that is 1 as a constant: every kernel must still compile, for every argument."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from fastvid_kernels import PruneConfig

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")

# frames, tokens a frame, channels, feature channels, videos (0: no cu_frames), hyperparameters
SIZES: list[tuple[int, int, int, int, int, dict[str, Any]]] = [
    (1, 196, 3584, 1152, 0, {}),
    (1, 1, 1, 1, 0, {"retention_ratio": 1.0}),
    (1, 8, 1, 0, 1, {"retention_ratio": 0.2, "min_segments": 1, "anchor_interval": 1, "num_neighbors": 1}),
    (1, 8, 1, 0, 1, {"retention_ratio": 0.2, "dtm_ratio": 1.0, "anchor_interval": 1, "num_neighbors": 1}),
    (5, 8, 16, 1, 2, {"retention_ratio": 0.2, "dtm_ratio": 1.0, "anchor_interval": 1, "beta": 1.0}),
    (5, 8, 16, 16, 1, {"retention_ratio": 1.0}),
    (4, 300, 64, 16, 1, {"retention_ratio": 0.1, "dtm_ratio": 0.0}),
    (2, 2, 1, 0, 0, {"retention_ratio": 0.5, "dtm_ratio": 1.0}),
    (9, 20, 32, 32, 2, {"tau": 0.0}),
    (9, 20, 32, 32, 2, {"tau": -1e308, "min_segments": 2**62, "anchor_interval": 2**62, "num_neighbors": 2**62}),
    (9, 20, 32, 32, 2, {"tau": 2.0**-40 - 2.0}),
]


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_kernels_compile_where_arguments_are_one(
    size: tuple[int, int, int, int, int, dict[str, Any]], backward: bool
) -> None:
    from benchmarks.compiled.offline import compile_for, recorded_launches
    from fastvid_kernels.kernels.pipeline import launch, prepare

    frames, n, dim, feature_channels, videos, hyperparameters = size
    meta = {"dtype": torch.bfloat16, "device": "meta"}
    features = torch.empty(frames, feature_channels, **meta) if feature_channels else None
    cu_frames = torch.empty(videos + 1, dtype=torch.int32, device="meta") if videos else None
    with recorded_launches() as launches:
        tokens, attn = torch.empty(frames, n, dim, **meta), torch.empty(frames, n, **meta)
        config = PruneConfig(**hyperparameters)
        grad = torch.empty(frames * config.kept_per_frame(n), dim, **meta) if backward else None
        launch(prepare(tokens, attn, features, cu_frames, config, grad=grad))
    assert len(launches) in (4, 8)
    for recorded in launches:
        compile_for(recorded, "sm_90")
