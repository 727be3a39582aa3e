"""Which versions of transformers an adapter was tested with."""

from __future__ import annotations

from packaging.version import Version

_UNTESTED = "other versions were not tested, and what differs in them may give wrong answers without an error"


def check_transformers(oldest: str, too_new: str, reason: str = _UNTESTED) -> None:
    """Raise unless `oldest` <= the installed version < `too_new`.

    Args:
        oldest: the first version that was tested.
        too_new: the first that was not.
        reason: ends the message.

    Raises:
        RuntimeError: another version is installed.
    """
    import transformers

    version = Version(transformers.__version__)
    if not Version(oldest) <= version < Version(too_new):
        raise RuntimeError(
            f"transformers must be at least {oldest} and below {too_new} for this model, got {version}: {reason}"
        )
