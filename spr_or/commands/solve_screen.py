"""What `spr-or solve` shows: data, groups, results, a path and a choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from spr_or.utils import terminal
from spr_or.utils.printable import one_line

if TYPE_CHECKING:
    from rich.console import Console

    from spr_or.certified_solver.lambda_path import PathPoint
    from spr_or.proof.certificate import ProofCertificate, SearchProgress
    from spr_or.tabular.path_choice import Choice
    from spr_or.tabular.pool import Pool
    from spr_or.tabular.prepare import OwnData

_SHOWN = 20  # rows of the table of groups


@contextmanager
def watch(lam: float) -> Iterator[Callable[[SearchProgress], None]]:
    """Progress that says where the search for one lambda stands."""
    with terminal.progress() as progress:
        progress.step(f"lambda {lam:.4g}")

        def show(now: SearchProgress) -> None:
            progress.detail(
                f"{now.objective:.5g}, bound {now.bound:.5g}, gap {100 * now.gap:.2f} %, "
                f"{now.nodes} nodes, {now.open} open"
            )

        yield show


def describe(screen: Console, data: OwnData, bound: float | None) -> None:
    """The data, and what was done with them."""
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


def list_groups(screen: Console, data: OwnData) -> None:
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


def report(screen: Console, data: OwnData, certificate: ProofCertificate, folder: Path) -> None:
    """The groups kept, fit and proof of one lambda."""
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


def report_pool(screen: Console, pool: Pool) -> None:
    """The choices of groups of a pool."""
    from spr_or.tabular.result_words import above_the_best, what_others_reach
    from spr_or.tabular.source import listed

    rows = [
        (
            str(row["rank"]),
            f"{row['objective']:.8g}",
            above_the_best(row).removesuffix(" %"),
            listed(row["kept"], 6),
        )
        for row in pool.rows
    ]
    heads = ("rank", "objective", "% above the best", "groups kept")
    terminal.show(screen, terminal.table(heads, rows, text=("groups kept",)))
    terminal.say(screen, what_others_reach(pool))


def say_choice(screen: Console, choice: Choice, folder: Path) -> None:
    """What was compared, and which lambda was chosen."""
    from spr_or.tabular.path_choice import why

    held = len(choice.found[0].losses) > 0
    several = len({one.alpha for one in choice.found}) > 1
    rows = [
        (
            *((f"{one.alpha:g}",) if several else ()),
            f"{one.lam:.5g}",
            str(int(one.certificate.indicators.sum())),
            *((f"{one.loss:.6g}", f"{one.spread:.4g}") if held else ()),
            f"{one.bic:.6g}",
            f"{one.ebic:.6g}",
            "chosen" if i == choice.place else "",
        )
        for i, one in enumerate(choice.found)
    ]
    alpha = ("alpha",) if several else ()
    losses = ("held-out loss", "±") if held else ()
    columns = (*alpha, "lambda", "groups", *losses, "BIC", "EBIC", "")
    terminal.show(screen, terminal.table(columns, rows, text=("",)))
    terminal.say(screen, why(choice))
    terminal.say(screen, f"choice: {folder} (choice.csv, choice.json, choice.png)")


def report_path(screen: Console, points: Sequence[PathPoint], folder: Path) -> None:
    """A row for each lambda."""
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
