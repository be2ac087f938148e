"""Every table of the paper with our figures beside it, as Markdown, CSV and pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from spr_or.paper_tables.ours import Setting, Spread, plain
from spr_or.paper_tables.published import (
    DENOMINATORS,
    PROTOCOLS,
    EpochTime,
    Problem,
    Published,
    problems,
)
from spr_or.paper_tables.tables_figures import figures_of
from spr_or.utils.counted import counted
from spr_or.utils.files import write_csv, write_text
from spr_or.utils.printable import one_line

NOT_RUN = "not run"
Row = dict[str, str]


def write_report(
    folder: Path,
    settings: Sequence[Setting],
    published: Sequence[Published],
    epoch_times: Sequence[EpochTime],
    unfinished: Sequence[Path] = (),
) -> None:
    """Write ``tables.md``, ``tables.csv`` and ``figures/*.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "figures").mkdir(exist_ok=True)
    parts: dict[int, str] = {}
    rows: list[Row] = []
    for number in sorted({line.table for line in published}):
        lines = [line for line in published if line.table == number]
        problem = lines[0].problem
        found = [one for one in settings if one.problem == problem and one.is_spr]
        if lines[0].method == "SPR":
            table, note = spr_rows(lines, found), _denominator(problem)
            what = f"SPR, {lines[0].setting}" if lines[0].setting else "SPR"
        else:
            rivals = [one for one in settings if one.problem == problem and not one.is_spr]
            table, note, what = rival_rows(lines, rivals), _NOTES["rivals"], "other methods"
        body = f"{what}, {problem.network} on {problem.dataset}\n\n{note}\n\n{markdown(table)}"
        figures = figures_of(folder, problem, published, found) if number <= 7 else []
        parts[number] = "\n\n".join([body, *figures])
        rows += [{"table": str(number), **row} for row in table]
    for number, what, table in (
        (15, "seconds per epoch, with and without SPR", time_rows(epoch_times, settings)),
        (17, "before and after fine-tuning", finetune_rows(settings)),
    ):
        parts[number] = f"{what}\n\n{_NOTES[what]}\n\n{markdown(table)}"
        rows += [{"table": str(number), **row} for row in table]
    text = [f"## Table {number}: {parts[number]}" for number in sorted(parts)]
    text = [_preface(settings, unfinished), *text]
    text += _elsewhere(folder, settings, published, rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_csv(folder / "tables.csv", columns, rows)
    write_text(folder / "tables.md", "\n\n".join(text) + "\n")


_NOTES = {
    "rivals": "Published figures of other methods, over denominators of their own. Beside a line stands our "
    "run of the method whose budget is nearest (`spr-or compare`). It started from our dense network and was "
    "trained as all methods here are, so the columns do not compare protocols.",
    "seconds per epoch, with and without SPR": "Medians over the logged epochs, evaluation included: "
    "those of the SPR phase against those of the dense phase. Runs that share a machine slow each "
    "other down. The paper used another machine and other code, so only the ratios can be compared.",
    "before and after fine-tuning": "Our accuracies after masking and after the last epoch of "
    "fine-tuning. The published figures of this table are not in experiments/reference.",
}


# --- the rows of each kind of table -----------------------------------------------------------


def spr_rows(lines: Sequence[Published], settings: Sequence[Setting]) -> list[Row]:
    """Each published line of SPR, once for each of our settings with its λ, α and lr."""
    rows = []
    for line in lines:
        if line.method == "dense":
            matching: Sequence[Setting] = settings
            rows += _dense_rows(line, matching)
            continue
        matching = [one for one in settings if matches(line, one)]
        head = {
            "λ": plain(line.lam), "α": plain(line.alpha), "lr": plain(line.lr),
            "published top-1": f"{line.top1:.2f}", "published pruned %": f"{line.pruned_pct:.2f}",
        }  # fmt: skip
        if line.top5 is not None:
            head["published top-5"] = f"{line.top5:.2f}"
        rows += [head | ours_columns(one) for one in matching] or [head | _nothing()]
    return rows


def _dense_rows(line: Published, settings: Sequence[Setting]) -> list[Row]:
    head = {"λ": "dense", "published top-1": f"{line.top1:.2f}"}
    if line.top5 is not None:
        head["published top-5"] = f"{line.top5:.2f}"
    # One dense network serves many settings: it is listed once.
    told: dict[tuple[object, ...], Row] = {}
    for one in settings:
        r = one.recipe
        key = (r.data, r.train, r.dense, tuple(one.seeds), one.runs[0].summary["dataset"])
        row = _nothing() | {
            "top-1": _spread(one.spread("dense_accuracy")),
            "zero filters %": "0", "removed %": "0", "MACs removed %": "0",
            "seeds": _seeds(one), "epochs": str(r.dense.epochs), "form": "",
            "data": one.runs[0].summary["dataset"],
            "differences, options": "; ".join(one.data_differences),
        }  # fmt: skip
        told.setdefault(key, head | row)
    return list(told.values()) or [head | _nothing()]


def rival_rows(lines: Sequence[Published], settings: Sequence[Setting] = ()) -> list[Row]:
    """Published figures of other methods, each beside our run of that method with the nearest budget."""
    rows = []
    for line in lines:
        head = {
            "method": line.method, "setting": line.setting,
            "published top-1": f"{line.top1:.2f}",
            **({"published top-5": f"{line.top5:.2f}"} if line.top5 is not None else {}),
            "published pruned %": f"{line.pruned_pct:.2f}",
        }  # fmt: skip
        ours = [one for one in settings if one.recipe.method.name == line.method.lower()]
        nearest = min(ours, key=lambda one: abs(one.budget - line.pruned_pct), default=None)
        if nearest is None:
            rows.append(head | {"top-1": NOT_RUN})
            continue
        rows.append(head | {
            "dense": _spread(nearest.spread("dense_accuracy")),
            "top-1": _spread(nearest.spread("accuracy")),
            "removed %": _spread(nearest.spread("removed_params_pct")),
            "MACs removed %": _spread(nearest.macs_removed()),
            "seeds": _seeds(nearest), "epochs": nearest.epochs,
            "data": nearest.runs[0].summary["dataset"],
        })  # fmt: skip
    return rows


def ours_columns(one: Setting) -> Row:
    """What our runs of a setting gave, and how they were made."""
    denominator = DENOMINATORS.get(one.problem)
    weights = denominator.weights if denominator else one.runs[0].summary["parameters"]
    return {
        "top-1": _spread(one.spread("accuracy")),
        "zero filters %": _spread(one.masked_share(weights)),
        "removed %": _spread(one.spread("removed_params_pct")),
        "MACs removed %": _spread(one.macs_removed()),
        "seeds": _seeds(one),
        "epochs": one.epochs,
        "form": one.form,
        "data": one.runs[0].summary["dataset"],
        "differences, options": "; ".join(one.differences),
    }


def _nothing() -> Row:
    return {
        "top-1": NOT_RUN, "zero filters %": NOT_RUN, "removed %": NOT_RUN,
        "MACs removed %": NOT_RUN, "seeds": "", "epochs": "", "form": "", "data": "",
        "differences, options": "",
    }  # fmt: skip


def matches(line: Published, one: Setting) -> bool:
    """Whether a setting has the λ, α and (where the line names it) the rate of a published line.

    A run with a budget moves λ, so it matches none, nor does one whose λ is a share of the largest.
    """
    spr = one.recipe.spr
    if isinstance(spr.lam, str):
        return False
    wanted = ((line.lam, spr.lam), (line.alpha, spr.alpha), (line.lr, spr.lr))
    return (
        one.problem == line.problem
        and spr.target_removed_pct is None
        and all(a is None or math.isclose(a, b, rel_tol=1e-6) for a, b in wanted)
    )


def time_rows(epoch_times: Sequence[EpochTime], settings: Sequence[Setting]) -> list[Row]:
    """Table 15: published and ours, one line for each kind of run that logged both phases."""
    rows = []
    for line in epoch_times:
        head = {
            "data set": line.problem.dataset,
            "network": line.problem.network,
            "published with SPR": f"{line.with_spr:.2f}",
            "published without": f"{line.without_spr:.2f}",
            "published ratio": f"{line.with_spr / line.without_spr:.2f}",
        }
        timed = []
        for one in settings:
            with_spr, without = one.epoch_seconds("spr"), one.epoch_seconds("dense")
            if one.is_spr and one.problem == line.problem and with_spr and without:
                summary = one.runs[0].summary
                timed.append({
                    "with SPR": f"{with_spr:.2f}", "without": f"{without:.2f}",
                    "ratio": f"{with_spr / without:.2f}", "λ": one.lam,
                    "α": one.alpha, "form": one.form, "seeds": _seeds(one),
                    "device": summary["device"], "images": f"{summary['train_images']:,}",
                })  # fmt: skip
        nothing = {"with SPR": NOT_RUN, "without": NOT_RUN, "ratio": NOT_RUN}
        rows += [head | row for row in timed] or [head | nothing]
    return rows


def finetune_rows(settings: Sequence[Setting]) -> list[Row]:
    """Table 17: accuracy before and after fine-tuning of all our runs."""
    rows = []
    for one in settings:
        gained = one.spread("accuracy").mean - one.spread("accuracy_before_finetune").mean
        rows.append({
            "data set": one.problem.dataset, "network": one.problem.network,
            "λ": one.lam, "α": one.alpha,
            "before": _spread(one.spread("accuracy_before_finetune")),
            "after": _spread(one.spread("accuracy")), "gained": f"{gained:+.2f}",
            "removed %": _spread(one.spread("removed_params_pct")), "seeds": _seeds(one),
            "epochs": one.epochs, "form": one.form,
            "differences, options": "; ".join(one.differences),
        })  # fmt: skip
    return rows or [{"data set": NOT_RUN, "before": NOT_RUN, "after": NOT_RUN}]


# --- text -------------------------------------------------------------------------------------


def markdown(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table; columns are all keys, in the order in which they first appear.

    >>> print(markdown([{"a": "1"}, {"b": "x|y"}]))
    | a | b |
    | --- | --- |
    | 1 |  |
    |  | x\\|y |
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(key, "")) for key in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Text in one cell of a Markdown table, in which it opens neither a cell nor a tag."""
    return one_line(text).replace("|", r"\|").replace("<", "&lt;")


def _preface(settings: Sequence[Setting], unfinished: Sequence[Path]) -> str:
    runs = sum(len(one.runs) for one in settings)
    text = (
        "# The paper's tables\n\n"
        "Published figures: Cacciola, Frangioni, Li, Lodi, arXiv 2206.14056. Beside them stands "
        f"what {runs} finished runs in {len(settings)} settings gave; a figure without a run is "
        f'"{NOT_RUN}". Accuracies are those of the last epoch, in percent, as mean ± standard '
        "deviation over the seeds. *zero filters %* is the paper's measure, weights in filters that "
        "are zero, over the denominator named above each table. *removed %* is what compaction takes "
        "away, of all parameters. *epochs* are dense + SPR + fine-tuning, *form* is the variant of "
        "the closed form and the method; *differences, options* says where a run is shorter "
        "than the paper's or uses other images, and which keys of its recipe are not at their "
        "defaults. Our runs measure no top-5 accuracy."
    )
    if unfinished:
        text += f"\n\n{counted(len(unfinished), 'run')} not finished, and left out."
    return text


def _denominator(problem: Problem) -> str:
    protocol = PROTOCOLS[problem.dataset]
    meaning = DENOMINATORS[problem].meaning
    return (
        f"Percentages of the paper are shares of {meaning}. It trained for "
        f"{protocol.spr_epochs}+{protocol.finetune_epochs} epochs in batches of "
        f"{protocol.batch_size}."
    )


def _elsewhere(
    folder: Path, settings: Sequence[Setting], published: Sequence[Published], rows: list[Row]
) -> list[str]:
    """Our runs that no published line has: other λ and α, other data, other networks."""
    spr = [line for line in published if line.method == "SPR"]
    left = [one for one in settings if not any(matches(line, one) for line in spr)]
    parts = []
    known = problems(published)
    for problem in dict.fromkeys(one.problem for one in left):
        mine = [one for one in left if one.problem == problem]
        table = [
            {"λ": one.lam, "α": one.alpha,
             "lr": plain(one.recipe.spr.lr), "dense": _spread(one.spread("dense_accuracy")),
             **ours_columns(one)}
            for one in mine
        ]  # fmt: skip
        heading = f"Runs without a published counterpart: {problem.network} on {problem.dataset}"
        denominator = (
            _denominator(problem)
            if problem in known
            else f"Shares are of all {mine[0].runs[0].summary['parameters']:,} parameters."
        )
        parts.append(f"## {heading}\n\n{denominator}\n\n{markdown(table)}")
        if problem not in known:
            parts += figures_of(folder, problem, published, mine)
        rows += [
            {"table": "", "data set": problem.dataset, "network": problem.network, **row}
            for row in table
        ]
    return parts


def _spread(value: Spread) -> str:
    if value.deviation is None:
        return f"{value.mean:.2f}"
    return f"{value.mean:.2f} ± {value.deviation:.2f}"


def _seeds(one: Setting) -> str:
    return ", ".join(map(str, one.seeds))
