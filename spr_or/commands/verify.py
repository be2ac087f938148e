"""`spr-or verify`: the bounds of small problems by several solvers, and every claim about them."""

from __future__ import annotations

import difflib
import importlib
import inspect
import textwrap
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spr_or.utils import outputs, terminal
from spr_or.utils.counted import counted

if TYPE_CHECKING:
    from rich.console import Console

    from spr_or.formulations.problem import SparseTrainingProblem
    from spr_or.verification.bounds_over_m import SweepPoint
    from spr_or.verification.ladder import Check, Ladder, Verdict
    from spr_or.verification.routes import Route

    Instances = dict[str, Callable[[], SparseTrainingProblem]]
    RoutesOf = Callable[[SparseTrainingProblem, float], Iterable[Route]] | None

EXIT = {"holds": 0, "refuted": 1, "not tested": 3}
_MARKS = {"holds": "holds", "refuted": "REFUTED", "not tested": "not tested"}
_STYLES = {"holds": None, "refuted": "bold red", "not tested": "yellow"}


def command(
    instances: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INSTANCE",
            help="Names from --list, or module:function that returns a SparseTrainingProblem. "
            "Default: all.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Write all numbers there.", callback=outputs.file
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw the bounds there (png, pdf, svg).", callback=outputs.picture
        ),
    ] = None,
    time_limit: Annotated[
        float, typer.Option(min=0.01, metavar="SECONDS", help="For each solver on each problem.")
    ] = 60.0,
    sweep_m: Annotated[
        bool,
        typer.Option(
            "--sweep-m",
            help="Instead: how the bounds of each instance move with M, drawn to --plot "
            "(default sweep_m.png).",
        ),
    ] = False,
    variant: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The closed form claimed to be exact: exact, printed or authors2022.",
        ),
    ] = "exact",
    instance_set: Annotated[
        str,
        typer.Option(
            "--set",
            metavar="NAME",
            help="Which instances, and how: small, or networks (4 to 6 neurons, 20 to 40 samples, "
            "the MIP optimum only).",
        ),
    ] = "small",
    show_list: Annotated[bool, typer.Option("--list", help="List the instances and stop.")] = False,
) -> None:
    """Compute the bounds of small problems and check every claim.

    A problem is solved in three formulations, big-M, perspective and projected, each by several
    solvers. Relaxed, with indicators between 0 and 1, a formulation gives a lower bound; with
    integer indicators it gives the optimum of the mixed-integer program (MIP). The claims say how
    these values must lie: big-M relaxation <= perspective relaxation = projected optimum <= MIP
    optimum. An entity is a group of weights that is kept or removed as a whole.

    Ctrl-C shows what was found so far.

    A claim holds, is refuted or was not tested, for instance because a time limit cut a solver short.

    Exit status: 0 every claim was tested and holds, 1 a claim is refuted, 2 bad usage, 3 none is refuted
    but some were not tested, 130 interrupted.
    """
    import torch

    from spr_or.formulations.projected import VARIANTS

    torch.set_num_threads(1)  # the tensors are tiny: a second thread only waits for the first
    known, routes_of = _instance_set(instance_set)
    if show_list:
        for name, make in known.items():
            about = f"{name:22s} {(make.__doc__ or '').splitlines()[0]}"
            typer.echo(textwrap.fill(about, 80, subsequent_indent=" " * 23))
        raise typer.Exit
    if variant not in VARIANTS:
        raise typer.BadParameter(
            f"{variant!r} is none of {', '.join(VARIANTS)}", param_hint="--variant"
        )
    default = ["regression-8x3"] if sweep_m and "regression-8x3" in known else list(known)
    problems = [_problem(name, known) for name in instances or default]
    if sweep_m:
        picture = plot or outputs.picture(Path("sweep_m.png"))
        assert picture is not None
        _sweep(problems, json_file, picture, time_limit)
    else:
        _verify(problems, json_file, plot, time_limit, variant, routes_of)


def _instance_set(name: str) -> tuple[Instances, RoutesOf]:
    """The instances of ``--set``, and the routes to take for them (None: all that apply)."""
    from spr_or.verification import instances, network_instances, routes

    sets: dict[str, tuple[Instances, RoutesOf]] = {
        "small": (instances.INSTANCES, None),
        "networks": (network_instances.NETWORKS, routes.larger_network_routes),
    }
    if name not in sets:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(sets)}", param_hint="--set")
    return sets[name]


def _problem(name: str, known: Instances) -> SparseTrainingProblem:
    if name in known:
        return known[name]()
    if ":" not in name:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see --list."
        raise typer.BadParameter(f"no instance is called {name!r}: {hint}")
    return _own_problem(name)


def _own_problem(path: str) -> SparseTrainingProblem:
    """The problem that ``module:function`` returns, called like the function unless it has a name."""
    from spr_or.formulations.problem import SparseTrainingProblem
    from spr_or.utils.import_path import load_object

    try:
        make = load_object(path)
        problem = make() if callable(make) else make
    except Exception as error:  # the user's own code may raise anything
        where = _place_in_own_code(error)
        raise typer.BadParameter(f"{path}: {type(error).__name__}: {error}{where}") from None
    if not isinstance(problem, SparseTrainingProblem):
        raise typer.BadParameter(
            f"{path} returns {type(problem).__name__}, not a SparseTrainingProblem"
        )
    constructors = (SparseTrainingProblem.linear, SparseTrainingProblem.network)
    unnamed = {inspect.signature(make).parameters["name"].default for make in constructors}
    return replace(problem, name=path.partition(":")[2]) if problem.name in unnamed else problem


def _place_in_own_code(error: Exception) -> str:
    """The last line outside of this package and of Python's import machinery, if there is any."""
    package = str(Path(__file__).parents[1])
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((package, "<", str(Path(importlib.__file__).parent))):
            return f" ({frame.filename}, line {frame.lineno})"
    return ""


def _verify(
    problems: Sequence[SparseTrainingProblem],
    json_file: Path | None,
    plot: Path | None,
    time_limit: float,
    variant: str,
    routes_of: RoutesOf,
) -> None:
    screen = terminal.console()
    ladders: list[Ladder] = []
    interrupted = False
    try:
        for problem in problems:
            title = f"[{len(ladders) + 1}/{len(problems)}] {problem.name}"
            ladders.append(_ladder(problem, title, time_limit, variant, routes_of))
            _print_ladder(screen, ladders[-1])
            if ladders[-1].interrupted:
                break
    except KeyboardInterrupt:  # between two problems
        interrupted = True
    except ValueError as error:
        raise terminal.failed(error, 2) from None
    interrupted = interrupted or any(ladder.interrupted for ladder in ladders)
    verdict = _overall(ladders, interrupted)
    _print_summary(screen, ladders, len(problems), interrupted)
    _write(screen, ladders, verdict, json_file, plot)
    raise typer.Exit(130 if interrupted else EXIT[verdict])


def _overall(ladders: Sequence[Ladder], interrupted: bool) -> Verdict:
    verdicts = {ladder.verdict for ladder in ladders}
    if "refuted" in verdicts:
        return "refuted"
    return "holds" if verdicts == {"holds"} and not interrupted else "not tested"


def _ladder(
    problem: SparseTrainingProblem, title: str, time_limit: float, variant: str, routes_of: RoutesOf
) -> Ladder:
    from spr_or.verification.ladder_of_bounds import verify

    with terminal.progress() as progress:
        progress.step(title)
        return verify(
            problem, time_limit=time_limit, variant=variant, progress=progress.detail,
            routes_of=routes_of,
        )  # fmt: skip


def _print_ladder(screen: Console, ladder: Ladder) -> None:
    rows = [
        (
            rung.what,
            rung.solver,
            f"{rung.value:.6f}",
            f"{rung.bound:.6f}",
            f"{rung.seconds:.2f}",
            rung.status,
        )
        for rung in ladder.rungs
    ]
    columns = ("formulation", "solver", "value", "bound", "seconds", "status")
    table = terminal.table(
        columns, rows, text=("formulation", "solver", "status"),
        title=f"{ladder.name}: {ladder.n_entities} entities",
    )  # fmt: skip
    terminal.show(screen, table)
    for check in ladder.checks:
        terminal.say(
            screen, f"  {_MARKS[check.verdict]}: {_told(check)}", _STYLES[check.verdict],
            indent=" " * 8,
        )  # fmt: skip
    for note in ladder.notes:
        terminal.say(screen, f"  note: {note}", indent=" " * 8)
    screen.print()


def _print_summary(
    screen: Console, ladders: Sequence[Ladder], count: int, interrupted: bool
) -> None:
    checks = [(ladder, check) for ladder in ladders for check in ladder.checks]
    complete = sum(not ladder.interrupted for ladder in ladders)
    if interrupted:
        message = f"interrupted: {complete} of {count} instances were verified"
        if complete < len(ladders):
            message += f"; the claims about {ladders[-1].name} were not all checked"
        terminal.say(screen, message, "yellow")
    for verdict, one, more in (
        ("refuted", "is refuted", "are refuted"),
        ("not tested", "was not tested", "were not tested"),
    ):
        found = [(ladder, check) for ladder, check in checks if check.verdict == verdict]
        if found:
            style = _STYLES[verdict]
            terminal.say(
                screen,
                f"{len(found)} of {counted(len(checks), 'claim')} {one if len(found) == 1 else more}",
                style,
            )
            for ladder, check in found:
                terminal.say(screen, f"  {ladder.name}: {_told(check)}", indent="    ")
    if complete and all(check.holds for _, check in checks):
        done = [check for ladder, check in checks if not ladder.interrupted]
        terminal.say(
            screen, f"all {len(done)} claims hold on {counted(complete, 'instance')}", "green"
        )


def _told(check: Check) -> str:
    """A claim, and why it does not hold."""
    return f"{check.claim} ({check.reason})" if check.reason else check.claim


def _write(
    screen: Console,
    ladders: Sequence[Ladder],
    verdict: Verdict,
    json_file: Path | None,
    plot: Path | None,
) -> None:
    from spr_or.utils.files import write_json

    if json_file:
        report = {
            "ok": verdict == "holds",
            "verdict": verdict,
            "instances": [ladder.to_dict() for ladder in ladders],
        }
        write_json(json_file, report)
        screen.print(f"numbers: {json_file}")
    complete = [ladder for ladder in ladders if not ladder.interrupted]
    if plot and complete:
        from spr_or.verification.plots import plot_ladders

        plot_ladders(complete, plot)
        screen.print(f"picture: {plot}")


def _sweep(
    problems: Sequence[SparseTrainingProblem], json_file: Path | None, plot: Path, time_limit: float
) -> None:
    from spr_or.utils.files import write_json
    from spr_or.verification.bounds_over_m import FACTORS, bounds_at
    from spr_or.verification.ladder import plain
    from spr_or.verification.plots import plot_sweep

    wrong = [problem.name for problem in problems if not problem.convex]
    if wrong:
        raise typer.BadParameter(f"--sweep-m takes linear models: {', '.join(wrong)} is a network")
    points = [(problem, factor) for problem in problems for factor in FACTORS]
    found: list[SweepPoint] = []
    interrupted = False
    with terminal.progress() as progress:
        try:
            for number, (problem, factor) in enumerate(points, 1):
                progress.step(f"[{number}/{len(points)}] {problem.name}, {factor:g} times its M")
                point = bounds_at(problem, factor, time_limit)
                if point is None:
                    interrupted = True
                    break
                found.append(point)
        except KeyboardInterrupt:
            interrupted = True
    screen = terminal.console()
    if interrupted:
        terminal.say(screen, f"interrupted: {len(found)} of {len(points)} points", "yellow")
    if found:
        plot_sweep(found, plot)
        screen.print(f"picture: {plot}")
    if json_file:
        rows = [{key: plain(value) for key, value in vars(point).items()} for point in found]
        write_json(json_file, {"sweep": rows})
        screen.print(f"numbers: {json_file}")
    if interrupted:
        raise typer.Exit(130)
