"""Budgets, exhaustively over small sizes (SPEC section 2)."""

from __future__ import annotations

from decimal import Decimal

import pytest

import reference
from fastvid_kernels import PruneConfig
from fastvid_kernels.eager.budgets import plan_segment

RETENTION_RATIOS = ("0.05", "0.1", "0.25", "0.29", "0.5", "0.7", "0.9", "1")
DTM_RATIOS = ("0", "0.1", "0.4", "0.7", "1")
MAX_TOKENS = MAX_LENGTH = 24
MAX_INTERVAL = 8


@pytest.mark.parametrize("retention_ratio", RETENTION_RATIOS)
@pytest.mark.parametrize("dtm_ratio", DTM_RATIOS)
def test_totals_are_exact_and_nobody_gives_more_than_it_has(retention_ratio: str, dtm_ratio: str) -> None:
    for interval in range(1, MAX_INTERVAL + 1):
        config = PruneConfig(float(retention_ratio), dtm_ratio=float(dtm_ratio), anchor_interval=interval)
        for n in range(1, MAX_TOKENS + 1):
            kept = int(n * Decimal(retention_ratio))
            assert config.kept_per_frame(n) == kept
            if kept == 0:
                continue
            for length in range(1, MAX_LENGTH + 1):
                check_segment(n, length, kept, config, Decimal(dtm_ratio))


def check_segment(n: int, length: int, kept: int, config: PruneConfig, dtm_ratio: Decimal) -> None:
    start = 5
    plan = plan_segment(start, length, n, config)
    interval = config.anchor_interval
    n_salient = dict(zip(range(start, start + length), plan.n_salient, strict=True))
    n_context = dict(zip(plan.anchor_frames, plan.n_context, strict=True))

    assert plan.end == start + length
    assert list(plan.anchor_frames) == [start + i for i in range(length) if (length - 1 - i) % interval == 0]
    assert len(plan.anchor_frames) == -(-length // interval)
    assert sum(plan.n_salient) + sum(plan.n_context) == kept * length
    assert all(n_salient[frame] + n_context.get(frame, 0) <= n for frame in n_salient)
    assert max(plan.n_salient) - min(plan.n_salient) <= 1
    assert max(plan.n_context) - min(plan.n_context) <= 1
    assert sorted(plan.n_salient, reverse=True) == list(plan.n_salient)
    assert sorted(plan.n_context) == list(plan.n_context)

    published = int(kept * length * dtm_ratio)
    cap = len(plan.anchor_frames) * (n - kept)
    assert sum(plan.n_context) == min(published, cap)

    oracle = reference.segment_budget(length, n, kept, config.dtm_ratio, interval)
    assert list(plan.n_salient) == oracle.salient_per_frame
    assert [n_context.get(start + i, 0) for i in range(length)] == oracle.context_per_frame
