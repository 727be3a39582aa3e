"""Where commands print."""

from __future__ import annotations

from rich.console import Console

_LEAST_WIDTH = 60


def console() -> Console:
    """Standard output, at least so wide that a table has room for its values: a terminal may wrap its lines."""
    found = Console()
    return found if found.width >= _LEAST_WIDTH else Console(width=_LEAST_WIDTH)
