"""The picture of a choice of lambda. Matplotlib is imported here; import where it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spr_or.tabular.choice import Candidate
from spr_or.tabular.solve_figures import groups_above, save
from spr_or.utils.palette import BLUE, RED


def choice_over_lambda(
    found: Sequence[Candidate], place: int, groups: Sequence[str], criterion: str, path: Path
) -> None:
    """Which groups are kept over lambda, and below it what was compared, with the chosen lambda marked.

    ``found`` are the candidates of one alpha, largest lambda first; ``groups`` the names, in the order of the
    problem.
    """
    figure, (top, bottom) = groups_above(found, groups)
    lams = [one.lam for one in found]
    if criterion == "cv":
        mean, spread = [one.loss for one in found], [one.spread for one in found]
        bottom.errorbar(
            lams, mean, yerr=spread, color=RED, marker="o", markersize=4, capsize=2,
            label="mean of the folds, with its standard error",
        )  # fmt: skip
        bottom.set_ylabel("held-out loss")
    else:
        values = [getattr(one, criterion) for one in found]
        bottom.plot(lams, values, color=RED, marker="o", markersize=4, label=criterion.upper())
        bottom.set_ylabel(criterion.upper())
    for axis in (top, bottom):
        axis.axvline(found[place].lam, color=BLUE, linestyle="--", linewidth=1, zorder=0)
    bottom.axvline(found[place].lam, color=BLUE, linestyle="--", linewidth=1, label="chosen")
    bottom.legend(frameon=False)
    top.set_title(f"the choice of λ, α = {found[place].alpha:g}", fontsize=10, pad=18)
    save(figure, path)
