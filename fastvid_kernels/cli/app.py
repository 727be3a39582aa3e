"""The typer app; every command is a function in a module of its own."""

from __future__ import annotations

import typer

from fastvid_kernels.cli.compare import compare
from fastvid_kernels.cli.demo import demo
from fastvid_kernels.cli.explain import explain
from fastvid_kernels.cli.run import run

app = typer.Typer(
    name="fastvid",
    help="FastVID: prune the tokens of a video before the language model reads them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command()(demo)
app.command()(compare)
app.command()(explain)
app.command()(run)
