"""What was asked and what is proven, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spr_or.proof.certificate import ProofCertificate
from spr_or.tabular.pool import Pool
from spr_or.tabular.prepare import OwnData
from spr_or.utils.counted import counted


def what_was_asked(data: OwnData, alpha: float, lam: float | None) -> str:
    """Data, model and penalty; ``lam`` None: a path."""
    n, p = data.table.X.shape
    targets = ", ".join(data.table.targets)
    strength = f"α = {alpha:g}" if lam is None else f"λ = {lam:.6g} and α = {alpha:g}"
    asked = (
        f"Which of {counted(len(data.groups), 'group')} of columns ({counted(p, 'column')} in all) "
        f"explain {targets} in the {counted(n, 'row')} of {data.path.name}? The {data.loss} loss plus a "
        f"price for each group used and for the size of its weights is minimised, with {strength}, "
        f"{'with' if data.intercept else 'without'} an intercept."
    )
    if data.standardise:
        both = "Columns and target" if data.loss == "squared" else "Columns"
        by = "standard deviation" if data.intercept else "root mean square"
        asked += f" {both} were divided by their {by} before."
    rules = data.rules.spoken()
    return asked + (f" Asked for as well: {'; '.join(rules)}." if rules else "")


def what_is_proven(certificate: ProofCertificate, m_proven: bool) -> str:
    """Objective, bound, gap and M of a certificate, and what they mean."""
    objective, bound, gap = certificate.objective, certificate.bound, certificate.gap
    if m_proven:
        M = (
            "No limit on the weights is assumed: the bound M that the proof uses was derived from the data "
            "and excludes no optimum."
        )
    else:
        low, high = float(certificate.problem.M.min()), float(certificate.problem.M.max())
        size = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
        M = f"This holds for weights of at most M = {size} in size, which was given."
        if bool(certificate.m_active.any()):
            M += " The solution touches M: with a larger one there may be a better model."
    found = f"The model shown has the objective {objective:.8g}"
    if certificate.vanishes:
        said = f"{found}, which is zero but for rounding, and no choice of groups costs less than zero."
    elif certificate.status == "optimal":
        said = (
            f"No other choice of groups, with any weights, has an objective below {bound:.8g}: this is "
            f"proven. {found}, so that {_at_most(gap)} could be gained."
        )
    else:
        said = (
            f"The search ended before it was done ({certificate.status.replace('_', ' ')}). {found}, and "
            f"no choice of groups is below {bound:.8g}: a better one may exist, by "
            f"{_at_most(gap)}."
        )
    return f"{said} {M}"


def what_others_reach(pool: Pool) -> str:
    """What a pool says of the choices of groups that are not in it."""
    if pool.complete:
        said = f"no other choice of groups comes within {pool.within_pct:g} % of the best, which is proven"
    else:
        said = f"there may be other choices of groups within {pool.within_pct:g} % of the best"
    if pool.others_pct is not None and pool.others_pct >= 0:
        said += f"; all others are at least {pool.others_pct:.4g} % above it"
    elif pool.others is not None:
        said += f"; all others cost at least {pool.others:.4g}"
    return said


def above_the_best(row: Mapping[str, Any]) -> str:
    """How far a choice of a pool is above the best, which has nothing to be a share of where it vanishes.

    >>> above_the_best({"above_best_pct": 0.25}), above_the_best({"above_best_pct": None})
    ('0.25 %', '-')
    """
    share = row["above_best_pct"]
    return "-" if share is None else f"{share:.3g} %"


def percent(gap: float) -> str:
    """A relative gap in per cent, to digits that mean something.

    >>> percent(0.0712), percent(3e-12), percent(0.0)
    ('7.12 %', 'less than 0.0001 %', '0 %')
    """
    if 0 < gap < 1e-6:
        return "less than 0.0001 %"
    return f"{100 * gap:.3g} %"


def _at_most(gap: float) -> str:
    shown = percent(gap)
    return shown if shown.startswith("less") else f"at most {shown}"
