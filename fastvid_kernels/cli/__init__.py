"""The `fastvid` command line: `python -m fastvid_kernels.cli`, or the `fastvid` entry point."""

from __future__ import annotations

import io
import sys

from fastvid_kernels.cli.common.errors import one_line_errors


def main() -> None:
    """Run the command line; the entry point `fastvid` calls this.

    The typer app is imported here and not above, so that users without the demo extra see what to install and not a
    traceback.
    """
    # File names may contain characters that the stream's encoding lacks.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with one_line_errors():
        from fastvid_kernels.cli.app import app

        # Not standalone: errors in the use of the command line come here, too.
        code = app(sys.argv[1:] or ["--help"], prog_name="fastvid", standalone_mode=False)
    sys.exit(code)
