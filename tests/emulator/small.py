"""Small programs in PTX, to test what one instruction computes."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from tests.emulator import library
from tests.emulator.library import Options

LANES = 32
_PREFIX = {1: "%p", 2: "%h", 4: "%r", 8: "%d"}


def program(body: str, arrays: int, *, shared: int = 0) -> str:
    """PTX of a kernel of `arrays` pointers `%d1`, `%d2`, ...; `%d0` is 8 times the thread, and %r, %h, %p are free."""
    parameters = ",\n".join(f"\t.param .u64 .ptr .global .align 1 array_{number}" for number in range(arrays))
    loads = "\n".join(f"\tld.param.b64 %d{number + 1}, [array_{number}];" for number in range(arrays))
    return f"""
.version 8.8
.target sm_90
.extern .shared .align 16 .b8 global_smem[];
.visible .entry small(
{parameters}
)
{{
\t.reg .pred %p<16>;
\t.reg .b16 %h<32>;
\t.reg .b32 %r<64>;
\t.reg .b64 %d<32>;
{loads}
\tmov.u32 %r0, %tid.x;
\tmul.wide.u32 %d0, %r0, 8;
{body}
\tret;
}}
"""


def run(
    body: str, arrays: Sequence[np.ndarray], *, threads: int = LANES, shared: int = 0, options: Options | None = None
) -> dict[str, int]:
    """Run one block on the arrays, in place. Returns how often each error was found, by its first words."""
    library.forget_regions()
    loaded = library.Program(program(body, len(arrays), shared=shared))
    for number, array in enumerate(arrays):
        library.add_region(array.ctypes.data, array.nbytes, f"array {number}", defined=True)
    pointers = b"".join(array.ctypes.data.to_bytes(8, "little") for array in arrays)
    loaded.launch(pointers, (1, 1, 1), threads, shared, options or Options())
    library.forget_regions()
    findings: dict[str, int] = {}
    for finding, count in library.take_findings():
        words = finding.split(" | ")[0]
        findings[words] = findings.get(words, 0) + count
    return findings


def compute(opcode: str, operands: Sequence[np.ndarray], result: type, options: Options | None = None) -> np.ndarray:
    """The results of an instruction, element by element; its guard or last operand may be a predicate."""
    count = max(len(one) for one in operands)
    padded = -(-count // LANES) * LANES
    outcome = []
    for first in range(0, padded, LANES):
        arrays, names, loads = [], [], []
        for number, operand in enumerate(operands):
            width = operand.dtype.itemsize
            cells = np.zeros(LANES, dtype=np.uint64)
            bits = operand[first : first + LANES].view(f"u{width}")
            cells[: len(bits)] = bits
            arrays.append(cells)
            name = f"{_PREFIX[width]}{10 + number}"
            names.append(name)
            address = f"%d{10 + len(operands) + number}"
            loads.append(f"\tadd.s64 {address}, %d{number + 2}, %d0;\n\tld.global.b{8 * width} {name}, [{address}];")
        width = np.dtype(result).itemsize
        written = np.zeros(LANES, dtype=np.uint64)
        if re.match("setp", opcode):
            operation = f"\t{opcode} %p1, {', '.join(names)};\n\tselp.b32 %r1, 1, 0, %p1;"
            target, width = "%r1", 4
        else:
            target = f"{_PREFIX[width]}{1 if width != 8 else 31}"
            operation = f"\t{opcode} {target}, {', '.join(names)};"
        store = f"\tadd.s64 %d30, %d1, %d0;\n\tst.global.b{8 * width} [%d30], {target};"
        assert run("\n".join([*loads, operation, store]), [written, *arrays], options=options) == {}
        outcome.append(written.astype(f"u{width}").view(result if not opcode.startswith("setp") else np.uint32))
    return np.concatenate(outcome)[:count]
