"""Benchmarks of the whole operator and of the alternatives to it. `make bench` runs them.

An arm is timed only after its results agree with `arms.reference` on all sets of inputs; calls use the sets in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from itertools import cycle
from typing import Any

import pytest
import torch

from benchmarks.compared import arms
from benchmarks.compared.agreement import TOLERANCES, agreement
from benchmarks.inputs.cases import FILM, LONG, MAIN, RAGGED, SINGLE, TINY, TYPICAL, Case, inputs_of
from benchmarks.measured.conftest import chosen_device
from benchmarks.measured.device import demands

ON_CUDA = (arms.KERNELS, arms.GRAPH)
OURS = (arms.EAGER,)
PUBLISHED = (arms.LLAVA_VIDEO_FORM, arms.ONEVISION_FORM)
# Compiling takes minutes a case, so only one case is compiled.
COMPILED_CASES = (TYPICAL[1], TINY[0])
REPLAYS = 8
_MAKE = {
    arms.KERNELS: arms.kernels,
    arms.GRAPH: arms.kernels,
    arms.EAGER: arms.eager,
    arms.PRODUCTS: arms.matrix_products,
    arms.COMPILED: arms.compiled,
    arms.LLAVA_VIDEO_FORM: arms.published_llava_video,
    arms.ONEVISION_FORM: arms.published_onevision,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "arm" not in metafunc.fixturenames:
        return
    is_cuda = chosen_device(metafunc.config).type == "cuda"
    # The budget may not suffice for all of them: what most depends on comes first.
    first = [*MAIN, *RAGGED, *([FILM] if is_cuda else ())]
    everything = first + [case for case in (*SINGLE, *TYPICAL, *LONG) if case not in first]
    cases = TINY if metafunc.config.getoption("--tiny") else everything
    pairs = []
    for case in cases:
        names = [
            *(ON_CUDA if is_cuda else (*OURS, arms.PRODUCTS)),
            *(OURS if is_cuda else ()),
            *(() if case.is_long and not is_cuda else PUBLISHED),
        ]
        names += [arms.COMPILED] if case in COMPILED_CASES else []
        pairs += [(case, name) for name in names]
    metafunc.parametrize(("case", "arm"), pairs, ids=[f"{case}, {name}" for case, name in pairs])


def sets_for(case: Case, device: torch.device) -> int:
    """Number of sets of inputs used in turn: one for a long video, which is larger than any cache."""
    if case.is_long:
        return 1
    return 4 if device.type == "cuda" else 2


def rounds_for(case: Case, arm: str, device: torch.device) -> int:
    """Number of rounds: many for short calls, two for calls of a minute."""
    if device.type == "cuda":
        return 100 if arm in ON_CUDA else 20
    if case.frames > 512:
        return 2
    return 3 if case.is_long else 9


@lru_cache(maxsize=4)
def reference(case: Case, number: int, sets: int, device: torch.device) -> arms.Pruned:
    return arms.reference(case, inputs_of(case, sets)[number], device)


def check(case: Case, arm: str, runs: list[Callable[[], arms.Pruned]], device: torch.device) -> float:
    """Least overlap with the reference's tokens over all sets of inputs."""
    needed = TOLERANCES[case.dtype]
    overlaps = []
    for number, run in enumerate(runs):
        tokens, indices = run()
        expected = reference(case, number, len(runs), device)
        found = agreement((tokens.cpu(), indices.cpu()), expected, relative_tolerance=needed.relative_error)
        overlaps.append(found.overlap)
        if arm not in PUBLISHED:
            assert found.overlap >= needed.overlap, f"kept {found.overlap:.1%} of the reference's tokens"
            assert found.close_rows >= needed.close_rows, f"{found.close_rows:.1%} of rows are close to the reference's"
    return min(overlaps)


def test_prune(benchmark: Any, case: Case, arm: str, device: torch.device, measured_copy_rate: float) -> None:
    inputs = [one.to(device) for one in inputs_of(case, sets_for(case, device))]
    run = _MAKE[arm](case)
    runs = [lambda one=one: run(one) for one in inputs]
    if arm == arms.GRAPH:
        runs = [arms.captured([one]) for one in runs]
    overlap = check(case, arm, runs, device)
    turns = cycle(runs)
    # A replay takes no longer than the host takes to resume after a wait, so several are timed together.
    calls = REPLAYS if arm == arms.GRAPH else 1

    def target() -> None:
        for _ in range(calls):
            next(turns)()

    # The check has run each of them once, but a GPU needs more to raise its clocks.
    warmup_rounds = 2 * len(runs) if device.type == "cuda" else 0
    benchmark.pedantic(target, rounds=rounds_for(case, arm, device), warmup_rounds=warmup_rounds)
    # After the timing, since profiling a call may slow down later ones.
    benchmark.extra_info |= {
        "case": asdict(case),
        "arm": arm,
        "overlap": overlap,
        "checked_against": "eager backend, float32" if case.is_long else "published LLaVA-Video form, float32",
        "least_bytes": case.least_bytes,
        "copy_rate": measured_copy_rate,
        "calls": calls,
        **asdict(demands(runs[0], device)),
    }
