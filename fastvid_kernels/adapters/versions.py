"""What differs between versions of transformers, and which of them an adapter was tested with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packaging.version import Version

OLDEST, TOO_NEW = "5.17", "5.25"
"""The first version that was tested, and the first that was not."""
_UNTESTED = "other versions were not tested, and what differs in them may give wrong answers without an error"
# What models call their cache: an argument, and a field of what they return. Renamed in 5.24, which takes both names.
_CACHE_NAMES = ("cache", "past_key_values")


def check_transformers(oldest: str = OLDEST, reason: str = _UNTESTED) -> None:
    """Raise unless `oldest` <= the installed version < `TOO_NEW`.

    Args:
        oldest: the first version that was tested.
        reason: ends the message.

    Raises:
        RuntimeError: another version is installed.
    """
    version = _installed()
    if not Version(oldest) <= version < Version(TOO_NEW):
        raise RuntimeError(
            f"transformers must be at least {oldest} and below {TOO_NEW} for this model, got {version}: {reason}"
        )


def cache_name() -> str:
    """What the installed version's models call their cache."""
    return "cache" if _installed() >= Version("5.24") else "past_key_values"


def cache_of(arguments: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a model, by whichever name."""
    return next((arguments[name] for name in _CACHE_NAMES if arguments.get(name) is not None), None)


def _installed() -> Version:
    import transformers

    return Version(transformers.__version__)
