"""What `apply_fastvid` was asked for, as adapters get it."""

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
        siglip: where a SigLIP head comes from; None: the model's usual.
        attention: the name of a score; None: the model's usual.
        config: the hyperparameters, complete.
        backend: as in `prune`.
        method: what prunes instead of FastVID; None: FastVID by its operator.
        sink: whether attention is corrected for sinks.
    """

    siglip: str | Path | SiglipHead | None
    attention: str | None
    config: PruneConfig
    backend: Backend
    method: Method | None = None
    sink: bool = False

    @property
    def use_attention(self) -> bool:
        """Whether attention, where none was asked for, has to be found at all."""
        return self.method is None or self.method.needs_attention
