"""The command line: `spr-or COMMAND`, or `python -m spr_or COMMAND`.

A command's module, and torch with it, is imported when the command runs or its own help is asked
for. The list of commands, a typing error and `--version` need none of them.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import Annotated, Any, ClassVar, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from spr_or import __version__
from spr_or.utils.interrupts import heard_interrupt
from spr_or.utils.streams import open_closed_streams

_HELP = """Structured perspective regularisation: exact sparse models, and pruned networks.

Three ways to begin:

\b
  spr-or verify
      compute the bounds of small problems by several solvers and compare
  spr-or solve data.csv --target y --lam 0.1
      choose the groups of columns that explain y best, with a proof
  spr-or run RECIPE
      train, prune and compact a network
"""


class _Place(NamedTuple):
    """The module that holds a command, and the first line of the command's help."""

    module: str
    help: str


COMMANDS = {
    "verify": _Place(
        "spr_or.commands.verify", "Compute the bounds of small problems and check every claim."
    ),
    "solve": _Place(
        "spr_or.commands.solve", "Choose the columns that explain a target best, and prove it."
    ),
    "check": _Place("spr_or.commands.check", "Check what spr-or solve left, from the data."),
    "predict": _Place(
        "spr_or.commands.predict", "Predict the target of new data with a stored result."
    ),
    "inspect": _Place(
        "spr_or.commands.inspect", "Show what pruning could remove from a network, layer by layer."
    ),
    "run": _Place("spr_or.commands.run", "Train, prune, fine-tune and compact a network."),
    "sweep": _Place("spr_or.commands.sweep", "Run a recipe with many settings."),
    "compare": _Place("spr_or.commands.compare", "Compare pruning methods at equal budgets."),
    "methods": _Place("spr_or.commands.methods", "List the pruning methods, or the keys of one."),
    "layers": _Place(
        "spr_or.commands.layers", "Compare the channels SPR kept with the best of each layer."
    ),
    "embed": _Place(
        "spr_or.commands.embed", "Ask a MIP solver about the dense and the pruned network of a run."
    ),
    "tables": _Place("spr_or.commands.tables", "Put own runs beside the published figures."),
}
BENCH = {
    "regularizer": _Place(
        "spr_or.bench.regularizer_cost", "Measure what SPR adds to a training step."
    ),
    "solve": _Place("spr_or.bench.solve", "Compare solvers on the named instances."),
    "training": _Place("spr_or.bench.training", "Measure how long an epoch takes."),
}

# Spellings of earlier versions, which scripts may still use.
_OLD_OPTIONS = {
    "time": "time-limit",
    "seconds": "time-limit",
    "again": "resume",
    "retry-failed": "resume",
}


class _Commands(TyperGroup):
    """A group whose commands are imported when they are called, not when they are listed."""

    places: ClassVar[dict[str, _Place]] = COMMANDS

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, _load(name, self.places[name]) if name in self.places else listed, rest

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run the command line, where its caller has closed a stream, too."""
        open_closed_streams()
        return super().main(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; what the system refuses is a message, not a traceback."""
        with heard_interrupt() as pressed:
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt:
                raise _interrupted() from None
            except (typer.Exit, typer.Abort, BrokenPipeError):
                raise  # the reader of a broken pipe has left; click ends quietly
            except OSError as error:
                where = f"{error.filename}: " if error.filename else ""
                typer.secho(f"error: {where}{error.strerror or error}", fg="red", err=True)
                raise typer.Exit(2) from None
            except Exception:
                if pressed():  # libraries that are interrupted while they load fail in odd ways
                    raise _interrupted() from None
                raise


def _interrupted() -> typer.Exit:
    typer.secho("interrupted", fg="yellow", err=True)
    return typer.Exit(130)


class _Bench(_Commands):
    places: ClassVar[dict[str, _Place]] = BENCH


class _Command(TyperCommand):
    """A command whose help names arguments in one way and breaks no word at a hyphen."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        pieces = super().collect_usage_pieces(ctx)
        return [piece.replace("{", "").replace("}", "") for piece in pieces]

    def get_help(self, ctx: Any) -> str:
        whole = "\N{NON-BREAKING HYPHEN}"  # while the lines are broken
        parts: list[Any] = [self, *self.params]
        for part in parts:
            part.help = (part.help or "").replace("-", whole)
        text = super().get_help(ctx).replace(whole, "-")
        # An argument has no metavar but its name; the type that stands behind it says no more.
        return re.sub(r"(?m)^(  [A-Z]+) <\S+>", lambda m: m[1].ljust(len(m[0])), text)


def _load(name: str, place: _Place) -> Any:
    single = _typer()
    single.command(name, cls=_Command)(import_module(place.module).command)
    return typer.main.get_command(single)


def _typer(**settings: Any) -> typer.Typer:
    """Help as plain text, which keeps to any width; a fault of ours shows a plain traceback."""
    plain: dict[str, Any] = {"rich_markup_mode": None, "pretty_exceptions_enable": False}
    return typer.Typer(**{"add_completion": False, **plain, **settings})


def _list(group: typer.Typer, places: dict[str, _Place]) -> None:
    """Let the group show its commands, without importing them."""
    for name, place in places.items():
        group.command(name, help=place.help)(lambda: None)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"spr-or {__version__}")
        raise typer.Exit


app = _typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=True,
    context_settings={"token_normalize_func": lambda name: _OLD_OPTIONS.get(name, name)},
)
bench = _typer(cls=_Bench, no_args_is_help=True, help="Measure speed, side by side in one run.")
_list(app, COMMANDS)
_list(bench, BENCH)
app.add_typer(bench, name="bench")


@app.callback(help=_HELP)
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_version, help="Show it and exit."),
    ] = False,
) -> None:
    pass


if __name__ == "__main__":
    app()
