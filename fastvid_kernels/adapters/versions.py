"""What differs between versions of transformers, and which of them an adapter was tested with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packaging.version import Version

OLDEST, TOO_NEW = "5.17", "5.25"
"""The oldest version that was tested, and the first newer one that was not."""
_UNTESTED = "other versions were not tested, and may give wrong answers without an error"
# Names of the cache, as an argument and as an output field of models. 5.24 renamed it and accepts both names.
_CACHE_NAMES = ("cache", "past_key_values")


def check_transformers(oldest: str = OLDEST, reason: str = _UNTESTED) -> None:
    """Raise unless `oldest` <= the installed version < `TOO_NEW`.

    Args:
        oldest: the oldest version that was tested.
        reason: the end of the error message.

    Raises:
        RuntimeError: another version is installed.
    """
    version = _installed()
    if not Version(oldest) <= version < Version(TOO_NEW):
        raise RuntimeError(
            f"transformers must be at least {oldest} and below {TOO_NEW} for this model, got {version}: {reason}"
        )


def cache_name() -> str:
    """The name that models of the installed version use for their cache."""
    return "cache" if _installed() >= Version("5.24") else "past_key_values"


def cache_of(arguments: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a model, under either name."""
    return next((arguments[name] for name in _CACHE_NAMES if arguments.get(name) is not None), None)


def _installed() -> Version:
    import transformers

    return Version(transformers.__version__)
