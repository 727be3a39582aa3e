"""The `fastvid` command line: `python -m fastvid_kernels.cli`, or the `fastvid` entry point."""

from __future__ import annotations

from fastvid_kernels.cli.errors import one_line_errors


def main() -> None:
    """Run the command line; the entry point `fastvid` calls this.

    The typer app is imported here and not above, so that an installation without the demo extra is told what to
    install instead of being shown a traceback.
    """
    with one_line_errors():
        from fastvid_kernels.cli.app import app

        app(prog_name="fastvid")
