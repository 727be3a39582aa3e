"""The operator stage by stage: the kernels' launches on CUDA, the eager backend's steps on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch

from benchmarks.compared import arms
from benchmarks.inputs.cases import FILM, MAIN, TINY, Case, Inputs, inputs_of
from benchmarks.measured.bench_prune import check, sets_for
from benchmarks.measured.conftest import chosen_device

CUDA_STAGES = ("frame", "plan", "gram", "density", "delta", "select", "assign", "emit")
CPU_STAGES = ("segments and budgets", "salient tokens", "density peaks", "merge")
LAUNCHES_IN_A_GRAPH = 20


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    is_cuda = chosen_device(metafunc.config).type == "cuda"
    stages = CUDA_STAGES if is_cuda else CPU_STAGES
    cases = TINY[:1] if metafunc.config.getoption("--tiny") else [*MAIN, *([FILM] if is_cuda else ())]
    pairs = [(case, stage) for case in cases for stage in stages]
    metafunc.parametrize(("case", "stage"), pairs, ids=[f"{case}, {stage}" for case, stage in pairs])


def kernel_stages(case: Case, inputs: Inputs) -> dict[str, Callable[[], object]]:
    """The launches of a call that has run; each uses the results of the earlier ones in the scratch."""
    from fastvid_kernels.kernels import pipeline

    call = pipeline.prepare(*inputs, case.config)
    pipeline.launch(call)
    return {step.name: lambda step=step: step.run(call.arrays()) for step in call.recipe.steps}


def eager_stages(case: Case, inputs: Inputs) -> dict[str, Callable[[], object]]:
    """The steps of the eager backend, each on the results of the earlier ones."""
    from fastvid_kernels.eager import pipeline
    from fastvid_kernels.eager.merge import merge_tokens
    from fastvid_kernels.eager.salient import salient_mask

    tokens, attn, features, _ = inputs
    starts = [number * case.frames for number in range(case.videos + 1)]
    plan = pipeline.plan_videos(features, starts, tokens.shape[1], case.config)
    n_salient = torch.tensor([count for segment in plan for count in segment.n_salient])
    salient = salient_mask(attn, n_salient)
    is_anchor = pipeline.density_peaks(tokens, salient, plan, case.config)
    anchors = is_anchor.flatten().nonzero().squeeze(1)
    return {
        "segments and budgets": lambda: pipeline.plan_videos(features, starts, tokens.shape[1], case.config),
        "salient tokens": lambda: salient_mask(attn, n_salient),
        "density peaks": lambda: pipeline.density_peaks(tokens, salient, plan, case.config),
        "merge": lambda: merge_tokens(tokens, salient, salient | is_anchor, anchors, plan, case.config.beta),
    }


def test_stage(benchmark: Any, case: Case, stage: str, device: torch.device) -> None:
    is_cuda = device.type == "cuda"
    inputs = [one.to(device) for one in inputs_of(case, sets_for(case, device))]
    arm = arms.KERNELS if is_cuda else arms.EAGER
    whole = (arms.kernels if is_cuda else arms.eager)(case)
    check(case, arm, [lambda one=one: whole(one) for one in inputs], device)
    make = kernel_stages if is_cuda else eager_stages
    runs = [make(case, one)[stage] for one in inputs]
    # A launch is shorter than the host's call, so a graph holds many, on inputs that evict one another from the cache.
    calls = (len(inputs) if case.is_long else LAUNCHES_IN_A_GRAPH) if is_cuda else 1
    target = arms.captured(runs * (calls // len(runs))) if is_cuda else runs[0]
    benchmark.extra_info |= {"case": asdict(case), "arm": arm, "stage": stage, "calls": calls}
    benchmark.pedantic(target, rounds=50 if is_cuda else 15, warmup_rounds=3)
