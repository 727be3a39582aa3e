"""FastVID video-token pruning as one operator, `torch.ops.fastvid.prune`; importing this package registers it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastvid_kernels.api import Pruned, prune
from fastvid_kernels.compilation import warmup
from fastvid_kernels.config import PruneConfig
from fastvid_kernels.explain import AnchorFrame, Explanation, explain

if TYPE_CHECKING:
    from fastvid_kernels import methods
    from fastvid_kernels.adapters import apply_fastvid

__version__ = "0.2.0"
__all__ = [
    "AnchorFrame",
    "Explanation",
    "PruneConfig",
    "Pruned",
    "apply_fastvid",
    "explain",
    "methods",
    "prune",
    "warmup",
]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that the operator alone needs no model library.
    if name == "apply_fastvid":
        from fastvid_kernels.adapters import apply_fastvid

        return apply_fastvid
    if name == "methods":
        return import_module("fastvid_kernels.methods")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
