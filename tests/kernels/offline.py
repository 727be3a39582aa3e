"""Launches recorded without data, and compiled for GPUs that are not there."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton._C.libtriton import native_specialize_impl
from triton.backends import backends
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from fastvid_kernels import PruneConfig
from fastvid_kernels.kernels import pipeline

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Bytes of shared memory that a block can have.
SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
_NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_OPTIONS = ("num_warps", "num_stages")


@dataclass(frozen=True)
class Launch:
    """A kernel with the arguments it would have been launched with."""

    kernel: JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Inside, kernels are recorded and not run."""
    launches: list[Launch] = []

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        assert not args, "kernels are launched with keywords"
        launches.append(Launch(self, tuple(grid), kwargs))

    with mock.patch.object(JITFunction, "run", record):
        yield launches


def record_call(
    target: str,
    tokens: Tensor,
    *,
    attn: Tensor | None = None,
    feature_channels: int | None = 1152,
    videos: Sequence[int] | None = None,
    **hyperparameters: Any,
) -> list[Launch]:
    """The launches of one call as they are on the target, for tokens `[F, N, D]` on the meta device.

    `feature_channels` is None for the tokens' mean as feature; `videos` holds the frames of each video of a ragged
    batch.
    """
    frames, tokens_per_frame, _ = tokens.shape
    if attn is None:
        attn = tokens.new_empty(frames, tokens_per_frame)
    features = None if feature_channels is None else tokens.new_empty(frames, feature_channels)
    cu_frames = None if videos is None else torch.empty(len(videos) + 1, dtype=torch.int32, device="meta")
    hip = "6" if TARGETS[target].backend == "hip" else None
    with mock.patch.object(torch.version, "hip", hip), recorded_launches() as launches:
        pipeline.prune(tokens, attn, features, cu_frames, PruneConfig(**hyperparameters))
    return launches


@dataclass(frozen=True)
class Specialisation:
    """All that a compiled kernel depends on."""

    signature: dict[str, str]
    constants: dict[tuple[int], Any]
    attributes: dict[tuple[int], Any]
    options: dict[str, Any]


def specialise(launch: Launch, target: str) -> Specialisation:
    """As Triton derives it from the arguments of a real launch: it looks at ones, multiples of 16, sizes."""
    backend = backends["amd" if TARGETS[target].backend == "hip" else "nvidia"].compiler
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], Any] = {}
    for position, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        kind, key = "constexpr", value
        if not parameter.is_constexpr:
            kind, key = native_specialize_impl(backend, value, False, True, True)
        signature[parameter.name] = kind
        if kind == "constexpr":
            constants[(position,)] = value
        elif key:
            attributes[(position,)] = backend.parse_attr(key)
    options = {name: launch.arguments[name] for name in _OPTIONS if name in launch.arguments}
    return Specialisation(signature, constants, attributes, options)


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel asks of a multiprocessor."""

    registers: int
    spilled_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class Compiled:
    """A kernel compiled for a target: what it needs, and its code by stage ("ttir", "ptx", "amdgcn", ...)."""

    resources: Resources
    code: dict[str, str]


_compiled: dict[tuple[str, str, str], Compiled] = {}


def compile_for(launch: Launch, target: str) -> Compiled:
    """The kernel compiled as that launch would compile it on the target; once in a process for each distinct pair."""
    specialisation = specialise(launch, target)
    key = (launch.kernel.cache_key, target, repr(specialisation))
    if key not in _compiled:
        source = ASTSource(launch.kernel, specialisation.signature, specialisation.constants, specialisation.attributes)
        kernel = triton.compile(source, target=TARGETS[target], options=specialisation.options)
        code = {stage: text for stage, text in kernel.asm.items() if isinstance(text, str)}
        _compiled[key] = Compiled(_resources(kernel), code)
    return _compiled[key]


def _resources(kernel: Any) -> Resources:
    """Read from the compiler's own report: ptxas, or the metadata of an AMD code object."""
    shared = kernel.metadata.shared
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]
        registers = int(_found(r"\.vgpr_count:\s+(\d+)", text))
        # Scalar registers spill to lanes of vector registers; what reaches memory is the private segment.
        spilled = int(_found(r"\.private_segment_fixed_size:\s+(\d+)", text))
        return Resources(registers, spilled, shared)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        command = [str(_NVIDIA_TOOLS / "cuobjdump"), "--dump-resource-usage", cubin.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # Registers that do not fit go to the stack: its size is the spill, and any other local memory.
    registers, stack, local = (int(_found(rf"{name}:(\d+)", report)) for name in ("REG", "STACK", "LOCAL"))
    return Resources(registers, stack + local, shared)


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match is not None, f"{pattern} is not in the compiler's report"
    return match.group(1)
