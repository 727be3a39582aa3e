"""Shared by the classes for the llava package: they require decord, because its errors are not hidden."""

from __future__ import annotations

from typing import Any

_BACKEND = "video_decode_backend"


def checked(theirs: dict[str, Any]) -> dict[str, Any]:
    """Check the arguments of lmms-eval's class, and return them.

    Raises:
        ValueError: `video_decode_backend` is not "decord": lmms-eval turns errors of other readers into answers.
    """
    if theirs.get(_BACKEND, "decord") != "decord":
        raise ValueError(
            f"{_BACKEND} must be 'decord' where videos are pruned, got {theirs[_BACKEND]!r}: with others, lmms-eval "
            "makes up answers for videos that it could not read"
        )
    return theirs
