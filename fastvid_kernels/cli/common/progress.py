"""Progress bars, and the callback with which slow work updates them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

ProgressCallback = Callable[[int, int], None]  # (done, total)


def no_progress(done: int, total: int) -> None:
    """A callback that does nothing."""


@contextmanager
def progress_bar(console: Console, description: str) -> Iterator[ProgressCallback]:
    """Show a bar on `console` while the block runs, and remove it afterwards; show none without a terminal."""
    if not console.is_terminal:
        yield no_progress
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
