"""Calls of the Triton backend, emulated: the arrays of their scratch lie apart, and all of it is garbage first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import torch

from fastvid_kernels import compilation, ops
from fastvid_kernels.kernels import pipeline
from fastvid_kernels.kernels.launch import Array, Workspace
from fastvid_kernels.kernels.pipeline import Call
from tests.emulator import library
from tests.emulator.emulator import Emulator

_GAP = 4096


class GuardedWorkspace(Workspace):
    """Scratch whose arrays do not touch: an access beyond one is out of bounds, not another array's."""

    def __init__(self, arrays: dict[str, Array], size: int, device: torch.device) -> None:
        apart = {}
        end = _GAP
        for name, array in arrays.items():
            apart[name] = replace(array, offset=end)
            end += -(-array.size // 16) * 16 + _GAP
        super().__init__(apart, end, device)

    def allow(self, emulator: Emulator) -> None:
        """Make its arrays known, as garbage."""
        base = self._bytes.data_ptr()
        for name, array in self._arrays.items():
            emulator.allow_part(self._bytes, base + array.offset, array.size, name, defined=False)


@contextmanager
def emulated_calls(emulator: Emulator) -> Iterator[Emulator]:
    """Inside, calls of the Triton backend on CPU tensors run emulated, with every array guarded.

    Outputs that are not wholly written are a finding.
    """
    real_launch = pipeline.launch

    def launch(call: Call) -> None:
        assert isinstance(call.workspace, GuardedWorkspace)
        # What an earlier call could touch may have been freed since.
        emulator.forget()
        call.workspace.allow(emulator)
        outputs = {"output": call.output, "indices": call.indices}
        for name, output in outputs.items():
            emulator.allow(output, name, defined=False)
        real_launch(call)
        for name, output in outputs.items():
            if not library.all_defined(output.data_ptr(), output.nbytes):
                emulator.findings[f"{name} not wholly written"] += 1

    with (
        mock.patch.object(pipeline, "Workspace", GuardedWorkspace),
        mock.patch.object(pipeline, "launch", launch),
        mock.patch.object(ops, "check_triton", return_value=None),
        mock.patch.object(compilation, "check_triton", return_value=None),
        emulator,
    ):
        yield emulator
