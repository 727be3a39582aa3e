"""Hooks on modules that may be replaced later: PEFT, for one, puts others in their places."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def remove_copies(model: nn.Module, numbers: AbstractSet[int]) -> None:
    """Remove copies of hooks from a model's modules.

    PEFT copies modules that it trains whole. A copy has the hooks of its original, under the same numbers.

    Args:
        model: the model.
        numbers: `RemovableHandle.id` of the hooks. Those of others are never removed.
    """
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for number in [number for number in numbers & hooks.keys() if _is_ours(hooks[number])]:
                hooks.pop(number)
                for options in (
                    module._forward_pre_hooks_with_kwargs,
                    module._forward_hooks_with_kwargs,
                    module._forward_hooks_always_called,
                ):
                    options.pop(number, None)


def _is_ours(hook: Any) -> bool:
    """Whether a hook is an object of the adapters, or a method of one."""
    return type(getattr(hook, "__self__", hook)).__module__.startswith(__package__)


class Recorder:
    """A forward hook that keeps a module's last positional input and output between `start` and `forget`.

    It refers to no module: a copy of the module, which copies its hooks, must not copy the rest of the model too.
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
            self.input, self.output = args[0] if args else None, output


class ChildHook:
    """A hook on whichever module a path leads to when `follow` is called.

    Args:
        parent: the module from which the path starts.
        path: names of children, joined by dots.
        hook: as for `nn.Module.register_forward_hook`; with `before`, as for `register_forward_pre_hook` with keywords.
        before: whether the hook runs before the module.

    Attributes:
        numbers: `RemovableHandle.id` of every registration so far.
    """

    def __init__(self, parent: nn.Module, path: str, hook: Any, *, before: bool = False) -> None:
        self.path = path
        self.numbers: set[int] = set()
        self._parent = parent
        self._hook = hook
        self._before = before
        self._child: nn.Module | None = None
        self._handle: RemovableHandle | None = None

    def follow(self) -> None:
        """Register the hook, or move it if a module on the path has been replaced."""
        child = self._parent
        for name in self.path.split("."):
            child = getattr(child, name)
        if child is self._child:
            return
        self.remove()
        self._child = child
        if self._before:
            self._handle = child.register_forward_pre_hook(self._hook, with_kwargs=True)
        else:
            self._handle = child.register_forward_hook(self._hook)
        self.numbers.add(self._handle.id)

    def remove(self) -> None:
        """Remove the hook; a second call does nothing."""
        if self._handle is not None:
            self._handle.remove()
        self._child = self._handle = None


class ModuleRecord:
    """The last input and output of whichever module a path leads to, between `start` and `forget`.

    Args:
        parent: the module from which the path starts.
        path: names of children, joined by dots.
    """

    def __init__(self, parent: nn.Module, path: str) -> None:
        self._recorder = Recorder()
        self._hook = ChildHook(parent, path, self._recorder)

    @property
    def path(self) -> str:
        """The path to the module."""
        return self._hook.path

    @property
    def input(self) -> Tensor | None:
        """The input, if the module ran."""
        return self._recorder.input

    @property
    def output(self) -> Tensor | None:
        """The output, if the module ran."""
        return self._recorder.output

    def attach(self) -> tuple[ChildHook, ...]:
        """Register the hook."""
        self._hook.follow()
        return (self._hook,)

    def start(self) -> None:
        """Start recording."""
        self._hook.follow()
        self._recorder.start()

    def forget(self) -> None:
        """Stop recording, and drop what was recorded."""
        self._recorder.forget()
