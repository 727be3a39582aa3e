"""Intercepts `kernel[grid](...)`: compiles kernels to PTX, and interprets that on the memory of CPU tensors."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from benchmarks.compiled.offline import Launch, Specialisation, specialise
from tests.emulator import library
from tests.emulator.library import Options, TensorCores, Totals, Traffic

# These compiled kernels have no binary and must never reach a run on a GPU, so they have a cache of their own.
CACHE = library.BUILD / "triton-cache"
# Maps a kernel's name and PTX to changed PTX, with which tests plant faults.
Edit = Callable[[str, str], str]


class Compiled:
    """A kernel as Triton compiles it for a GPU, except for the last step, in which ptxas makes the binary."""

    def __init__(self, launch: Launch, arch: int, specialisation: Specialisation, edit: Edit | None) -> None:
        self.name = launch.name
        self.signature = specialisation.signature
        source = ASTSource(launch.kernel, specialisation.signature, specialisation.constants, specialisation.attributes)
        with (
            mock.patch.object(CUDABackend, "make_cubin", return_value=b"there is none"),
            triton.knobs.cache.scope(),
        ):
            triton.knobs.cache.dir = str(CACHE)
            kernel = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=specialisation.options)
        self.ptx: str = kernel.asm["ptx"]
        self.shared_bytes: int = kernel.metadata.shared
        self.threads: int = 32 * kernel.metadata.num_warps
        try:
            self.program = library.Program(edit(self.name, self.ptx) if edit else self.ptx)
        except NotImplementedError as error:
            raise NotImplementedError(f"{self.name} for sm_{arch}: {error}") from None

    def pack(self, arguments: dict[str, Any]) -> bytes:
        """The parameters in the layout of a launch: each at a multiple of its size."""
        packed = bytearray()
        for name, kind in self.signature.items():
            if kind == "constexpr":
                continue
            value = arguments[name]
            if kind.startswith("*"):
                raw = value.data_ptr().to_bytes(8, "little")
            elif kind == "fp32":
                raw = struct.pack("<f", value)
            else:
                raw = int(value).to_bytes(int(kind[1:]) // 8, "little", signed=kind[0] == "i")
            packed += bytes(-len(packed) % len(raw)) + raw
        # Triton adds two pointers to scratch of its own, which these kernels do not use.
        return bytes(packed) + bytes(-len(packed) % 8) + bytes(16)


@dataclass(frozen=True)
class Run:
    """A launch that has run: its kernel, its grid, and counts of what it did."""

    kernel: str
    grid: tuple[int, int, int]
    totals: Totals
    traffic: dict[str, Traffic]


class Emulator:
    """Inside `with emulator:`, kernels run emulated; `findings` counts errors found, `runs` records the launches.

    Kernels may access tensors among their arguments, and memory registered with `allow`. Compiled kernels are cached.

    Args:
        arch: compute capability, 80 or 90.
        options: what the PTX ISA leaves to the hardware; default: Ampere's tensor cores on sm_80, Hopper's on sm_90.
        edit: changes PTX before it is parsed.
    """

    def __init__(self, arch: int = 80, options: Options | None = None, *, edit: Edit | None = None) -> None:
        self.arch = arch
        self.options = options or Options(TensorCores.HOPPER if arch >= 90 else TensorCores.AMPERE)
        self.findings: Counter[str] = Counter()
        self.runs: list[Run] = []
        self.compiled: dict[tuple[str, str], Compiled] = {}
        self._edit = edit
        self._allowed: dict[int, int] = {}
        self._alive: list[Tensor] = []

    def allow(self, memory: Tensor, name: str, *, defined: bool) -> None:
        """Let kernels access a tensor's storage, if they cannot yet; if not `defined`, it counts as uninitialised."""
        storage = memory.untyped_storage()
        if storage.nbytes() and self._allowed.get(storage.data_ptr()) != storage.nbytes():
            self.allow_part(memory, storage.data_ptr(), storage.nbytes(), name, defined=defined)
            self._allowed[storage.data_ptr()] = storage.nbytes()

    def allow_part(self, memory: Tensor, base: int, size: int, name: str, *, defined: bool) -> None:
        """Let kernels access some bytes of a tensor's storage and no others; the tensor is kept alive."""
        self._alive.append(memory)
        self._allowed[memory.untyped_storage().data_ptr()] = memory.untyped_storage().nbytes()
        library.add_region(base, size, name, defined=defined)

    def forget(self) -> None:
        """Forget all memory that kernels may access, and release its tensors."""
        self._allowed.clear()
        self._alive.clear()
        library.forget_regions()

    def compile(self, launch: Launch) -> Compiled:
        """The launch's kernel, specialised for its arguments."""
        specialisation = specialise(launch, f"sm_{self.arch}")
        key = (launch.kernel.cache_key, repr(specialisation))
        if key not in self.compiled:
            self.compiled[key] = Compiled(launch, self.arch, specialisation, self._edit)
        return self.compiled[key]

    def run(self, launch: Launch) -> None:
        """Run a launch on the memory of its arguments."""
        compiled = self.compile(launch)
        for name, value in launch.arguments.items():
            if isinstance(value, Tensor):
                self.allow(value, name.removesuffix("_ptr"), defined=True)
        grid = (*launch.grid, 1, 1)[:3]
        compiled.program.launch(
            compiled.pack(launch.arguments), grid, compiled.threads, compiled.shared_bytes, self.options
        )
        self.findings.update(dict(library.take_findings()))
        self.runs.append(Run(launch.name, grid, library.totals(), dict(library.traffic())))

    def __enter__(self) -> Emulator:
        CACHE.mkdir(parents=True, exist_ok=True)
        self._taking_over = _launches_go_to(self.run)
        self._taking_over.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._taking_over.__exit__(None, None, None)
        self.forget()


@contextmanager
def _launches_go_to(run: Callable[[Launch], None]) -> Iterator[None]:
    def instead(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        assert not args, "kernels are launched with keywords"
        run(Launch(self, tuple(grid), kwargs))

    with mock.patch.object(JITFunction, "run", instead):
        yield
