"""`spr-or embed`: the dense and the pruned network of a run as mixed-integer programs, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spr_or.utils import outputs, terminal

if TYPE_CHECKING:
    from spr_or.embedding.comparison import Case
    from spr_or.embedding.pair import Pair


def command(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="The folder of a finished spr-or run, or its dense network."
        ),
    ],
    compact: Annotated[
        Path | None,
        typer.Argument(metavar="COMPACT", help="A pruned network, if it is not the one in RUN."),
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="robustness: is any image within the radius classified otherwise? max: how large "
            "does an output become there?",
        ),
    ] = "robustness",
    radius: Annotated[
        list[float] | None,
        typer.Option(
            min=0.0,
            metavar="X",
            help="By how much each pixel, in [0, 1], may change. Give it several times. "
            "Default: 0.01.",
        ),
    ] = None,
    images: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="So many evaluation images that both networks classify rightly.",
        ),
    ] = 5,
    output: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="For max: which output. Default: that of the image's class."
        ),
    ] = None,
    bounds: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Bounds of activations: interval, lp, or data, which the evaluation images show "
            "and which proves nothing.",
        ),
    ] = "lp",
    formulation: Annotated[
        str,
        typer.Option(metavar="NAME", help="bigm, or cuts, which strengthens it at the root."),
    ] = "bigm",
    solver: Annotated[
        str, typer.Option(metavar="NAME", help="highs, scip, or gurobi where it is installed.")
    ] = "highs",
    time_limit: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="For each image and network.")
    ] = 60.0,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Write all numbers there.", callback=outputs.file
        ),
    ] = None,
) -> None:
    """Ask a MIP solver about the dense and the pruned network of a run.

    Both networks become mixed-integer programs over the same region of inputs. The table has the
    means over the images: binaries, how wide the intervals of undecided neurons are, the bound of
    the linear relaxation, programs, nodes and seconds, and how many images had which answer. A
    counterexample is run through torch; a proof is tried by 10,000 random and by gradient attacks.

    Exit status: 0 every question decided, 1 some not within the time limit, or a proof refuted by
    an attack, 2 no such run, network or solver, 130 interrupted.
    """
    from spr_or.embedding import comparison
    from spr_or.embedding.api import BOUNDS, FORMULATIONS, EmbeddingError
    from spr_or.embedding.pair import PairError, accuracy, load_pair
    from spr_or.embedding.robustness import How
    from spr_or.embedding.solving import check_solver
    from spr_or.training.data.parquet import DataError
    from spr_or.training.recipe import RecipeError

    radii = radius or [0.01]
    try:
        _known("--task", task, comparison.TASKS)
        _known("--bounds", bounds, BOUNDS)
        _known("--formulation", formulation, FORMULATIONS)
        check_solver(solver)
        pair = load_pair(run, compact)
        networks = {"dense": pair.dense, "pruned": pair.pruned}
        chosen = comparison.right_images(networks, pair, images)
        if not chosen:
            raise ValueError("there is no evaluation image that both networks classify rightly")
        if output is not None:
            _check_output(output, pair)
    except (PairError, RecipeError, DataError, ValueError) as error:
        raise terminal.failed(error, 2) from None
    data = pair.images if bounds == "data" else None
    how = How(bounds, formulation, solver, time_limit, data)  # type: ignore[arg-type]
    cases: list[Case] = []
    stopped = False
    with terminal.progress() as progress:
        progress.step(f"{len(chosen)} images, {len(radii)} radii, 2 networks")
        try:
            for case in comparison.ask_all(networks, pair, chosen, radii, how, task, output):
                cases.append(case)
                progress.detail(
                    f"{case.network}, radius {case.radius:g}, image {case.image}: "
                    f"{case.answer.answer} in {case.answer.seconds:.1f} s"
                )
        except KeyboardInterrupt:
            stopped = True
        except EmbeddingError as error:
            raise terminal.failed(error, 2) from None
    rows = comparison.summary(cases, task)
    score = {name: accuracy(net, pair) for name, net in networks.items()}
    _show(rows, task, score, bounds)
    if json_file:
        from spr_or.utils.files import write_json

        asked: dict[str, Any] = {
            "run": str(run), "compact": str(compact or ""), "task": task, "radii": radii,
            "bounds": bounds, "formulation": formulation, "solver": solver,
            "time_limit": time_limit,
        }  # fmt: skip
        plain = [comparison.as_plain(case) for case in cases]
        write_json(json_file, {**asked, "accuracy": score, "table": rows, "cases": plain})
        terminal.say(terminal.console(), f"numbers: {json_file}")
    _end(cases, stopped)


def _known(option: str, given: str, names: tuple[str, ...]) -> None:
    if given not in names:
        raise ValueError(f"{option} must be one of {', '.join(names)}, got {given!r}")


def _check_output(output: int, pair: Pair) -> None:
    count = pair.dense(pair.images[:1]).shape[1]
    if output >= count:
        raise ValueError(f"--output {output}: the network has the outputs 0 to {count - 1}")


def _show(rows: list[dict[str, Any]], task: str, score: dict[str, float], bounds: str) -> None:
    from spr_or.embedding.comparison import DECIDED

    screen = terminal.console()
    columns = (
        "network",
        "accuracy",
        "radius",
        "binaries",
        "width",
        "root",
        "programs",
        "nodes",
        "s",
    )
    shown = [
        [
            row["network"], f"{score[row['network']]:.2f}", f"{row['radius']:g}",
            f"{row['binaries']:.1f}", f"{row['width']:.3f}", f"{row['root']:.4g}",
            f"{row['programs']:.1f}", f"{row['nodes']:.0f}", f"{row['seconds']:.2f}",
            *(str(row[word]) for word in (*DECIDED[task], "undecided")),
        ]
        for row in sorted(rows, key=lambda row: (row["radius"], row["network"]))
    ]  # fmt: skip
    words = (*DECIDED[task], "undecided")
    terminal.show(screen, terminal.table((*columns, *words), shown, text=("network",)))
    if bounds == "data":
        terminal.say(screen, "bounds from data are not safe: nothing is proven by them", "yellow")


def _end(cases: list[Case], stopped: bool) -> None:
    """End with the status that the answers call for."""
    for case in cases:
        if case.answer.answer == "contradicted":
            terminal.complain(
                f"{case.network}, radius {case.radius:g}, image {case.image}: the solver's proof is "
                f"refuted by an attack that reaches {case.answer.attack:.4g}", "red",
            )  # fmt: skip
    if stopped or any(case.answer.answer == "interrupted" for case in cases):
        terminal.complain("interrupted: the table holds what was decided before")
        raise typer.Exit(130)
    left = [case for case in cases if case.answer.answer in ("undecided", "contradicted")]
    for case in left:
        value = "none" if case.answer.value is None else f"{case.answer.value:.4g}"
        terminal.complain(
            f"{case.network}, radius {case.radius:g}, image {case.image}: {case.answer.answer}; best "
            f"found {value}, bound {case.answer.bound:.4g}"
        )
    raise typer.Exit(1 if left else 0)
