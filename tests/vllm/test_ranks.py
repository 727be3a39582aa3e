"""Tensor parallelism: two ranks, each with half of the heads, keep the same tokens and answer as one does."""

from __future__ import annotations

import pytest

from tests.vllm import engine
from tests.vllm.family import Family


@pytest.mark.parametrize(
    "family",
    [
        "llava",
        "next-video",
        "internvl",
        "internvl-chat",
        "qwen2",
        "qwen2.5",
        "qwen3",
        "qwen3-moe",
        "glm4.1",
        "glm4.5-moe",
    ],
    indirect=True,
)
def test_two_ranks(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each rank on a core of its own; without this, vLLM looks for a NUMA node for each.
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    several = family.requests()
    with engine.running(family.checkpoint, **family.settings(), tensor_parallel_size=2) as running:
        for request, answer in zip(several.values(), running.answer(*several.values()), strict=True):
            family.check(request, answer)
