"""Figures of a compiled kernel that need no run, and whether they have become worse."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.compiled.offline import Compiled
from benchmarks.compiled.targets import TARGETS, Occupancy, Resources

BASELINE = Path(__file__).parents[1] / "results" / "kernels.json"
# HMMA, HGMMA, UTCHMMA, IMMA, DMMA and their like, and not HFMA2.MMA, which moves a constant; v_mfma of any shape.
_MATRIX = re.compile(r"\b([A-Z]+MMA)\b|\b(v_mfma)_")
_LOAD = re.compile(r"\b(?:LDG|LDGSTS|UTMALDG)\b[.\w]*|\b(?:global|buffer|flat)_load_\w+")
_WIDE_LOAD = re.compile(r"\.(?:128|256)\b|UTMALDG|_dwordx4")


@dataclass(frozen=True)
class Figures:
    """Figures of one kernel on one target. An instruction counts once, however often it would run.

    Attributes:
        resources: what a block and its threads need.
        occupancy: how many blocks and warps a multiprocessor holds, at most.
        matrix: matrix instructions by name.
        wide_loads: loads from global memory of 16 bytes a thread or more.
        narrow_loads: other loads from global memory.
    """

    resources: Resources
    occupancy: Occupancy
    matrix: dict[str, int]
    wide_loads: int
    narrow_loads: int

    @classmethod
    def of(cls, compiled: Compiled, target: str) -> Figures:
        """The figures, from the compiler's report and the assembly."""
        loads = _LOAD.findall(compiled.assembly)
        wide = sum(bool(_WIDE_LOAD.search(load)) for load in loads)
        matrix = Counter(nvidia or amd for nvidia, amd in _MATRIX.findall(compiled.assembly))
        occupancy = TARGETS[target].occupancy(compiled.resources)
        return cls(compiled.resources, occupancy, dict(sorted(matrix.items())), wide, len(loads) - wide)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Figures:
        """The inverse of `to_json`."""
        nested = {"resources": Resources(**values["resources"]), "occupancy": Occupancy(**values["occupancy"])}
        return cls(**{**values, **nested})

    def to_json(self) -> dict[str, Any]:
        """Nested dictionaries of numbers and names."""
        return asdict(self)


def worse(now: Figures, before: Figures) -> list[str]:
    """What has become worse, in words; empty if nothing. A figure that is better or merely different does not count."""
    losses = []
    if now.resources.spilled_bytes > before.resources.spilled_bytes:
        losses.append(f"spills {now.resources.spilled_bytes} bytes a thread")
    if now.occupancy.warps < before.occupancy.warps:
        registers = f"registers {before.resources.registers} -> {now.resources.registers}"
        losses.append(
            f"resident warps {before.occupancy.warps} -> {now.occupancy.warps} "
            f"(bound by {now.occupancy.bound_by}; {registers})"
        )
    if now.resources.shared_bytes > before.resources.shared_bytes:
        losses.append(f"shared memory {before.resources.shared_bytes} -> {now.resources.shared_bytes} bytes")
    if lost := sorted(set(before.matrix) - set(now.matrix)):
        losses.append(f"no longer uses {', '.join(lost)}")
    # Another unrolling changes both counts in the same direction; loads that become narrow move from one to the other.
    became_narrow = now.wide_loads < before.wide_loads and now.narrow_loads > before.narrow_loads
    if became_narrow or (before.wide_loads > 0 and now.wide_loads == 0):
        losses.append(
            f"16-byte loads {before.wide_loads} -> {now.wide_loads}, "
            f"narrower ones {before.narrow_loads} -> {now.narrow_loads}"
        )
    return losses


@dataclass(frozen=True)
class Row:
    """A kernel in all situations in which its figures are the same, on every target.

    Attributes:
        kernel: its name.
        situations: each as `str(Situation)`.
        figures: by target.
    """

    kernel: str
    situations: tuple[str, ...]
    figures: dict[str, Figures]


@dataclass(frozen=True)
class Report:
    """All kernels, and the versions of the compilers."""

    triton: str
    ptxas: dict[str, str]
    rows: Sequence[Row]

    def find(self, kernel: str, situation: str, target: str) -> Figures | None:
        """The figures of a kernel, or None if the report does not have them."""
        for row in self.rows:
            if row.kernel == kernel and situation in row.situations:
                return row.figures.get(target)
        return None

    def write(self, path: Path) -> None:
        """Write JSON with a line for each kernel, situation list and target, so that a diff shows what changed."""
        rows = []
        for row in self.rows:
            figures = [f'"{target}": {json.dumps(one.to_json())}' for target, one in row.figures.items()]
            lines = [f'"kernel": "{row.kernel}"', f'"situations": {json.dumps(row.situations)}', *figures]
            rows.append("{" + ",\n ".join(lines) + "}")
        compilers = f'"triton": "{self.triton}",\n"ptxas": {json.dumps(self.ptxas)}'
        path.write_text("{" + compilers + ',\n"rows": [\n' + ",\n".join(rows) + "\n]}\n")

    @classmethod
    def read(cls, path: Path = BASELINE) -> Report:
        """Read what `write` wrote."""
        content = json.loads(path.read_text())
        rows = [
            Row(
                kernel=row.pop("kernel"),
                situations=tuple(row.pop("situations")),
                figures={target: Figures.from_json(values) for target, values in row.items()},
            )
            for row in content["rows"]
        ]
        return cls(content["triton"], content["ptxas"], rows)
