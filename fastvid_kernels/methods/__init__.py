"""Other ways to prune video tokens, each a function of the same tensors: what FastVID is compared with.

Plain PyTorch, deterministic, for any device and dtype. They are no operators: they may wait for the device, and say
nothing about the speed of the code that was published with them. `deviations` of each says where it differs from that.

A module of this package that has a `METHOD` is a method: to add one, add its file.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from fastvid_kernels.methods.method import Kept, Method, VideoTokens

__all__ = ["Kept", "Method", "VideoTokens", "get", "names", "parse"]


def names() -> tuple[str, ...]:
    """The names of all methods, in alphabetical order."""
    return tuple(sorted(_methods()))


def get(name: str, **options: Any) -> Method:
    """The method of a name.

    Args:
        name: one of `names()`.
        **options: what the method takes beside FastVID's arguments, see `Method.options`.

    Raises:
        TypeError: the method has no such option, or that is of a wrong type.
        ValueError: there is no such method, or an option is out of range.
    """
    methods = _methods()
    if name not in methods:
        raise ValueError(f"method must be one of {', '.join(map(repr, names()))}, got {name!r}")
    return methods[name].with_options(**options)


def parse(text: str) -> Method:
    """The method of a name with options after it: "fastvid:segmentation=fixed:merging=uniform".

    Args:
        text: one of `names()`, and its options, a colon before each.

    Raises:
        TypeError: the method has no such option, or that is of a wrong type.
        ValueError: there is no such method, or an option is out of range.
    """
    name, *options = text.split(":")
    values = dict(option.partition("=")[::2] for option in options)
    return get(name, **{key: _parsed(value) for key, value in values.items()})


def _parsed(value: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


@cache
def _methods() -> dict[str, Method]:
    modules = (import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__))
    found = [module.METHOD for module in modules if hasattr(module, "METHOD")]
    return {method.name: method for method in found}
