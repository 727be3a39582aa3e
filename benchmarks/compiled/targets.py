"""The GPUs that kernels are compiled for, and how many blocks of a kernel a multiprocessor of each holds."""

from __future__ import annotations

from dataclasses import dataclass

# For both vendors: four schedulers, each with 512 registers for every lane of a warp, allocated in units of eight.
_SCHEDULERS = 4
_REGISTERS_PER_LANE = 512
_REGISTER_UNIT = 8


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel asks of a multiprocessor.

    Attributes:
        registers: per thread.
        spilled_bytes: per thread, what does not fit in registers and goes to memory.
        shared_bytes: per block.
        warps: per block.
        tensor_columns: per block, in the tensor memory of Blackwell.
    """

    registers: int
    spilled_bytes: int
    shared_bytes: int
    warps: int
    tensor_columns: int = 0


@dataclass(frozen=True)
class Occupancy:
    """How many blocks and warps of a kernel one multiprocessor holds at a time, at most, and which limit decides."""

    blocks: int
    warps: int
    bound_by: str


@dataclass(frozen=True)
class Target:
    """A GPU architecture; sizes are those of one multiprocessor (NVIDIA) or compute unit (AMD).

    Attributes:
        backend: Triton's name of the vendor's backend.
        arch: Triton's name of the architecture.
        warp_size: threads of a warp.
        warps: the most that can be resident.
        blocks: the most that can be resident.
        shared_bytes: shared memory for all resident blocks together.
        block_shared_bytes: the most shared memory that one block can have.
        shared_overhead: shared memory that the system takes for each block.
        shared_unit: the unit in which shared memory is allocated.
        tensor_columns: columns of tensor memory, 0 if there is none.
    """

    backend: str
    arch: int | str
    warp_size: int
    warps: int
    blocks: int
    shared_bytes: int
    block_shared_bytes: int
    shared_overhead: int
    shared_unit: int
    tensor_columns: int = 0

    def occupancy(self, resources: Resources) -> Occupancy:
        """Blocks that fit at once: the least that any resource allows; of equal ones, the first below is named."""
        registers = _round_up(max(resources.registers, 1), _REGISTER_UNIT)
        shared = _round_up(resources.shared_bytes + self.shared_overhead, self.shared_unit)
        blocks = {
            "registers": _SCHEDULERS * (_REGISTERS_PER_LANE // registers) // resources.warps,
            "shared memory": self.shared_bytes // shared if shared else self.blocks,
            "warps": self.warps // resources.warps,
            "blocks": self.blocks,
        }
        if resources.tensor_columns:
            blocks["tensor memory"] = self.tensor_columns // resources.tensor_columns
        bound_by = min(blocks, key=lambda name: blocks[name])
        return Occupancy(blocks[bound_by], blocks[bound_by] * resources.warps, bound_by)


def _nvidia(arch: int, *, warps: int, blocks: int, shared_kb: int, tensor_columns: int = 0) -> Target:
    # One block can have all except the 1 KB that the system takes for it.
    return Target(
        backend="cuda",
        arch=arch,
        warp_size=32,
        warps=warps,
        blocks=blocks,
        shared_bytes=shared_kb * 1024,
        block_shared_bytes=(shared_kb - 1) * 1024,
        shared_overhead=1024,
        shared_unit=128,
        tensor_columns=tensor_columns,
    )


# NVIDIA: CUDA C++ Programming Guide, "Compute Capabilities", table "Technical Specifications per Compute Capability";
# the units of allocation are those of Nsight Compute's occupancy calculator; tensor memory: PTX ISA, "Tensor Memory".
# AMD: "AMD Instinct MI300" CDNA3 instruction set reference, chapter "Program Organization" (64 KB of LDS in units of
# 512 bytes; VGPRs and AGPRs in one file of 512), and LLVM's AMDGPU backend (8 waves a SIMD, 16 barriers a unit).
TARGETS = {
    "sm_80": _nvidia(80, warps=64, blocks=32, shared_kb=164),
    "sm_89": _nvidia(89, warps=48, blocks=24, shared_kb=100),
    "sm_90": _nvidia(90, warps=64, blocks=32, shared_kb=228),
    "sm_100": _nvidia(100, warps=64, blocks=32, shared_kb=228, tensor_columns=512),
    "gfx942": Target(
        backend="hip",
        arch="gfx942",
        warp_size=64,
        warps=32,
        blocks=16,
        shared_bytes=64 * 1024,
        block_shared_bytes=64 * 1024,
        shared_overhead=0,
        shared_unit=512,
    ),
}


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
