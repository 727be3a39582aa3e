"""The PTX interpreter as a shared library, built with g++ and called through ctypes."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parent / "ptx"
BUILD = Path(__file__).parent / "build"
# Without contraction, so that the library computes what its source says.
_FLAGS = ["-std=c++20", "-O3", "-march=native", "-ffp-contract=off", "-fPIC"]


class TensorCores(IntEnum):
    """How matrix products are summed: rounded once an instruction, or truncated as on hardware."""

    EXACT = 0
    AMPERE = 1
    HOPPER = 2


class Approximation(IntEnum):
    """What an approximate root or quotient returns, within its documented error."""

    EXACT = 0
    SCATTERED = 1
    UP = 2
    DOWN = 3


class Order(IntEnum):
    """The order of the blocks of a launch, and of the warps of a block."""

    FORWARD = 0
    SHUFFLED = 1
    REVERSED = 2


@dataclass(frozen=True)
class Options:
    """Behaviour that the PTX ISA leaves to the hardware.

    Attributes:
        tensor_cores: those of `mma`; `wgmma` uses Hopper's unless products are exact.
        approximation: results of approximate instructions.
        order: order of blocks and warps.
        quantum: instructions that a warp runs at most before another one's turn; 0: it runs until it waits.
        seed: seed of the random order and of scattered approximations.
        races: whether to look for races, which takes most of the memory and much of the time.
    """

    tensor_cores: TensorCores = TensorCores.AMPERE
    approximation: Approximation = Approximation.EXACT
    order: Order = Order.FORWARD
    quantum: int = 0
    seed: int = 0
    races: bool = True


class _Options(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int32) for name in ("tensor_cores", "approximation", "order", "quantum", "seed", "races")
    ]


@dataclass(frozen=True)
class Totals:
    """What one launch did.

    Attributes:
        instructions: instructions run by warps.
        matrix_instructions: those among them that multiply matrices on tensor cores.
        multiply_adds: multiply-adds in these.
        barriers: barriers passed by blocks.
        atomics: atomic operations of threads.
        shared_wavefronts: passes over the banks of shared memory.
        bank_conflicts: those of the passes that a layout without conflicts would save.
    """

    instructions: int = 0
    matrix_instructions: int = 0
    multiply_adds: int = 0
    barriers: int = 0
    atomics: int = 0
    shared_wavefronts: int = 0
    bank_conflicts: int = 0


@dataclass(frozen=True)
class Traffic:
    """What one launch moved of one array: bytes, counted as often as requested, and 32-byte sectors, once each."""

    loaded_bytes: int = 0
    loaded_sectors: int = 0
    stored_bytes: int = 0
    stored_sectors: int = 0


@dataclass(frozen=True)
class Executed:
    """How often warps ran an instruction."""

    count: int
    ptx_line: int
    opcode: str


def has_compiler() -> bool:
    """Whether the interpreter can be built here."""
    return shutil.which("g++") is not None


class Program:
    """A parsed kernel; it stays loaded as long as the process lives.

    Raises:
        NotImplementedError: the PTX uses something that is not modelled.
    """

    def __init__(self, ptx: str) -> None:
        self._library = library()
        self._handle = self._library.ptx_load(ptx.encode())
        if not self._handle:
            raise NotImplementedError(self._library.ptx_text().decode())
        self.parameter_bytes: int = self._library.ptx_parameter_bytes(self._handle)

    def launch(
        self, parameters: bytes, grid: tuple[int, int, int], threads: int, shared: int, options: Options
    ) -> None:
        """Run all blocks of the grid, one after the other."""
        assert len(parameters) == self.parameter_bytes
        settings = _Options(**{name: int(value) for name, value in vars(options).items()})
        self._library.ptx_launch(self._handle, parameters, *grid, threads, shared, ctypes.byref(settings))

    def executed(self) -> list[Executed]:
        """Its instructions, in the order of the PTX."""
        lines = self._library.ptx_coverage(self._handle).decode().splitlines()
        return [Executed(int(count), int(line), opcode) for count, line, opcode in (one.split("\t") for one in lines)]


def add_region(base: int, size: int, name: str, *, defined: bool) -> None:
    """Let kernels access some memory, which holds values or is uninitialised."""
    library().ptx_add_region(base, size, name.encode(), int(defined))


def forget_regions() -> None:
    """Forget all regions; needed before their memory is freed, since other tensors may get the same addresses."""
    library().ptx_forget_regions()


def all_defined(base: int, size: int) -> bool:
    """Whether every byte holds a defined value."""
    return bool(library().ptx_all_defined(base, size))


def take_findings() -> Iterator[tuple[str, int]]:
    """The errors found since the last call, and how often each was found."""
    for line in library().ptx_take_findings().decode().splitlines():
        count, finding = line.split("\t", 1)
        yield finding, int(count)


def totals() -> Totals:
    """Totals of the last launch."""
    counts = (ctypes.c_uint64 * 7)()
    library().ptx_counts(counts)
    return Totals(*counts)


def traffic() -> Iterator[tuple[str, Traffic]]:
    """Traffic of the last launch, by array."""
    for line in library().ptx_traffic().decode().splitlines():
        *counts, name = line.split("\t")
        yield name, Traffic(*map(int, counts))


@cache
def library() -> ctypes.CDLL:
    """The library, built first if its sources have changed."""
    path = _built()
    loaded = ctypes.CDLL(str(path))
    pointer, text, word, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_int
    grid = [ctypes.c_uint32] * 3
    signatures = {
        "ptx_load": (pointer, [text]),
        "ptx_text": (text, []),
        "ptx_parameter_bytes": (number, [pointer]),
        "ptx_add_region": (None, [word, word, text, number]),
        "ptx_forget_regions": (None, []),
        "ptx_all_defined": (number, [word, word]),
        "ptx_launch": (None, [pointer, text, *grid, number, number, ctypes.POINTER(_Options)]),
        "ptx_take_findings": (text, []),
        "ptx_counts": (None, [ctypes.POINTER(word)]),
        "ptx_traffic": (text, []),
        "ptx_coverage": (text, [pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


def _built() -> Path:
    """Path of the built library. Its name is a hash of sources, flags and processor, so that no other is loaded."""
    sources = sorted(SOURCES.glob("*.cpp"))
    parts = [*_FLAGS, platform.processor(), _processor_features()]
    parts += [path.read_text() for path in sorted(SOURCES.iterdir())]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    path = BUILD / f"libptx-{digest}.so"
    BUILD.mkdir(exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        # The lock lets test processes that start together build it once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _build(sources, path)
    return path


def _build(sources: list[Path], path: Path) -> None:
    def compile_one(source: Path) -> str:
        target = BUILD / f"{source.stem}.o"
        subprocess.run(["g++", *_FLAGS, "-c", "-o", str(target), str(source)], check=True)
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    unfinished = path.with_suffix(".unfinished")
    subprocess.run(["g++", "-shared", "-o", str(unfinished), *objects], check=True)
    unfinished.rename(path)


def _processor_features() -> str:
    """The processor's features, on which `-march=native` depends."""
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return ""
    return next((line for line in information.read_text().splitlines() if line.startswith("flags")), "")
