"""The GPUs that kernels are compiled for, and how many blocks of a kernel one of their multiprocessors holds."""

from __future__ import annotations

from dataclasses import dataclass

# Of both vendors: four schedulers, each with 512 registers for every lane of a warp, handed out by eights.
_SCHEDULERS = 4
_REGISTERS_PER_LANE = 512
_REGISTER_UNIT = 8


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel asks of a multiprocessor.

    Attributes:
        registers: of a thread.
        spilled_bytes: of a thread, what does not fit its registers and goes to memory.
        shared_bytes: of a block.
        warps: of a block.
        tensor_columns: of a block, in the tensor memory of Blackwell.
    """

    registers: int
    spilled_bytes: int
    shared_bytes: int
    warps: int
    tensor_columns: int = 0


@dataclass(frozen=True)
class Occupancy:
    """How much of a kernel one multiprocessor holds at a time, at most, and which of its limits says so."""

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
        warps: most that are resident.
        blocks: most that are resident.
        shared_bytes: of all resident blocks together.
        block_shared_bytes: most that one block can have.
        shared_overhead: what the system takes of it for each block.
        shared_unit: what it is handed out by.
        tensor_columns: of tensor memory, 0 where there is none.
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
        """Blocks that fit at once: the least of what each resource allows; of equals, the first named here."""
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
    # One block can have all but what the system takes for it: 1 KB.
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
