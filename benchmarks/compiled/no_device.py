"""A fake GPU, to measure what Triton does on the host: its compiled kernels only pass their arguments to a function.

Everything between the package's call and the driver's launch is Triton's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from fastvid_kernels.kernels import pipeline

STREAM = 7
# Called with a kernel's name and the arguments of its launch.
Note = Callable[..., object]


class Driver:
    """The part of a Triton driver that a launch uses."""

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The only one."""
        return STREAM

    def get_current_target(self) -> GPUTarget:
        """An H100."""
        return GPUTarget("cuda", 90, 32)


class Kernel(CompiledKernel):
    """A compiled kernel without code."""

    def __init__(self, name: str, note: Note) -> None:
        self.name, self.module, self.src = name, None, None
        self.function, self.packed_metadata = f"{name}'s function", f"{name}'s metadata"
        self._run = lambda *arguments: note(name, *arguments)

    def _init_handles(self) -> None:
        pass


@contextmanager
def no_device(note: Note) -> Iterator[None]:
    """Inside, launches call `note`. Recipes and compiled kernels are cached neither from before nor for later."""
    touched: list[JITFunction] = []

    def compile_to_nothing(self: JITFunction, key: str, *args: Any) -> Kernel:
        touched.append(self)
        kernel = Kernel(self.__name__, note)
        self.device_caches[0][0][key] = kernel
        return kernel

    pipeline.recipe_for.cache_clear()
    try:
        with (
            mock.patch.object(driver, "_active", Driver()),
            mock.patch.object(JITFunction, "_do_compile", compile_to_nothing),
        ):
            yield
    finally:
        pipeline.recipe_for.cache_clear()
        for kernel in touched:
            kernel.device_caches.clear()
