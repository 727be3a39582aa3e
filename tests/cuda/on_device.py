"""What the tests on a GPU share: sizes, inputs, and ways to watch the device."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.inputs.videos import preset_video

if TYPE_CHECKING:
    from fastvid_kernels.kernels.pipeline import Call

DEVICE = "cuda"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
REPEATS = 100
FILM_FRAMES = 32
STAGES = ("frame", "plan", "gram", "density", "delta", "select", "assign", "emit")


def on_host(call: Call) -> Call:
    workspace = type(call.workspace)(call.recipe.scratch, call.recipe.scratch_bytes, torch.device("cpu"))
    workspace._bytes.copy_(call.workspace._bytes)
    inputs = {name: getattr(call, name) for name in ("tokens", "attn", "frame_features", "cu_frames")}
    return replace(
        call,
        **{name: None if one is None else one.cpu() for name, one in inputs.items()},
        workspace=workspace,
        output=call.output.cpu(),
        indices=call.indices.cpu(),
    )


def film(seed: int, preset: str = "many cuts", dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    """A video of LLaVA-OneVision's size, on the device."""
    return preset_video(preset, FILM_FRAMES, 196, 3584, seed=seed, dtype=dtype, device=DEVICE)


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """In this context an operation for which the host waits raises an error."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def device_work(run: Callable[[], object], trace: Path) -> list[str]:
    """Names of the kernels, copies and fills that a function starts, by the profiler's own classification."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
        torch.cuda.synchronize()
    profile.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    return [event["name"] for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
