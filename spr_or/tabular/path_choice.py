"""One lambda of a solved path chosen by cross-validation or an information criterion.

``choice.json``  the criterion, the folder of the chosen lambda, and all that was compared
``choice.csv``, ``choice.png``  the same as a table and as a picture
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from spr_or.certified_solver.lambda_path import PathPoint
from spr_or.tabular.choice import (
    RULES,
    Candidate,
    candidate,
    chosen,
    fold_losses,
    row,
    write_choice,
)
from spr_or.tabular.posed import Model
from spr_or.tabular.solve_run import SolveRun
from spr_or.tabular.stored_choice import NAME
from spr_or.utils.files import write_json

_SHUFFLE = 0  # the seed of the folds: the same every time


class Choice(NamedTuple):
    """The candidates, largest lambda first, the place of the chosen one, its folder's name, and the
    criterion with the number of folds (0: none)."""

    found: list[Candidate]
    place: int
    folder: str
    criterion: str
    folds: int


def choose(
    run: SolveRun, points: Sequence[PathPoint], criterion: str, folds: int, jobs: int = 1
) -> Choice:
    """Choose among the points of a path, and write the choice beside it.

    Parameters
    ----------
    criterion : "cv", by the rule of one standard error, "bic" or "ebic"
    folds : for "cv"; rows are shuffled, and the folds of a logistic target are stratified
    jobs : processes that work on folds

    M is derived in each fold, whatever it is in the path.  Raises ``ValueError`` for more folds than rows.
    """
    data = run.data
    X, y = data.table.X, data.table.y
    lams = [point.lam for point in points]
    model = Model(
        data.loss, data.groups, list(data.entities.free), data.entities.settings, run.problem.alpha,
        data.intercept, data.standardise, run.gap, run.time_limit,
    )  # fmt: skip
    count = 0
    parts = []
    if criterion == "cv":
        from sklearn.model_selection import KFold, StratifiedKFold

        count = folds
        kind = KFold if data.loss == "squared" else StratifiedKFold
        splitter = kind(folds, shuffle=True, random_state=_SHUFFLE)
        parts = list(splitter.split(X, None if data.loss == "squared" else y[:, 0]))
    (losses,) = fold_losses(X, y, data.table.weight, [model], [lams], parts, jobs)
    found = [
        candidate(model, point.certificate, held)
        for point, held in zip(points, losses.T, strict=True)
    ]
    place = chosen(found, criterion)
    choice = Choice(found, place, f"lambda-{place + 1:02d}", criterion, count)
    labels = list(data.groups)
    write_choice(run.folder / "choice.csv", found, place, labels, criterion)
    write_choice(run.folder / "choice.png", found, place, labels, criterion)
    write_json(
        run.folder / NAME,
        {
            "criterion": criterion,
            "rule": RULES[0] if criterion == "cv" else None,
            "folds": count or None,
            "chosen": choice.folder,
            "lam": found[place].lam,
            "compared": [row(one, labels) for one in found],
        },
    )
    return choice


def why(choice: Choice) -> str:
    """How a lambda was chosen, in a sentence."""
    best = choice.found[choice.place]
    count = int(best.certificate.indicators.sum())
    groups = "1 group" if count == 1 else f"{count} groups"
    said = f"chosen: lambda {best.lam:.5g} with {groups} ({choice.folder}), "
    if choice.criterion != "cv":
        return said + f"the least {choice.criterion.upper()}"
    if choice.place == min(range(len(choice.found)), key=lambda i: choice.found[i].loss):
        return said + f"the least held-out loss of {choice.folds} folds"
    return said + (
        f"the largest whose held-out loss, over {choice.folds} folds, is within one standard error of "
        "the least"
    )
