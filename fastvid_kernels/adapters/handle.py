"""The handle that `apply_fastvid` returns; it undoes the patch."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from fastvid_kernels.adapters.hooks import ChildHook, remove_copies
from fastvid_kernels.config import PruneConfig

_ATTRIBUTE = "fastvid_handle"


class FastVidHandle:
    """A patched model. As a context manager, it removes the patch when the block ends, also after an exception.

    The model refers to it as `model.fastvid_handle`.

    Attributes:
        model: the patched model.
        config: the hyperparameters, checked.
    """

    def __init__(self, model: nn.Module, config: PruneConfig) -> None:
        self.model = model
        self.config = config
        self._hooks: list[RemovableHandle | ChildHook] = []
        self._attributes: list[tuple[nn.Module, str]] = []
        self.set_attribute(model, _ATTRIBUTE, self)
        forget_compiled_code()

    @classmethod
    @contextmanager
    def undone_on_error(cls, model: nn.Module, config: PruneConfig) -> Iterator[FastVidHandle]:
        """Yield a handle that records the changes made in a block; if the block raises, they are undone."""
        handle = cls(model, config)
        try:
            yield handle
        except BaseException:
            handle.remove()
            raise

    def add_hooks(self, hooks: Sequence[RemovableHandle | ChildHook]) -> None:
        """Record hooks, which `remove` will remove."""
        self._hooks += hooks

    def set_attribute(self, owner: nn.Module, name: str, value: Any) -> None:
        """Set an attribute on an instance, which hides the one of its class until `remove`."""
        if name in owner.__dict__:
            raise RuntimeError(
                f"{type(owner).__name__}.{name} is set on the instance by someone else: undo that before apply_fastvid"
            )
        owner.__dict__[name] = value
        self._attributes.append((owner, name))

    def remove(self) -> None:
        """Restore the model; a second call does nothing."""
        numbers: set[int] = set()
        for hook in self._hooks:
            hook.remove()
            numbers |= hook.numbers if isinstance(hook, ChildHook) else {hook.id}
        remove_copies(self.model, numbers)
        for owner, name in self._attributes:
            owner.__dict__.pop(name, None)
        if self._attributes:
            forget_compiled_code()
        self._hooks, self._attributes = [], []

    def __enter__(self) -> FastVidHandle:
        if not self._attributes:
            raise RuntimeError("the handle was used up: it has restored the model, so call apply_fastvid again")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def forget_compiled_code() -> None:
    """Have whatever torch.compile compiled in this process compiled anew, when it is next called.

    Compiled code does not check which hooks a module has: that of a model would go on as it was when it was compiled.
    """
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def check_is_own(owner: nn.Module, name: str) -> None:
    """Raise unless a method is the module's own, so that the model calls what is set in its place.

    Raises:
        TypeError: the module is a wrapper, and the method that of a module inside.
    """
    if not hasattr(type(owner), name):
        raise TypeError(
            f"the model's parts must not be wrapped before apply_fastvid, got a {type(owner).__name__} whose {name} is "
            "that of a module inside: call apply_fastvid first, or wrap the whole model with PEFT"
        )


def check_named(outputs: Any) -> None:
    """Raise unless a model's `get_video_features` returned fields by name.

    Raises:
        ValueError: it did not.
    """
    if isinstance(outputs, tuple) or outputs is None:
        raise ValueError("get_video_features must return a dict where video tokens are pruned: use return_dict=True")


def check_not_patched(model: nn.Module) -> None:
    """Raise if a model is already patched.

    Raises:
        RuntimeError: the model is patched.
    """
    if _ATTRIBUTE in model.__dict__:
        raise RuntimeError(
            f"{type(model).__name__} is pruned by FastVID already: call model.{_ATTRIBUTE}.remove() before "
            "apply_fastvid with other settings"
        )
