"""Accuracy over what was removed: the published points of a table and ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from spr_or.paper_tables.ours import Setting, Spread
from spr_or.paper_tables.published import DENOMINATORS, Problem, Published
from spr_or.utils import palette, pareto

_STYLES = (
    (palette.BLUE, "o"),
    (palette.GREEN, "D"),
    (palette.RED, "v"),
    (palette.PURPLE, "p"),
)
_MEASURES: tuple[tuple[str, str, Callable[[Setting], Spread]], ...] = (
    ("removed", "parameters removed", lambda one: one.spread("removed_params_pct")),
    ("macs", "multiply-accumulates removed", Setting.macs_removed),
)


def figures_of(
    folder: Path, problem: Problem, published: Sequence[Published], found: Sequence[Setting]
) -> list[str]:
    """Draw the pictures of a problem into ``folder/figures``; the lines of Markdown that show them.

    The first one shows the paper's measure, published points beside ours; two more show what our
    runs removed of parameters and multiply-accumulates. Each of our points is joined to the
    accuracy of its dense network.
    """
    title = f"{problem.network} on {problem.dataset}"
    name = re.sub(r"[^a-z0-9]+", "-", f"{problem.network} {problem.dataset}".lower()).strip("-")
    lines = [line for line in published if line.problem == problem]
    denominator = DENOMINATORS.get(problem)
    weights = denominator.weights if denominator else None

    def in_zero_filters(one: Setting) -> Spread:
        return one.masked_share(weights) if weights else one.spread("masked_filter_weights_pct")

    drawn = pareto.draw(
        # Labels on our points would hide the published ones.
        published_series(lines) + our_series(found, in_zero_filters, named=not lines),
        folder / "figures" / f"{name}.png",
        xlabel="weights in zero filters "
        f"({'%, as the paper counts them' if weights else '% of all parameters'})",
        title=title,
        dense=[
            ("published, dense", line.top1, palette.ORANGE)
            for line in lines
            if line.method == "dense"
        ],
    )
    images = []
    if drawn:
        images.append(f"![Accuracy over weights in zero filters, {title}](figures/{name}.png)")
    for ending, what, share_of in _MEASURES:
        path = folder / "figures" / f"{name}-{ending}.png"
        xlabel = f"{what} (% of the dense network)"
        if pareto.draw(our_series(found, share_of), path, xlabel=xlabel, title=title):
            images.append(f"![Accuracy over {what}, {title}](figures/{path.name})")
    return images


def published_series(lines: Sequence[Published]) -> list[pareto.Series]:
    """The published points: other methods, each with its name, and SPR."""
    spr = [line for line in lines if line.method == "SPR"]
    rivals = [line for line in lines if line.method not in ("SPR", "dense")]
    return [
        pareto.Series(
            "published, other methods", *_points(rivals), palette.GREY, "^",
            names=[line.method for line in rivals],
        ),
        pareto.Series("published, SPR", *_points(spr), palette.ORANGE, "s", joined=True),
    ]  # fmt: skip


def _points(lines: Sequence[Published]) -> tuple[list[float], list[float]]:
    return [line.pruned_pct for line in lines], [line.top1 for line in lines]


def our_series(
    found: Sequence[Setting], share_of: Callable[[Setting], Spread], named: bool = True
) -> list[pareto.Series]:
    """Our points, one series for each form, each point with the accuracy of its dense network."""
    series = []
    forms = list(dict.fromkeys(one.form for one in found))
    for number, form in enumerate(forms):
        ours = [one for one in found if one.form == form]
        accuracy = [one.spread("accuracy") for one in ours]
        names = [f"λ={o.lam}, α={o.alpha}" if o.is_spr else o.form for o in ours]
        series.append(
            pareto.Series(
                f"ours, {form}",
                [share_of(one).mean for one in ours],
                [a.mean for a in accuracy],
                *_STYLES[number % len(_STYLES)],
                spread=[a.deviation or 0.0 for a in accuracy],
                names=names if named else None,
                dense=[one.spread("dense_accuracy").mean for one in ours],
            )
        )
    return series
