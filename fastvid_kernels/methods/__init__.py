"""Other methods to prune video tokens, to compare FastVID with. Each is a function of the same tensors.

The methods are plain PyTorch, deterministic, and run on any device and dtype. They are not operators: they may wait for
the device, and their speed says nothing about the published code. The `deviations` of a method say where it differs
from the published code.

Every module of this package that defines `METHOD` is a method; to add a method, add a file.
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
    """The method of this name, with these options.

    Args:
        name: one of `names()`.
        **options: options that the method takes beside FastVID's arguments, see `Method.options`.

    Raises:
        TypeError: the method has no such option, or an option has the wrong type.
        ValueError: there is no such method, or an option is out of range.
    """
    methods = _methods()
    if name not in methods:
        raise ValueError(f"method must be one of {', '.join(map(repr, names()))}, got {name!r}")
    return methods[name].with_options(**options)


def parse(text: str) -> Method:
    """The method that a text describes, such as "fastvid:segmentation=fixed:merging=uniform".

    Args:
        text: one of `names()`, followed by options with a colon before each.

    Raises:
        TypeError: the method has no such option, or an option has the wrong type.
        ValueError: there is no such method, or an option is out of range or given twice.
    """
    name, *options = text.split(":")
    values: dict[str, Any] = {}
    for key, _, value in (option.partition("=") for option in options):
        if key in values:
            raise ValueError(f"{key} must be given once, got {text!r}")
        values[key] = _parsed(value)
    return get(name, **values)


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
