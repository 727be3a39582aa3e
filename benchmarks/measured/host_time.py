"""Host time of a call without the device's work, measured on any machine; and the time that compiling takes.

    python -m benchmarks.measured.host_time [--compile sm_90]

Times are medians, as multiples of a small `torch.add` in the same run. Launches are replaced by nothing, or by a driver
that does nothing (`benchmarks.compiled.no_device`), so that Triton's own host code is included; a real driver takes
further time. `--compile` compiles all that `warmup` compiles, in this process alone: first with an empty cache, then
with the cache that this has filled.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any
from unittest import mock

import torch
import triton
from rich.console import Console
from rich.table import Table
from triton.runtime.jit import JITFunction

from benchmarks.compiled import offline
from benchmarks.compiled.no_device import no_device
from benchmarks.compiled.offline import compile_for, recorded_launches
from benchmarks.compiled.targets import TARGETS
from fastvid_kernels import PruneConfig, ops, warmup
from fastvid_kernels.kernels import pipeline
from fastvid_kernels.kernels.pipeline import Call

_SIZE = (32, 196, 3584)
_FEATURES = 1152
ADD = "a small torch.add"
OPERATOR = "the operator, launches replaced by nothing"
LAUNCHED = "the operator, with Triton's way to the driver"


def _nothing(*args: object, **kwargs: object) -> None:
    """Replaces a launch; it costs less than a mock."""


def microseconds(run: Callable[[], object], calls: int, rounds: int) -> float:
    """Median over rounds of the mean time of a call, in microseconds."""
    run()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(calls):
            run()
        times.append((time.perf_counter() - begin) / calls)
    return 1e6 * median(times)


def host_times(calls: int = 300, rounds: int = 15) -> dict[str, float]:
    """Microseconds by part, of one call at 32x196x3584 in bfloat16."""
    frames, tokens_per_frame, channels = _SIZE
    tokens = torch.zeros(frames, tokens_per_frame, channels, dtype=torch.bfloat16)
    attn, features = torch.zeros(frames, tokens_per_frame), torch.zeros(frames, _FEATURES)
    config = PruneConfig()
    small = torch.ones(8)

    def measure(run: Callable[[], object]) -> float:
        return microseconds(run, calls, rounds)

    def operator() -> object:
        return torch.ops.fastvid.prune_triton(tokens, attn, features)

    def relaunch_by_triton() -> None:
        for step in call.recipe.steps:
            step.run(arrays)

    with mock.patch.object(ops, "check_triton", _nothing), torch.inference_mode():
        with no_device(_nothing):
            launched = measure(operator)
            call = pipeline.prepare(tokens, attn, features, None, config)
            arrays = call.arrays()
            by_triton = measure(relaunch_by_triton)
        with mock.patch.object(JITFunction, "run", _nothing):
            call = pipeline.prepare(tokens, attn, features, None, config)
            nothing = _without_launches(measure, operator, call, (tokens, attn, features, None, config))
    return {
        ADD: measure(lambda: torch.add(small, small)),
        **nothing,
        LAUNCHED: launched,
        "eight launches as Triton's JIT makes them": by_triton,
    }


def _without_launches(
    measure: Callable[[Callable[[], object]], float],
    operator: Callable[[], object],
    call: Call,
    inputs: tuple[Any, ...],
) -> dict[str, float]:
    return {
        OPERATOR: measure(operator),
        "of it: finding the recipe, allocating": measure(lambda: pipeline.prepare(*inputs)),
        "of it: addresses": measure(call.addresses),
        "of it: addresses, arguments of eight launches": measure(lambda: pipeline.launch(call)),
    }


def as_table(times: dict[str, float]) -> Table:
    """Microseconds, and multiples of the small addition."""
    table = Table(title=f"host time of a call at {'x'.join(map(str, _SIZE))}, torch {torch.__version__}")
    table.add_column("part")
    for heading in ("µs", "small additions"):
        table.add_column(heading, justify="right")
    for part, time_us in times.items():
        table.add_row(part, f"{time_us:.1f}", f"{time_us / times[ADD]:.0f}")
    return table


def compile_seconds(target: str, channels: int) -> tuple[int, float, float]:
    """The number of kernels that `warmup` compiles, and its seconds with an empty and with a filled cache."""
    with recorded_launches() as launches:
        warmup("meta", channels, feature_channels=_FEATURES, progress=False)
    seconds = []
    with tempfile.TemporaryDirectory() as folder, triton.knobs.cache.scope():
        triton.knobs.cache.dir = folder
        for _ in range(2):
            offline._compiled.clear()
            begin = time.perf_counter()
            for launch in launches:
                compile_for(launch, target)
            seconds.append(time.perf_counter() - begin)
            compiled = len(offline._compiled)
    return compiled, seconds[0], seconds[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.measured.host_time", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--compile", choices=TARGETS, help="also compile for this GPU")
    parser.add_argument("--channels", type=int, default=_SIZE[2], help="of what is compiled")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=300, help="of a round")
    options = parser.parse_args(arguments)
    console = Console()
    console.print(as_table(host_times(options.calls, options.rounds)))
    if options.compile:
        compiled, cold, cached = compile_seconds(options.compile, options.channels)
        console.print(
            f"{compiled} kernels for {options.compile}, Triton {triton.__version__}: {cold:.1f} s without a cache, "
            f"{cached:.2f} s with a filled one",
            highlight=False,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
