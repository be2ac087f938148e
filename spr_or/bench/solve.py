"""`spr-or bench solve`: the certified solver beside SCIP, HiGHS and, where installed, el0ps and l0bnb.

Every solver gets every named instance in a separate process, one after another, with the same
threads, relative gap and time limit.  Each process first solves a small problem, so that imports and
compilation are not timed; the time counts from the call with the data in memory to the answer, and
includes building the solver's model.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from spr_or.bench.solve_rows import RIVALS, SOLVERS, Row, Settings, contradictions, run
from spr_or.utils import outputs, terminal

DEFAULT_INSTANCES = "E1,E2,E3,E4,E5,H1,H2,H3,S1,S2,S3,S4,S5,S6"


def command(
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Where results.json, results.csv, table.md and the figures go. Finished rows "
            "found there are not run again.",
            callback=outputs.folder,
        ),
    ] = Path("bench-solve"),
    instances: Annotated[
        str,
        typer.Option(metavar="NAME,...", help="Named instances. Default: all.", show_default=False),
    ] = DEFAULT_INSTANCES,
    solvers: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help=f"Of {', '.join(SOLVERS)}. Default: all that are installed and fit an instance.",
        ),
    ] = None,
    time_limit: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="For each row of the table.")
    ] = 120.0,
    gap: Annotated[
        float, typer.Option(min=1e-9, metavar="X", help="Relative gap to prove.")
    ] = 1e-4,
    threads: Annotated[
        int, typer.Option(min=1, metavar="N", help="CPU threads for each solver.")
    ] = 2,
    el0ps_python: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="A Python interpreter that has el0ps. Default: this one.",
            show_default=False,
        ),
    ] = sys.executable,
    l0bnb_python: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="A Python interpreter that has l0bnb. Default: this one.",
            show_default=False,
        ),
    ] = sys.executable,
) -> None:
    """Compare solvers on the named instances.

    Each solver gets each instance in a separate process, one after another.

    Exit status: 0 done, 1 a proof is not confirmed or two solvers contradict each other, 2 bad
    usage, 130 interrupted (finished rows are kept).
    """
    from spr_or.bench import solve_report
    from spr_or.bench.named_instances import NAMES
    from spr_or.utils.files import write_json
    from spr_or.utils.folder_lock import FolderBusy, alone_in

    wanted = _names(instances, NAMES, "--instances")
    chosen = None if solvers is None else _names(solvers, SOLVERS, "--solvers")
    settings = Settings(time_limit, threads, gap, {"el0ps": el0ps_python, "l0bnb": l0bnb_python})
    runnable = _installed(chosen, settings)
    results = out / "results.json"
    interrupted = False
    machine = solve_report.describe_machine()
    try:
        with alone_in(out, "bench"):
            rows = _read(results)
            try:
                for row in measure(wanted, runnable, settings, rows):
                    rows = _merged(rows, row)
                    write_json(results, {"machine": machine, "rows": [asdict(r) for r in rows]})
            except KeyboardInterrupt:
                interrupted = True
                typer.echo("interrupted: the finished rows are kept", err=True)
            wrong = contradictions(rows)
            solve_report.write(out, machine, rows, wrong)
    except FolderBusy as error:
        raise terminal.failed(error, 2) from None
    screen = terminal.console()
    terminal.show(screen, solve_report.table(rows))
    for line in wrong:
        terminal.say(screen, line, "red")
    screen.print(f"written to {out}")
    if interrupted:
        raise typer.Exit(130)
    if wrong:
        raise typer.Exit(1)


def measure(
    instances: Sequence[str],
    solvers: Sequence[str],
    settings: Settings,
    known: Sequence[Row],
) -> Iterable[Row]:
    """A row for each instance and solver that is not among the ``known`` ones."""
    from spr_or.bench.named_instances import problem

    have = {row.settings for row in known if row.status not in ("failed", "skipped")}
    for name in instances:
        missing = [
            s
            for s in solvers
            if (name, s, settings.time_limit, settings.threads, settings.gap) not in have
        ]
        if not missing:
            continue
        made = problem(name)
        for solver in missing:
            empty = Row(
                name, len(made.entities), made.entities.n_parameters, made.n, solver,
                settings.time_limit, settings.threads, settings.gap, "skipped",
            )  # fmt: skip
            with terminal.progress() as progress:
                progress.step(f"{name}, {solver}: at most {settings.time_limit:g} s")
                row = run(made, empty, settings)
            seconds = "" if row.seconds is None else f"{row.seconds:.2f} s"
            gap = "" if row.gap is None else f"gap {row.gap:.2%}"
            line = f"{name} {solver}: {row.status} {seconds} {gap} {row.note}"
            terminal.say(terminal.console(stderr=True), line)
            yield row


def _names(text: str, known: Sequence[str], option: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{option}: no {name!r} among {', '.join(known)}")
    if not names:
        raise typer.BadParameter(f"{option} names nothing")
    return names


def _installed(chosen: list[str] | None, settings: Settings) -> list[str]:
    """The solvers to run: those asked for, an error for a missing one; else all that are there."""
    checks: dict[str, Callable[[], bool]] = {"spr-or-cuda": _cuda}
    for name in RIVALS:
        checks[name] = lambda name=name: _has(settings.pythons[name], name)  # type: ignore[misc]
    runnable = []
    for name in chosen or SOLVERS:
        if name not in checks or checks[name]():
            runnable.append(name)
        elif chosen is not None:
            raise typer.BadParameter(f"--solvers: {name} is not installed here, see its --help")
    return runnable


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _has(python: str, package: str) -> bool:
    """Whether an interpreter can find a package, without importing it."""
    look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    try:
        return (
            subprocess.run([python, "-c", look], capture_output=True, check=False).returncode == 0
        )
    except OSError as error:
        raise typer.BadParameter(f"{python}, to look for {package}: {error.strerror}") from None


def _read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    try:
        return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise typer.BadParameter(
            f"{path} holds no results of this command ({type(error).__name__} {error}): "
            "move it away or give another --out"
        ) from None


def _merged(rows: Sequence[Row], new: Row) -> list[Row]:
    """``rows`` with ``new`` in place of the same solver's row on the same instance."""
    kept = [r for r in rows if (r.instance, r.solver) != (new.instance, new.solver)]
    return sorted(
        [*kept, new], key=lambda r: (r.instance[0], r.N, r.instance, SOLVERS.index(r.solver))
    )
