"""The cost of a tower's scores: every part is measured and shown."""

from __future__ import annotations

import torch
from rich.console import Console

from benchmarks.in_models import score_cost
from fastvid_kernels.vision import TOWER_ATTENTION


def test_every_score_stands_beside_a_block() -> None:
    measured = score_cost.seconds(frames=1, patches=16, device=torch.device("cpu"), least=0.01)
    assert list(measured) == ["one block", "its qkv product", *TOWER_ATTENTION]
    assert all(one > 0 for one in measured.values())
    console = Console(width=100, record=True)
    console.print(score_cost.as_table(measured, "here"))
    shown = console.export_text()
    assert all(name in shown for name in measured)
