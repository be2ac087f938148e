"""The command line: `spr-or COMMAND`, or `python -m spr_or.cli COMMAND`."""

from __future__ import annotations

import typer

from spr_or.commands import verify

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Structured perspective regularisation, from the exact mixed-integer program to the GPU.",
)


@app.callback()
def _root() -> None:
    """Keep `verify` a subcommand even while it is alone."""


app.command("verify")(verify.command)

if __name__ == "__main__":
    app()
