"""Programmatic dependent launch: on NVIDIA GPUs from sm_90 on, a launch may start before the one before it has ended.

What overlaps is the start of a launch alone. A kernel first lets the next launch start, and then waits until all that
earlier launches have written is there; so no kernel reads or writes memory before that.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

# Constants of a launch. Launches stay apart until a GPU has shown what is gained.
APART: dict[str, Any] = {"OVERLAPS": False}
OVERLAPPING: dict[str, Any] = {"OVERLAPS": True, "launch_pdl": True}


@triton.jit
def wait_for_earlier_launches(OVERLAPS: tl.constexpr):
    """The first statement of every kernel."""
    if OVERLAPS:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
