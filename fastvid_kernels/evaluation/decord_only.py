"""What the classes for the llava package share: a reader of videos whose errors are seen."""

from __future__ import annotations

from typing import Any

_BACKEND = "video_decode_backend"


def checked(theirs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of lmms-eval's class.

    Raises:
        ValueError: videos would be read by code whose errors lmms-eval turns into answers.
    """
    if theirs.get(_BACKEND, "decord") != "decord":
        raise ValueError(
            f"{_BACKEND} must be 'decord' where videos are pruned, got {theirs[_BACKEND]!r}: lmms-eval answers for "
            "videos that another one could not read"
        )
    return theirs
