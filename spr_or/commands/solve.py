"""`spr-or solve`: the groups of columns that explain one's own data best, with a proof."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spr_or.utils import outputs, terminal
from spr_or.utils.first_imports import collector_paused
from spr_or.utils.printable import one_line

if TYPE_CHECKING:
    from rich.console import Console

    from spr_or.certified_solver.lambda_path import PathPoint
    from spr_or.formulations.problem import SparseTrainingProblem
    from spr_or.proof.certificate import ProofCertificate, SearchProgress
    from spr_or.tabular.model_rules import ModelRules
    from spr_or.tabular.path_choice import Choice
    from spr_or.tabular.pool import Pool
    from spr_or.tabular.prepare import OwnData

_SHOWN = 20  # rows of the table of groups

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
        float, typer.Option(metavar="X", help="Share of the penalty on squared weights, 0 to 1.")
    ] = 0.1,
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
    loss: Annotated[str, typer.Option(metavar="NAME", help="squared or logistic.")] = "squared",
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
            "(logistic loss: .nl).",
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

    Exit status: 0 proven to the gap, 1 stopped by a limit before, 2 bad usage or data, or a
    folder that holds another problem or is in use, 130 interrupted.
    """
    with collector_paused():
        from spr_or.certified_solver.lambda_path import without_price
        from spr_or.tabular.folder import alone_in, check_free, default_folder, question
        from spr_or.tabular.limits import Limits
        from spr_or.tabular.model_files import check_kind, export_model
        from spr_or.tabular.path_choice import choose
        from spr_or.tabular.pool import solve_pool
        from spr_or.tabular.pool import within as within_pct
        from spr_or.tabular.preparation import Reading
        from spr_or.tabular.prepare import prepare
        from spr_or.tabular.result_page import write_path_page, write_result_page
        from spr_or.tabular.solve_run import SolveRun, patient_interrupt, solve_one, solve_path
        from spr_or.tabular.warm_start import start_from

    screen = terminal.console()
    try:
        bound = _bound_of(M)
        tolerance = within_pct(within)
        if cv is not None and ic is not None:
            raise ValueError("give --cv or --ic: each chooses a lambda")
        criterion = "cv" if cv is not None else ic
        if criterion is not None and path is None:
            path = _PATH
        single_only = {"--pool": pool, "--warm-start": warm_start, "--export": export}
        for option, value in single_only.items():
            if value is not None and path is not None:
                raise ValueError(
                    f"{option} belongs to a single lambda: give --lam or --max-groups, not a path"
                )
        if export is not None:
            check_kind(export, loss)
        rules = _rules(max_groups, require, needs, nonnegative, group_weights, weights)
        reading = Reading(
            header=header, decimal=decimal, encoding=encoding, drop=drop, columns=columns,
            missing=missing,
        )  # fmt: skip
        data = prepare(
            data_file, target, groups, loss, intercept, standardise, reading, rules=rules
        )
        problem = data.problem(1.0, alpha, bound or 1.0)
        _check_device(device)
        _check_limits(gap, time_limit)
        if lam is None and path is None and max_groups is not None:
            problem = without_price(problem)
            lams = []
        else:
            lams = _lambdas(problem, lam, path)
            if path is None:
                problem = replace(problem, lam=lams.pop())
        single = problem.lam if path is None else None
        asked = question(data, problem.alpha, bound, single, None if path is None else lams)
        folder = out or default_folder(data_file, asked)
        with (
            alone_in(folder),
            patient_interrupt(lambda message: typer.echo(f"\n{message}", err=True)) as stop,
        ):
            check_free(folder, asked)
            _describe(screen, data, bound)
            if groups is not None:
                _list_groups(screen, data)
            run = SolveRun(
                data, problem, bound, gap, time_limit, device, folder, stop, _watch,
                Limits(nodes, memory), None if warm_start is None else start_from(warm_start, data),
            )  # fmt: skip
            if path is None:
                certificate = solve_one(run)
                made = [] if certificate is None else [certificate]
                if certificate is not None:
                    _report(screen, data, certificate, folder)
                    if export is not None:
                        export_model(export, certificate.problem, formulation)
                        terminal.say(screen, f"model ({formulation}): {export}")
                    others = None
                    if pool is not None:
                        others = solve_pool(run, certificate, pool, tolerance)
                        _report_pool(screen, others)
                    write_result_page(folder, data, certificate, bound is None, others)
            else:
                points = solve_path(run, lams)
                made = [point.certificate for point in points]
                if points:
                    _report_path(screen, points, folder)
                choice = None
                if criterion is not None and len(points) == len(lams) and not stop.asked:
                    choice = choose(run, points, criterion, cv or 0, jobs)
                    _say_choice(screen, choice, folder)
                if points:
                    write_path_page(folder, data, points, bound is None, choice)
    except (ValueError, OSError) as error:
        raise terminal.failed(error, 2) from None
    except KeyboardInterrupt:
        made = []
    if not made:
        raise terminal.failed("interrupted before there was a first solution", 130)
    if stop.asked:
        raise typer.Exit(130)
    raise typer.Exit(0 if all(c.gap <= gap for c in made) else 1)


@contextmanager
def _watch(lam: float) -> Iterator[Callable[[SearchProgress], None]]:
    """Progress that says where the search for one lambda stands."""
    with terminal.progress() as progress:
        progress.step(f"lambda {lam:.4g}")

        def show(now: SearchProgress) -> None:
            progress.detail(
                f"{now.objective:.5g}, bound {now.bound:.5g}, gap {100 * now.gap:.2f} %, "
                f"{now.nodes} nodes, {now.open} open"
            )

        yield show


def _bound_of(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"--M must be auto or a positive number, got {text!r}")
    return value


def _check_limits(gap: float, time_limit: float | None) -> None:
    if not 0 <= gap < math.inf:
        raise ValueError(f"--gap must be a number of at least 0, got {gap}")
    if time_limit is not None and not time_limit >= 0:
        raise ValueError(f"--time-limit must be at least 0 seconds, got {time_limit}")


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {device}: {reason}") from None


def _rules(
    max_groups: int | None,
    require: str | None,
    needs: str | None,
    nonnegative: str | None,
    group_weights: str,
    weights: str | None,
) -> ModelRules:
    from spr_or.tabular.model_rules import ALL, ModelRules, needs_asked, weights_asked
    from spr_or.tabular.source import names_asked

    signed: str | list[str] = []
    if nonnegative is not None:
        signed = ALL if nonnegative == ALL else names_asked(nonnegative)
    return ModelRules(
        sample_weight=weights,
        group_weights=weights_asked(group_weights),
        max_groups=max_groups,
        required=[] if require is None else names_asked(require),
        nonnegative=signed,
        needs={} if needs is None else needs_asked(needs),
    )


def _lambdas(problem: SparseTrainingProblem, lam: str | None, path: str | None) -> list[float]:
    """The lambdas of a path, largest first, or the single one."""
    from spr_or.certified_solver.lambda_path import grid, zero_from

    if (lam is None) == (path is None):
        raise ValueError(
            "give either --lam, or --path for many values of it, or --max-groups for a number of groups"
        )
    if lam is not None:
        number, share, rest = lam.strip().partition("max")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if rest.strip() or not 0 < value < math.inf:
            raise ValueError(
                f'--lam must be a positive number or a share such as "0.1 max", got {lam!r}'
            )
        # Zero where there is nothing to explain: then every lambda has the same answer.
        return [value * (zero_from(problem) or 1.0) if share else value]
    assert path is not None
    if path.strip().isdigit():
        # Zero where there is nothing to explain: then every lambda has the same answer.
        return grid(zero_from(problem) or 1.0, int(path))
    try:
        lams = sorted({float(part) for part in path.split(",")}, reverse=True)
    except ValueError:
        lams = []
    if not lams or not all(0 < value < math.inf for value in lams):
        raise ValueError(
            f"--path must be a number of values or a list of positive ones, got {path!r}"
        )
    return lams


def _describe(screen: Console, data: OwnData, bound: float | None) -> None:
    table = data.table
    n, p = table.X.shape
    terminal.say(
        screen,
        f"{data.path.name}: {n} rows, {p} columns in {len(data.groups)} groups, "
        f"target {', '.join(table.targets)}, {data.loss} loss, "
        f"{'with' if data.intercept else 'no'} intercept",
    )
    for note in table.notes:
        terminal.say(screen, note)
    for warning in table.warnings:
        terminal.say(screen, f"warning: {warning}", "yellow")
    if table.classes:
        terminal.say(
            screen, f"the model scores {table.classes[1]!r} (+1) against {table.classes[0]!r} (-1)"
        )
    for phrase in data.rules.spoken():
        terminal.say(screen, phrase)
    if data.standardise:
        what = "a bound derived from the data" if bound is None else f"M = {bound:g}"
        by = "standard deviation" if data.intercept else "root mean square"
        both = "columns and target" if data.loss == "squared" else "columns"
        terminal.say(
            screen,
            f"{both} are divided by their {by}: lambda, alpha and M ({what}) apply to the weights of "
            "the divided columns; weights.csv has those of the columns as they are",
        )


def _list_groups(screen: Console, data: OwnData) -> None:
    """What belongs together, before it is solved."""
    from spr_or.tabular.source import listed

    names = data.table.columns
    rows = [
        (one_line(group), str(len(members)), listed([names[j] for j in members], 6))
        for group, members in list(data.groups.items())[:_SHOWN]
    ]
    heads = ("group", "size", "columns")
    terminal.show(screen, terminal.table(heads, rows, text=("group", "columns")))
    if len(data.groups) > _SHOWN:
        screen.print(f"and {len(data.groups) - _SHOWN} more groups")


def _report(screen: Console, data: OwnData, certificate: ProofCertificate, folder: Path) -> None:
    from spr_or.tabular.prepare import r_squared
    from spr_or.tabular.results import kept_groups

    problem = certificate.problem
    kept = kept_groups(data, certificate)
    columns = ("group kept", "columns", "norm of weights", "largest / M")
    rows = [
        (g.name, str(len(g.columns)), f"{g.norm:.4g}", f"{g.share_of_M:.2f}") for g in kept[:_SHOWN]
    ]
    if kept:
        terminal.show(screen, terminal.table(columns, rows, text=("group kept",)))
    if len(kept) > _SHOWN:
        screen.print(f"and {len(kept) - _SHOWN} more: see groups.csv")
    fit = f"mean loss {float(problem.loss_value(certificate.weights)):.6g}"
    if data.loss == "squared" and data.intercept:
        fit += f", R2 {r_squared(data, problem, certificate.weights):.4f}"
    screen.print(f"{len(kept)} of {len(data.groups)} groups kept, {fit}")
    terminal.say(
        screen,
        f"{certificate.status.replace('_', ' ')}: objective {certificate.objective:.8g}, proven "
        f"bound {certificate.bound:.8g}, gap {100 * certificate.gap:.4g} %, "
        f"{certificate.nodes} nodes, {certificate.seconds:.1f} s",
    )
    active = [
        name for name, on in zip(data.groups, certificate.m_active.tolist(), strict=True) if on
    ]
    if active:
        terminal.say(
            screen,
            f"M is active at {len(active)} groups ({', '.join(active[:3])}): a larger M "
            "may give a better model; --M auto cuts off none",
            "yellow",
        )
    files = "report.html, weights.csv, groups.csv, result.json, certificate.json"
    terminal.say(screen, f"results: {folder} ({files})")


def _report_pool(screen: Console, pool: Pool) -> None:
    from spr_or.tabular.source import listed

    rows = [
        (
            str(row["rank"]),
            f"{row['objective']:.8g}",
            f"{row['above_best_pct']:.3g}",
            listed(row["kept"], 6),
        )
        for row in pool.rows
    ]
    heads = ("rank", "objective", "% above the best", "groups kept")
    terminal.show(screen, terminal.table(heads, rows, text=("groups kept",)))
    if pool.complete:
        said = f"no other choice of groups comes within {pool.within_pct:g} % of the best, which is proven"
    else:
        said = f"not proven to be all within {pool.within_pct:g} % of the best"
    if pool.others_pct is not None:
        said += f"; all others are at least {pool.others_pct:.4g} % above it"
    terminal.say(screen, said)


def _say_choice(screen: Console, choice: Choice, folder: Path) -> None:
    """What was compared, and which lambda was chosen."""
    from spr_or.tabular.path_choice import why

    held = len(choice.found[0].losses) > 0
    rows = [
        (
            f"{one.lam:.5g}",
            str(int(one.certificate.indicators.sum())),
            *((f"{one.loss:.6g}", f"{one.spread:.4g}") if held else ()),
            f"{one.bic:.6g}",
            f"{one.ebic:.6g}",
            "chosen" if i == choice.place else "",
        )
        for i, one in enumerate(choice.found)
    ]
    columns = ("lambda", "groups", *(("held-out loss", "±") if held else ()), "BIC", "EBIC", "")
    terminal.show(screen, terminal.table(columns, rows, text=("",)))
    terminal.say(screen, why(choice))
    terminal.say(screen, f"choice: {folder} (choice.csv, choice.json, choice.png)")


def _report_path(screen: Console, points: Sequence[PathPoint], folder: Path) -> None:
    rows = [
        (
            f"{point.lam:.5g}",
            str(int(point.certificate.indicators.sum())),
            f"{point.certificate.objective:.6g}",
            f"{point.certificate.bound:.6g}",
            f"{100 * point.certificate.gap:.4f}",
            point.certificate.status + (" (from before)" if point.stored else ""),
        )
        for point in points
    ]
    columns = ("lambda", "groups", "objective", "bound", "gap %", "status")
    terminal.show(screen, terminal.table(columns, rows, text=("status",)))
    files = "report.html, path.csv, path.json, path.png, and a folder for each lambda"
    terminal.say(screen, f"results: {folder} ({files})")
