"""The arguments of `apply_fastvid`, as adapters get them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastvid_kernels.api import Backend
from fastvid_kernels.config import PruneConfig
from fastvid_kernels.methods import Method
from fastvid_kernels.vision import SiglipHead


@dataclass(frozen=True)
class Settings:
    """The arguments of `apply_fastvid`.

    Attributes:
        siglip: the SigLIP head, or where to load it from; None: the model's default.
        attention: the name of the attention score; None: the model's default.
        config: the hyperparameters, complete.
        backend: as in `prune`.
        method: the method that prunes instead of FastVID; None: FastVID, by its operator.
        sink: whether the attention of sinks is lowered.
    """

    siglip: str | Path | SiglipHead | None
    attention: str | None
    config: PruneConfig
    backend: Backend
    method: Method | None = None
    sink: bool = False

    @property
    def use_attention(self) -> bool:
        """Whether pruning needs attention, so that the default is computed if none is given."""
        return self.method is None or self.method.needs_attention
