"""The command line: `spr-or COMMAND`, or `python -m spr_or.cli COMMAND`."""

from __future__ import annotations

import typer

from spr_or.bench import regularizer_cost as bench_regularizer
from spr_or.bench import solve as bench_solve
from spr_or.bench import training as bench_training
from spr_or.commands import check, layers, run, solve, sweep, tables, verify

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Structured perspective regularisation, from the exact mixed-integer program to the GPU.",
)


bench = typer.Typer(no_args_is_help=True, help="Measurements, side by side in one run.")

app.command("verify")(verify.command)
app.command("solve")(solve.command)
app.command("check")(check.command)
app.command("run")(run.command)
app.command("sweep")(sweep.command)
app.command("layers")(layers.command)
app.command("tables")(tables.command)
bench.command("regularizer")(bench_regularizer.command)
bench.command("solve")(bench_solve.command)
bench.command("training")(bench_training.command)
app.add_typer(bench, name="bench")

if __name__ == "__main__":
    app()
