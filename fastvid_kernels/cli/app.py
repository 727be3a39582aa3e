"""The typer app; every command is a function in a module of its own."""

from __future__ import annotations

import typer

from fastvid_kernels.cli.demo import demo

app = typer.Typer(
    name="fastvid",
    help="FastVID: prune the tokens of a video before the language model reads them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command()(demo)


@app.callback()
def fastvid() -> None:
    """Keep `demo` a subcommand: typer would make a lone command the whole program."""
