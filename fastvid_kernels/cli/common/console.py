"""Where commands print."""

from __future__ import annotations

from rich.console import Console

_LEAST_WIDTH = 60


def console() -> Console:
    """Standard output, at least 60 columns wide so that tables have room; a narrower terminal wraps their lines."""
    found = Console()
    return found if found.width >= _LEAST_WIDTH else Console(width=_LEAST_WIDTH)
