"""Memory that a call takes besides its tokens and its output, as a share of the tokens: measured, and from shapes.

    python -m benchmarks.measured.memory [--frames 32 64 128]

For the eager backend, it is the peak allocation during a call on the CPU, from PyTorch's profiler. Above 512 frames the
profiler itself needs too much memory: there glibc's account of the heap is sampled. For the Triton backend, it is the
scratch, which is all that it allocates and depends on shapes alone.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import threading
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import fastvid_kernels
from benchmarks.inputs.videos import preset_video
from fastvid_kernels import PruneConfig

FRAMES = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
TOKENS_PER_FRAME, CHANNELS = 196, 3584
MOST_PROFILED_FRAMES = 512
SAMPLE_SECONDS = 0.005


def peak_bytes(run: Callable[[], object]) -> int:
    """Peak memory that a call on the CPU allocates, including what it returns."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [one for one in recorded.profiler.kineto_results.events() if one.name() == "[memory]"]  # type: ignore[union-attr]
    allocated = peak = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak


class Heap(ctypes.Structure):
    """glibc's account of what `malloc` has handed out: `mallinfo2`."""

    _NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_: ClassVar = [(name, ctypes.c_size_t) for name in _NAMES.split()]

    @classmethod
    def bytes_in_use(cls) -> int:
        """Of the whole process, whoever allocated them."""
        mallinfo = ctypes.CDLL(None).mallinfo2
        mallinfo.restype = cls
        heap = mallinfo()
        return int(heap.hblkhd + heap.uordblks)


def sampled_peak_bytes(run: Callable[[], object]) -> int:
    """As `peak_bytes`, by looking at the heap every few milliseconds: for calls of many seconds, with glibc 2.33."""
    before = peak = Heap.bytes_in_use()
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(SAMPLE_SECONDS):
            peak = max(peak, Heap.bytes_in_use())

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        run()
    finally:
        done.set()
        sampler.join()
    return peak - before


def eager_share(tokens: Tensor, attn: Tensor, frame_features: Tensor) -> float:
    """Memory that the eager backend takes besides the output, as a share of the tokens' bytes."""

    def run() -> tuple[Tensor, ...]:
        return tuple(fastvid_kernels.prune(tokens, attn, frame_features, backend="eager"))

    output = sum(one.nbytes for one in run())
    peak = peak_bytes(run) if len(tokens) <= MOST_PROFILED_FRAMES else sampled_peak_bytes(run)
    return (peak - output) / tokens.nbytes


def scratch_share(frames: int, tokens_per_frame: int, channels: int, dtype: torch.dtype) -> float:
    """Memory that the Triton backend takes besides the output, as a share of the tokens' bytes."""
    from fastvid_kernels.kernels import pipeline

    tokens = torch.empty(frames, tokens_per_frame, channels, dtype=dtype, device="meta")
    call = pipeline.prepare(tokens, tokens[..., 0], tokens.new_empty(frames, 1152), None, PruneConfig())
    return call.workspace.size / tokens.nbytes


def memory_table(measured: Sequence[int]) -> Table:
    """A row for each length, with the eager backend for the lengths in `measured`."""
    table = Table(
        title=f"Memory beyond the output, share of the tokens (N = {TOKENS_PER_FRAME}, D = {CHANNELS}, R = 0.10)"
    )
    table.add_column("frames", justify="right")
    dtypes = (torch.bfloat16, torch.float32)
    for backend in ("eager, measured", "Triton, from shapes"):
        for dtype in dtypes:
            table.add_column(f"{backend}, {str(dtype).removeprefix('torch.')}", justify="right")
    for frames in FRAMES:
        size = (frames, TOKENS_PER_FRAME, CHANNELS)
        cells = [
            f"{eager_share(*preset_video('few cuts', *size, seed=0, dtype=dtype)):.1%}" if frames in measured else "-"
            for dtype in dtypes
        ]
        table.add_row(str(frames), *cells, *(f"{scratch_share(*size, dtype):.1%}" for dtype in dtypes))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.measured.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="*", default=[32, 64, 128], help="where eager is measured")
    Console(width=120).print(memory_table(parser.parse_args(arguments).frames))
    return 0


if __name__ == "__main__":
    sys.exit(main())
