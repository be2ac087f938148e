"""`spr-or solve`: the groups of columns that explain one's own data best, with a proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spr_or.utils import outputs, terminal
from spr_or.utils.first_imports import collector_paused

if TYPE_CHECKING:
    from rich.console import Console

    from spr_or.proof.certificate import ProofCertificate
    from spr_or.tabular.solve_run import SolveRun

Missing = Literal["drop", "mean"]
Decimal = Literal[".", ","]
Criterion = Literal["bic", "ebic"]
Formulation = Literal["bigm", "perspective"]
_PATH = "20"  # values of lambda to choose from


def command(
    data_file: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="A text table with a header (CSV and the like, also .gz or .zip), a Parquet or "
            "Feather file, or an npz with X and y.",
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Column to explain, or several as A,B; a name with a comma may stand in quotes. "
            "npz: the array (default y).",
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            metavar="GROUPS",
            help="Groups of columns: a number of consecutive ones, a separator (_ puts age_1 and "
            "age_2 into age), auto (columns of 0 and 1 that are levels of one variable), or a .json "
            "or .csv file that gives each column its group. Default: each column is a group.",
        ),
    ] = None,
    drop: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Columns to leave out.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Columns to use.  [default: all]")
    ] = None,
    missing: Annotated[
        Missing | None,
        typer.Option(
            metavar="drop|mean",
            help="Rows with a missing value are left out, or the mean of its column is put there. "
            "Default: a missing value is an error.",
        ),
    ] = None,
    header: Annotated[
        bool | None,
        typer.Option(
            "--header/--no-header",
            help="Whether the first row of a text table names the columns. Default: it does, and "
            "one that looks like data is an error.",
        ),
    ] = None,
    decimal: Annotated[
        Decimal, typer.Option(metavar=".|,", help="Decimal mark of a text table.")
    ] = ".",
    encoding: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of a text table, such as latin-1.  [default: UTF-8]"),
    ] = None,
    lam: Annotated[
        str | None,
        typer.Option(
            metavar="X",
            help='lambda, the strength of the penalty: a number, or a share such as "0.1 max" of the '
            "smallest one that keeps no group.",
        ),
    ] = None,
    alpha: Annotated[
        str,
        typer.Option(
            metavar="X,X,...",
            help="Share of the penalty on squared weights, 0 to 1. Several values: with --cv or --ic, which "
            "choose between them too.",
        ),
    ] = "0.1",
    M: Annotated[
        str,
        typer.Option(
            "--M",
            metavar="X",
            help="Bound on the weights: auto (proven to cut off no optimum) or a number.",
        ),
    ] = "auto",
    path: Annotated[
        str | None,
        typer.Option(
            metavar="K|X,X,...",
            help="Instead of --lam: K values of lambda down from the empty model, or a list.",
        ),
    ] = None,
    cv: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            min=2,
            help="Choose a lambda of the path by cross-validation with K folds: the largest one whose "
            "held-out loss is within one standard error of the least. Without --path: 20 values.",
        ),
    ] = None,
    ic: Annotated[
        Criterion | None,
        typer.Option(
            metavar="bic|ebic", help="Choose a lambda of the path by an information criterion."
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Processes for --cv.")] = 1,
    loss: Annotated[
        str, typer.Option(metavar="NAME", help="squared, logistic or poisson.")
    ] = "squared",
    intercept: Annotated[
        bool,
        typer.Option("--intercept/--no-intercept", help="An intercept without penalty."),
    ] = True,
    standardise: Annotated[
        bool,
        typer.Option(
            "--standardise",
            help="Divide columns, and the target of a squared loss, by their standard deviation; "
            "lambda, alpha and M then apply to the weights of the divided columns.",
        ),
    ] = False,
    max_groups: Annotated[
        int | None,
        typer.Option(metavar="K", help="At most K groups, beside --lam or instead of it.", min=0),
    ] = None,
    require: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Groups that are used in any case.")
    ] = None,
    needs: Annotated[
        str | None,
        typer.Option(
            metavar="A:B,...|FILE.json",
            help="Group A only together with group B; several pairs, or {A: [B, ...]} in a file.",
        ),
    ] = None,
    nonnegative: Annotated[
        str | None,
        typer.Option(metavar="all|NAME,...", help="Columns whose weights must not be negative."),
    ] = None,
    group_weights: Annotated[
        str,
        typer.Option(
            metavar="uniform|size|root|FILE.json",
            help="What each group counts in the penalty: 1, its columns, their root, or {group: "
            "weight}; a group of weight 0 is free.",
        ),
    ] = "uniform",
    weights: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column with the weights of the rows.")
    ] = None,
    pool: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            min=1,
            help="Also the next best choices of groups, up to K of them within --within of the best, "
            "and a proven bound for all others.",
        ),
    ] = None,
    within: Annotated[
        str, typer.Option(metavar="X%", help="Of --pool: how far above the best objective.")
    ] = "1%",
    gap: Annotated[float, typer.Option(metavar="X", help="Relative gap to prove.")] = 1e-4,
    time_limit: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="For each lambda.  [default: none]")
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Most nodes to solve for each lambda.")
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(metavar="X", help="Most memory of the process in GB; then the search ends."),
    ] = None,
    warm_start: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Begin with the weights of an earlier result; columns are matched by name.",
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write the model for other solvers, with the M in use: .lp, .mps or .nl "
            "(logistic loss: .nl; not for the poisson loss).",
        ),
    ] = None,
    formulation: Annotated[
        Formulation, typer.Option(metavar="NAME", help="Of --export: bigm or perspective.")
    ] = "perspective",
    device: Annotated[
        str, typer.Option(metavar="NAME", help="Where to compute: cpu or cuda.")
    ] = "cpu",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the results. Default: runs/solve-NAME-HASH, another one for each "
            "problem.",
            callback=outputs.folder,
        ),
    ] = None,
) -> None:
    """Choose the columns that explain a target best, and prove it.

    Columns may stand in groups, which are used or left out as a whole. The command
    minimises mean loss + lambda * sum over groups of [alpha * (squared weights) + (1 - alpha) * (1
    if the group is used)]. The proof is a lower bound; the gap says how far the solution can be
    from the best one.

    Ctrl-C stops with the best so far and its proven gap. `spr-or check DIR` checks the result
    again. Solving the same problem again replaces its result.

    Exit status: 0 proven to the gap, 1 stopped before by a limit or by rounding, 2 bad usage or
    data, or a folder that holds another problem or is in use, 130 interrupted.
    """
    with collector_paused():
        from spr_or.certified_solver.lambda_path import without_price
        from spr_or.commands import solve_options as options
        from spr_or.commands import solve_screen as show
        from spr_or.tabular import folder as places
        from spr_or.tabular.lambda_values import lambdas
        from spr_or.tabular.limits import Limits
        from spr_or.tabular.model_files import check_kind
        from spr_or.tabular.pool import within as within_pct
        from spr_or.tabular.preparation import Reading
        from spr_or.tabular.prepare import prepare
        from spr_or.tabular.solve_run import SolveRun, patient_interrupt
        from spr_or.tabular.warm_start import start_from

    screen = terminal.console()
    try:
        bound = options.bound_of(M)
        alphas = options.alphas_of(alpha)
        tolerance = within_pct(within)
        if cv is not None and ic is not None:
            raise ValueError("give --cv or --ic: each chooses a lambda")
        criterion = "cv" if cv is not None else ic
        if criterion is not None and path is None:
            path = _PATH
        if criterion is None and len(alphas) > 1:
            raise ValueError(f"--alpha {alpha}: give --cv or --ic, which choose between the values")
        single_only = {"--pool": pool, "--warm-start": warm_start, "--export": export}
        for option, value in single_only.items():
            if value is not None and path is not None:
                raise ValueError(
                    f"{option} belongs to a single lambda: give --lam or --max-groups, not a path"
                )
        if export is not None:
            check_kind(export, loss)
        rules = options.rules_of(max_groups, require, needs, nonnegative, group_weights, weights)
        reading = Reading(
            header=header, decimal=decimal, encoding=encoding, drop=drop, columns=columns,
            missing=missing,
        )  # fmt: skip
        data = prepare(
            data_file, target, groups, loss, intercept, standardise, reading, rules=rules
        )
        problems = [data.problem(1.0, one, bound or 1.0) for one in alphas]
        options.check_device(device)
        options.check_limits(gap, time_limit)
        if lam is not None and path is not None or (lam is path is max_groups is None):
            raise ValueError(
                "give either --lam, or --path for many values of it, or --max-groups for a number of "
                "groups"
            )
        grids: list[list[float]] = []
        if path is not None:
            grids = [lambdas(options.path_of(path), problem) for problem in problems]
            asked = [
                places.question(data, one, bound, None, grid)
                for one, grid in zip(alphas, grids, strict=True)
            ]
        else:
            (problem,) = problems
            if lam is None:
                problem = without_price(problem)
            else:
                problem = replace(problem, lam=options.lambda_of(lam, problem))
            problems = [problem]
            asked = [places.question(data, problem.alpha, bound, problem.lam, None)]
        folder = out or places.default_folder(data_file, asked)
        with (
            places.alone_in(folder),
            patient_interrupt(lambda message: typer.echo(f"\n{message}", err=True)) as stop,
        ):
            inside = places.check_free(folder, asked)
            show.describe(screen, data, bound)
            if groups is not None:
                show.list_groups(screen, data)
            start = None if warm_start is None else start_from(warm_start, data)
            runs = [
                SolveRun(
                    data, problem, bound, gap, time_limit, device, place, stop, show.watch,
                    Limits(nodes, memory), start,
                )
                for problem, place in zip(problems, inside, strict=True)
            ]  # fmt: skip
            if path is None:
                made = _solve_one(screen, runs[0], pool, tolerance, export, formulation)
            else:
                made = _solve_paths(screen, folder, runs, grids, criterion, cv or 0, jobs)
    except (ValueError, OSError) as error:
        raise terminal.failed(error, 2) from None
    except KeyboardInterrupt:
        made = []
    if not made:
        raise terminal.failed("interrupted before there was a first solution", 130)
    if stop.asked:
        raise typer.Exit(130)
    raise typer.Exit(0 if all(c.gap <= gap for c in made) else 1)


def _solve_one(
    screen: Console,
    run: SolveRun,
    pool: int | None,
    tolerance: float,
    export: Path | None,
    formulation: Formulation,
) -> list[ProofCertificate]:
    """One lambda, with its pool and its model for other solvers; nothing where it was stopped before."""
    from spr_or.commands import solve_screen as show
    from spr_or.tabular.model_files import export_model
    from spr_or.tabular.pool import solve_pool
    from spr_or.tabular.result_page import write_result_page
    from spr_or.tabular.solve_run import solve_one

    certificate = solve_one(run)
    if certificate is None:
        return []
    show.report(screen, run.data, certificate, run.folder)
    if export is not None:
        export_model(export, certificate.problem, formulation)
        terminal.say(screen, f"model ({formulation}): {export}")
    others = None
    if pool is not None:
        others = solve_pool(run, certificate, pool, tolerance)
        show.report_pool(screen, others)
    write_result_page(run.folder, run.data, certificate, run.M is None, others)
    return [certificate]


def _solve_paths(
    screen: Console,
    folder: Path,
    runs: Sequence[SolveRun],
    grids: Sequence[list[float]],
    criterion: str | None,
    folds: int,
    jobs: int,
) -> list[ProofCertificate]:
    """A path for each alpha, and the choice between all their lambdas, if one is asked for."""
    from spr_or.commands import solve_screen as show
    from spr_or.tabular.path_choice import choose
    from spr_or.tabular.result_page import write_path_page
    from spr_or.tabular.solve_run import solve_path
    from spr_or.tabular.stored_choice import clear_choice

    clear_choice(folder)
    paths = []
    for run, grid in zip(runs, grids, strict=True):
        points = solve_path(run, grid)
        if points:
            paths.append(points)
            if len(runs) > 1:
                terminal.say(screen, f"alpha {run.problem.alpha:g}")
            show.report_path(screen, points, run.folder)
            write_path_page(run.folder, run.data, points, run.M is None)
        if run.stop.asked or not points:
            break
    whole = [len(points) for points in paths] == [len(grid) for grid in grids]
    if criterion is not None and whole and not runs[0].stop.asked:
        choice = choose(folder, runs, paths, criterion, folds, jobs)
        show.say_choice(screen, choice, folder)
        at = next(i for i, run in enumerate(runs) if run.problem.alpha == choice.best.alpha)
        write_path_page(
            folder, runs[at].data, paths[at], runs[at].M is None, choice, runs[at].folder
        )
    return [point.certificate for points in paths for point in points]
