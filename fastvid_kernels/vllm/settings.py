"""Settings of a server: `--video-pruning-rate`, and `--additional-config '{"fastvid": {...}}'`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, cast, get_args

from fastvid_kernels.api import Backend
from fastvid_kernels.config import PruneConfig

METHOD = "fastvid"
# 0.32.0 is tested. 0.33 is not, but the code that matters is the same, so it is supported too.
SUPPORTED = ("0.32", "0.33")

_RATIO = "retention_ratio"
_OWN = ("siglip", "attention", "backend")


def is_supported(version: str) -> bool:
    """Whether the plug-in supports this version of vLLM."""
    return ".".join(version.split(".")[:2]) in SUPPORTED


@dataclass(frozen=True)
class Serving:
    """How a server prunes.

    Attributes:
        config: the hyperparameters, complete.
        siglip: directory or hub id of the SigLIP checkpoint whose head scores patches; None: the model's default.
        attention: the name of the attention score; None: the model's default.
        backend: as in `prune`.
    """

    config: PruneConfig
    siglip: str | None = None
    attention: str | None = None
    backend: Backend = "auto"

    @classmethod
    def asked(cls, rate: float, additional: Mapping[str, Any], defaults: PruneConfig) -> Serving:
        """Read the flags.

        Args:
            rate: the fraction of tokens that is dropped, 0 < rate < 1.
            additional: vLLM's whole additional configuration.
            defaults: the model's default hyperparameters; their retention ratio is not used.

        Raises:
            TypeError: an entry has the wrong type, or is not known.
            ValueError: an entry is out of range.
        """
        own = additional.get(METHOD, {})
        where = f"--additional-config, {METHOD!r}:"
        if not isinstance(own, Mapping):
            raise TypeError(f"{where} must be an object, got {own!r}")
        if _RATIO in own:
            raise ValueError(f"{where} {_RATIO} must be left out: it follows from --video-pruning-rate")
        known = [field.name for field in fields(PruneConfig) if field.name != _RATIO]
        unknown = sorted(set(own) - {*known, *_OWN})
        if unknown:
            raise TypeError(f"{where} must hold only {', '.join((*known, *_OWN))}, got {', '.join(unknown)}")
        for name in _OWN:
            if name in own and not isinstance(own[name], str):
                raise TypeError(f"{where} {name} must be a string, got {own[name]!r}")
        backend = own.get("backend", "auto")
        if backend not in get_args(Backend):
            raise ValueError(f"{where} backend must be one of {', '.join(get_args(Backend))}, got {backend!r}")
        # Round, because 1 - 0.9 is 0.09999999999999998, with which 9 of 100 tokens would be kept.
        changes: dict[str, Any] = {name: own[name] for name in known if name in own}
        config = defaults.replace(retention_ratio=round(1 - rate, 6), **changes)
        return cls(config, own.get("siglip"), own.get("attention"), cast(Backend, backend))

    def plain(self) -> dict[str, Any]:
        """The settings as a dict that JSON can hold; `from_plain` reads it."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Serving:
        """The settings that `plain` wrote."""
        return cls(**{**plain, "config": PruneConfig(**plain["config"])})

    def suffix(self) -> str:
        """Suffix for names of cached videos, so that servers with other settings do not share cache entries."""
        written = json.dumps(self.plain(), sort_keys=True)
        return f"-{METHOD}-{hashlib.sha256(written.encode()).hexdigest()[:16]}"

    def kept_per_frame(self, tokens_per_frame: int) -> int:
        """K, the number of tokens kept per frame.

        Raises:
            ValueError: K would be 0.
        """
        kept = self.config.kept_per_frame(tokens_per_frame)
        if kept == 0:
            ratio = self.config.retention_ratio
            raise ValueError(
                f"--video-pruning-rate must keep at least one of a frame's {tokens_per_frame} tokens, got "
                f"{round(1 - ratio, 6)}, which keeps {ratio} of them: K = 0"
            )
        return kept
