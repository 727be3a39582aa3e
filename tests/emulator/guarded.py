"""Emulated calls of the Triton backend, with gaps between the arrays of their scratch, which starts uninitialised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import torch

from benchmarks.compiled.targets import TARGETS
from fastvid_kernels import compilation, ops
from fastvid_kernels.kernels import pipeline
from fastvid_kernels.kernels.launch import Array, Workspace
from fastvid_kernels.kernels.pipeline import Call
from tests.emulator import library
from tests.emulator.emulator import Emulator

_GAP = 4096


class GuardedWorkspace(Workspace):
    """Scratch with gaps between its arrays, so that an access beyond one does not fall into another."""

    def __init__(self, arrays: dict[str, Array], size: int, device: torch.device) -> None:
        apart = {}
        end = _GAP
        for name, array in arrays.items():
            apart[name] = replace(array, offset=end)
            end += -(-array.size // 16) * 16 + _GAP
        super().__init__(apart, end, device)

    def allow(self, emulator: Emulator) -> None:
        """Let kernels access its arrays, as uninitialised memory."""
        base = self._bytes.data_ptr()
        for name, array in self._arrays.items():
            emulator.allow_part(self._bytes, base + array.offset, array.size, name, defined=False)


@contextmanager
def emulated_calls(emulator: Emulator) -> Iterator[Emulator]:
    """Inside, calls of the Triton backend on CPU tensors run emulated, with gaps around every scratch array.

    An output that is not wholly written is a finding.
    """
    real_launch = pipeline.launch

    def launch(call: Call) -> None:
        assert isinstance(call.workspace, GuardedWorkspace)
        # Memory that an earlier call could access may have been freed since.
        emulator.forget()
        call.workspace.allow(emulator)
        outputs = {"output": call.output, "indices": call.indices}
        for name, output in outputs.items():
            emulator.allow(output, name, defined=False)
        real_launch(call)
        for name, output in outputs.items():
            if not library.all_defined(output.data_ptr(), output.nbytes):
                emulator.findings[f"{name} not wholly written"] += 1

    shared_bytes = TARGETS[f"sm_{emulator.arch}"].shared_bytes
    with (
        mock.patch.object(pipeline, "Workspace", GuardedWorkspace),
        mock.patch.object(pipeline, "shared_bytes_of", return_value=shared_bytes),
        mock.patch.object(pipeline, "launch", launch),
        mock.patch.object(ops, "check_triton", return_value=None),
        mock.patch.object(compilation, "check_triton", return_value=None),
        emulator,
    ):
        yield emulator
