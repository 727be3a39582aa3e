"""Split `--model_args` into our arguments and those of lmms-eval's own class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastvid_kernels import methods
from fastvid_kernels.config import Hyperparameters

OURS = ("method", "siglip", "attention", "sink", "backend", *Hyperparameters.__annotations__)
"""Arguments that are ours: those of `apply_fastvid`."""


def split(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our arguments, and those of lmms-eval's class.

    Args:
        arguments: all that were given, by name.
    """
    ours = {name: value for name, value in arguments.items() if name in OURS}
    return ours, {name: value for name, value in arguments.items() if name not in OURS}


def of_apply_fastvid(ours: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `apply_fastvid`; `method` may be a name with options, such as "fastvid:merging=uniform".

    Args:
        ours: as `split` gives them.

    Raises:
        TypeError: the method has no such option, or an option has the wrong type.
        ValueError: there is no such method, or an option is out of range.
    """
    method = ours.get("method")
    return {**ours, "method": methods.parse(method) if isinstance(method, str) else method}
