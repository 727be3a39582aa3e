"""Output files of commands: checked before any work, and written completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastvid_kernels.cli.common.errors import CommandError


def check_output(output: Path, suffix: str) -> None:
    """Raise unless `--output` has this suffix, is no folder, leads somewhere, and is in a folder that exists.

    Raises:
        CommandError: one of these is not so.
    """
    if output.suffix.lower() != suffix:
        raise CommandError(f"--output must be a {suffix} file, got {output}")
    try:
        output.resolve()
    except RuntimeError as error:
        raise CommandError(f"--output must be a file, but {output} is a link to itself") from error
    if output.is_dir():
        raise CommandError(f"--output must be a file, but {output} is a folder")
    if not output.parent.is_dir():
        raise CommandError(f"there is no folder {output.parent} for --output")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`, or beside its link target, that replaces it when the block ends.

    Raises:
        CommandError: it cannot be written.
    """
    path = path.resolve()
    unfinished = path.with_name(f".fastvid.{os.getpid()}.part")
    try:
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
