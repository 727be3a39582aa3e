"""Hooks on modules that may be replaced later: PEFT, for one, puts others in their places."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Recorder:
    """A forward hook that keeps a module's last input and output between `start` and `forget`.

    It knows no module, so that whoever copies the module does not copy with it all that the hook serves.
    """

    def __init__(self) -> None:
        self._recording = False
        self.input: Tensor | None = None
        self.output: Tensor | None = None

    def start(self) -> None:
        """Start recording."""
        self._recording, self.input, self.output = True, None, None

    def forget(self) -> None:
        """Stop recording, and drop what was recorded."""
        self._recording, self.input, self.output = False, None, None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Record a call."""
        if self._recording:
            self.input, self.output = args[0], output


class ChildHook:
    """A forward hook on whichever module is a parent's child of a given name when `follow` is called.

    Args:
        parent: the module that has the child.
        name: the child's name.
        hook: as for `nn.Module.register_forward_hook`.
    """

    def __init__(self, parent: nn.Module, name: str, hook: Any) -> None:
        self.name = name
        self._parent = parent
        self._hook = hook
        self._child: nn.Module | None = None
        self._handle: RemovableHandle | None = None

    def follow(self) -> None:
        """Register the hook, or move it if the child has been replaced."""
        child = getattr(self._parent, self.name)
        if child is not self._child:
            self.remove()
            self._child, self._handle = child, child.register_forward_hook(self._hook)

    def remove(self) -> None:
        """Remove the hook; a second call does nothing."""
        if self._handle is not None:
            self._handle.remove()
        self._child = self._handle = None
