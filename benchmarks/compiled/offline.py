"""Launches recorded without data, and kernels compiled for a GPU without having one."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
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

from benchmarks.compiled.targets import TARGETS, Resources
from fastvid_kernels import PruneConfig
from fastvid_kernels.kernels import pipeline

_NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion", "launch_pdl")


@dataclass(frozen=True)
class Launch:
    """A kernel with the arguments it would have been launched with."""

    kernel: JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        """The kernel's name."""
        return str(self.kernel.__name__)


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Inside, launches are recorded and not run."""
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
    backward: bool = False,
    **hyperparameters: Any,
) -> list[Launch]:
    """The launches that one call makes on the target, for tokens `[F, N, D]` on the meta device.

    With `feature_channels` None, the tokens' mean is the feature; `videos` holds the frames of each video of a ragged
    batch; with `backward`, the launches are those of the backward pass.
    """
    frames, tokens_per_frame, channels = tokens.shape
    config = PruneConfig(**hyperparameters)
    if attn is None:
        attn = tokens.new_empty(frames, tokens_per_frame)
    features = None if feature_channels is None else tokens.new_empty(frames, feature_channels)
    cu_frames = None if videos is None else torch.empty(len(videos) + 1, dtype=torch.int32, device="meta")
    hip = "6" if TARGETS[target].backend == "hip" else None
    with (
        mock.patch.object(torch.version, "hip", hip),
        mock.patch.object(pipeline, "shared_bytes_of", return_value=TARGETS[target].shared_bytes),
        recorded_launches() as launches,
    ):
        if backward:
            grad = tokens.new_empty(frames * config.kept_per_frame(tokens_per_frame), channels)
            pipeline.prune_backward(grad, tokens, attn, features, cu_frames, config)
        else:
            pipeline.prune(tokens, attn, features, cu_frames, config)
    return launches


@dataclass(frozen=True)
class Specialisation:
    """All that the compilation of a kernel depends on, besides its source."""

    signature: dict[str, str]
    constants: dict[tuple[int], Any]
    attributes: dict[tuple[int], Any]
    options: dict[str, Any]


def specialise(launch: Launch, target: str) -> Specialisation:
    """The specialisation that Triton derives from a launch's arguments: from ones, multiples of 16, and sizes."""
    backend = backends["amd" if TARGETS[target].backend == "hip" else "nvidia"].compiler
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], Any] = {}
    for position, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        kind, key = "constexpr", value
        if not parameter.is_constexpr:
            kind, key = native_specialize_impl(
                backend,
                value,
                False,
                not parameter.do_not_specialize,
                not parameter.do_not_specialize_on_alignment,
            )
        signature[parameter.name] = kind
        if kind == "constexpr":
            constants[(position,)] = value
        elif key:
            attributes[(position,)] = backend.parse_attr(key)
    options = {name: launch.arguments[name] for name in _OPTIONS if name in launch.arguments}
    return Specialisation(signature, constants, attributes, options)


@dataclass(frozen=True)
class Compiled:
    """A kernel compiled for a target.

    Attributes:
        resources: what it needs.
        code: its text by stage of the compiler ("ttir", "ptx", "amdgcn", ...).
        cubin: the binary, or None if the target is not NVIDIA's.
    """

    resources: Resources
    code: dict[str, str]
    cubin: bytes | None

    @cached_property
    def assembly(self) -> str:
        """The machine instructions as text."""
        return self.code["amdgcn"] if self.cubin is None else _on_cubin(self.cubin, "nvdisasm", "-c")


_compiled: dict[tuple[str, str, str], Compiled] = {}


def compile_for(launch: Launch, target: str) -> Compiled:
    """The kernel as the launch would compile it on the target; compiled once per process for equal specialisations."""
    specialisation = specialise(launch, target)
    key = (launch.kernel.cache_key, target, repr(specialisation))
    if key not in _compiled:
        source = ASTSource(launch.kernel, specialisation.signature, specialisation.constants, specialisation.attributes)
        machine = TARGETS[target]
        gpu = GPUTarget(machine.backend, machine.arch, machine.warp_size)
        kernel = triton.compile(source, target=gpu, options=specialisation.options)
        code = {stage: text for stage, text in kernel.asm.items() if isinstance(text, str)}
        _compiled[key] = Compiled(_resources(kernel), code, kernel.asm.get("cubin"))
    return _compiled[key]


def _resources(kernel: Any) -> Resources:
    """Resources as the compiler reports them: ptxas, or the metadata of an AMD code object."""
    metadata = kernel.metadata
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]
        registers = int(_found(r"\.vgpr_count:\s+(\d+)", text))
        # Scalar registers spill to lanes of vector registers, so the private segment is what spills to memory.
        spilled = int(_found(r"\.private_segment_fixed_size:\s+(\d+)", text))
    else:
        report = _on_cubin(kernel.asm["cubin"], "cuobjdump", "--dump-resource-usage")
        # Registers that do not fit go to the stack: its size is the spill, and any other local memory.
        registers, stack, local = (int(_found(rf"{name}:(\d+)", report)) for name in ("REG", "STACK", "LOCAL"))
        spilled = stack + local
    return Resources(
        registers, spilled, metadata.shared, metadata.num_warps, tensor_columns=getattr(metadata, "tmem_size", 0)
    )


def _on_cubin(binary: bytes, tool: str, *options: str) -> str:
    """The output of a CUDA tool that comes with Triton, for a binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(binary)
        cubin.flush()
        command = [str(_NVIDIA_TOOLS / tool), *options, cubin.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match is not None, f"{pattern} is not in the compiler's report"
    return match.group(1)
