"""One lambda, and one of several alphas, chosen by cross-validation or an information criterion.

``choice.json``  the criterion, the folder of the chosen lambda, and all that was compared
``choice.csv``, ``choice.png``  the same as a table and as a picture
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from spr_or.certified_solver.lambda_path import PathPoint
from spr_or.tabular.choice import Candidate, candidate, fold_losses, row, write_choice
from spr_or.tabular.choice_rule import RULES, chosen
from spr_or.tabular.folder import lambda_folder
from spr_or.tabular.posed import Model
from spr_or.tabular.solve_run import SolveRun
from spr_or.tabular.stored_choice import NAME, PICTURE, TABLE
from spr_or.utils.counted import counted
from spr_or.utils.files import write_json

_SHUFFLE = 0  # the seed of the folds: the same every time


class Choice(NamedTuple):
    """The candidates, by alpha and then from the largest lambda down, the place of the chosen one, its
    folder's name, and the criterion with the number of folds (0: none)."""

    found: list[Candidate]
    place: int
    folder: str
    criterion: str
    folds: int

    @property
    def best(self) -> Candidate:
        """The chosen one."""
        return self.found[self.place]


def choose(
    folder: Path,
    runs: Sequence[SolveRun],
    paths: Sequence[Sequence[PathPoint]],
    criterion: str,
    folds: int,
    jobs: int = 1,
) -> Choice:
    """Choose among the points of paths, and write the choice into ``folder``.

    Parameters
    ----------
    runs, paths : what was solved for each alpha, in ``folder`` or in a folder inside it
    criterion : "cv", by the rule of one standard error, "bic" or "ebic"
    folds : for "cv"; rows are shuffled, and the folds of a logistic target are stratified
    jobs : processes that work on folds

    M is derived in each fold, whatever it is in the path.  Raises ``ValueError`` for more folds than rows.
    """
    data = runs[0].data
    X, y = data.table.X, data.table.y
    grids = [[point.lam for point in points] for points in paths]
    models = [
        Model(
            data.loss, data.groups, list(data.entities.free), data.entities.settings,
            run.problem.alpha, data.intercept, data.standardise, run.gap, run.time_limit,
        )
        for run in runs
    ]  # fmt: skip
    count = 0
    parts = []
    if criterion == "cv":
        from sklearn.model_selection import KFold, StratifiedKFold

        count = folds
        labels = data.loss == "logistic"
        kind = StratifiedKFold if labels else KFold
        splitter = kind(folds, shuffle=True, random_state=_SHUFFLE)
        parts = list(splitter.split(X, y[:, 0] if labels else None))
    losses = fold_losses(X, y, data.table.weight, models, grids, parts, jobs)
    found = [
        candidate(model, point.certificate, held)
        for model, points, own in zip(models, paths, losses, strict=True)
        for point, held in zip(points, own.T, strict=True)
    ]
    places = [
        lambda_folder(run.folder, number).relative_to(folder).as_posix()
        for run, points in zip(runs, paths, strict=True)
        for number in range(1, len(points) + 1)
    ]
    place = chosen(found, criterion)
    choice = Choice(found, place, places[place], criterion, count)
    names = list(data.groups)
    write_choice(folder / TABLE, found, place, names, criterion)
    write_choice(folder / PICTURE, found, place, names, criterion)
    write_json(
        folder / NAME,
        {
            "criterion": criterion,
            "rule": RULES[0] if criterion == "cv" else None,
            "folds": count or None,
            "chosen": choice.folder,
            "lam": found[place].lam,
            "compared": [row(one, names) for one in found],
        },
    )
    return choice


def why(choice: Choice) -> str:
    """How a lambda was chosen, in a sentence."""
    best = choice.best
    count = int(best.certificate.indicators.sum())
    several = len({one.alpha for one in choice.found}) > 1
    alpha = f" and alpha {best.alpha:g}" if several else ""
    said = (
        f"chosen: lambda {best.lam:.5g}{alpha} with {counted(count, 'group')} ({choice.folder}), "
    )
    if choice.criterion != "cv":
        return said + f"the least {choice.criterion.upper()}"
    if choice.place == min(range(len(choice.found)), key=lambda i: choice.found[i].loss):
        return said + f"the least held-out loss of {choice.folds} folds"
    own = " for its alpha" if several else ""
    return said + (
        f"the largest{own} whose held-out loss, over {choice.folds} folds, is within one standard error "
        "of the least"
    )
