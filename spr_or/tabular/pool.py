"""The next best choices of groups, one after the other, and the proof that there are no others so good.

Each is the optimum of the problem in which the supports found before it do not count, with a certificate of
its own.  The bound of the last one holds for every choice that is not among those before it: if it lies
above (1 + within) times the best objective, the list is complete to that tolerance.  Where the best objective
vanishes, no share of it means anything: the others that vanish too are within every tolerance.

``pool.json`` and ``pool.csv`` stand beside the best result, ``pool-02``, ``pool-03``, ... hold the others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from spr_or.formulations.support_rules import NoSupportLeft
from spr_or.proof.certificate import ProofCertificate
from spr_or.tabular.folder import clear_pool
from spr_or.tabular.prepare import OwnData
from spr_or.tabular.results import kept_groups, write_result
from spr_or.tabular.solve_run import SolveRun
from spr_or.tabular.source import TableError
from spr_or.tabular.stored_result import StoredResult
from spr_or.utils.files import write_csv, write_text
from spr_or.utils.untrusted import UnreadableFile, read_json

_FINER = (
    0.1  # of what is missing, where a bound and an objective lie on both sides of the tolerance
)


class Pool(NamedTuple):
    """``rows`` of pool.json, best first; ``complete``: no other choice comes within ``within_pct`` of the
    best; ``others``: what all others are proven to cost at least, and ``others_pct``: how far that is above
    the best.  Both are None where there are no others, the second also where the best objective vanishes."""

    rows: list[dict[str, Any]]
    within_pct: float
    complete: bool
    others: float | None
    others_pct: float | None


def solve_pool(run: SolveRun, best: ProofCertificate, size: int, within_pct: float) -> Pool:
    """Up to ``size`` choices of groups within ``within_pct`` of ``best``, and the bound of all others.

    Each result is written as it is found.  Ctrl-C ends the pool with what is proven by then.
    """
    clear_pool(run.folder)
    target = best.objective + within_pct / 100 * abs(best.objective)
    kept = [names_of(run.data, best)]
    rows = [_row(1, run.data, best, best)]
    complete, others = False, None
    while not run.stop.asked:
        data = replace(run.data, rules=run.data.rules.model_copy(update={"forbidden": list(kept)}))
        number = len(rows) + 1
        problem = data.problem(run.problem.lam, run.problem.alpha, run.M or 1.0)
        asked = replace(run, data=data, problem=problem)
        try:
            found, bound = asked.solve(problem, best.weights)
        except NoSupportLeft:
            complete, others = True, None
            break
        inside = found.objective <= target or found.vanishes
        if found.trace and found.bound <= target and not inside:
            need = (found.objective - target) / abs(found.objective)
            asked = replace(asked, gap=max(1e-9, _FINER * need))
            found, bound = asked.solve(problem, found.weights)
            inside = found.objective <= target or found.vanishes
        if not found.trace:
            break
        place = run.folder / f"pool-{number:02d}"
        write_result(place, data, found, bound, asked.gap)
        others = found.bound
        complete = found.bound > target
        if complete or not inside or number > size:
            break
        rows.append(_row(number, data, found, best))
        kept.append(names_of(data, found))
        _write(run.folder, Pool(rows, within_pct, False, others, _above(others, best)))
    above = None if others is None else _above(others, best)
    pool = Pool(rows, within_pct, complete, others, above)
    _write(run.folder, pool)
    return pool


def names_of(data: OwnData, certificate: ProofCertificate) -> list[str]:
    """The groups in use, in the order of the data."""
    used = certificate.indicators.tolist()
    return [name for name, y in zip(data.groups, used, strict=True) if y == 1]


def pool_faults(
    folder: Path, results: Sequence[StoredResult], bounds: Sequence[float]
) -> list[str]:
    """What does not fit together in a pool: ``results`` of the folder and its `pool_folders`, and the
    ``bounds`` that a check of them proved."""
    try:
        stated = read_json(folder / "pool.json")
        rows, within = stated["members"], float(stated["within_pct"])
        complete, others = stated["complete"], stated["others_at_least_pct"]
        cost = stated.get("others_at_least")  # pools of earlier versions do not say
    except (UnreadableFile, KeyError, TypeError, ValueError) as error:
        return [f"{folder / 'pool.json'}: {error}"]
    faults = []
    best = results[0].outcome.objective
    earlier: list[list[str]] = []
    for number, result in enumerate(results, 1):
        plain = result.model.rules.model_copy(update={"forbidden": []})
        same = result.model.model_copy(update={"rules": plain}) == results[0].model
        if not same or (result.lam, result.alpha, result.data) != (
            results[0].lam, results[0].alpha, results[0].data,
        ):  # fmt: skip
            faults.append(f"pool-{number:02d} was solved for another problem")
        found = [sorted(names) for names in result.model.rules.forbidden]
        if found != earlier:
            faults.append(f"pool-{number:02d} leaves out other choices than those before it")
        earlier.append(sorted(result.kept))
    if not isinstance(rows, list) or not 1 <= len(rows) <= len(results):
        return [*faults, "pool.json lists other results than the folder holds"]
    for row, result in zip(rows, results, strict=False):
        objective = result.outcome.objective
        if sorted(row.get("kept", [])) != sorted(result.kept) or row.get("objective") != objective:
            faults.append(f"pool.json states another result than number {row.get('rank')}")
    if len(results) == len(rows):
        # Nothing beyond the list was solved: complete only where no choice is left, which the rules say.
        proven = complete is True and others is None and cost is None
    else:
        least = bounds[len(rows)]
        proven = least > best + within / 100 * abs(best) if complete else True
        if others is not None and not _pct(least, best) >= others - 1e-6:
            faults.append("pool.json states a larger distance of the others than is proven")
        if cost is not None and not least >= cost:
            faults.append("pool.json states a larger objective of the others than is proven")
    if complete and not proven:
        faults.append("pool.json says that the list is complete, and no bound proves it")
    return faults


def _row(
    rank: int, data: OwnData, certificate: ProofCertificate, best: ProofCertificate
) -> dict[str, Any]:
    return {
        "rank": rank,
        "objective": certificate.objective,
        "bound": certificate.bound,
        "above_best_pct": _above(certificate.objective, best),
        "status": certificate.status,
        "kept": [group.name for group in kept_groups(data, certificate)],
    }


def _above(value: float, best: ProofCertificate) -> float | None:
    """In per cent of the best objective; None where that vanishes."""
    return None if best.vanishes else _pct(value, best.objective)


def _pct(value: float, best: float) -> float:
    return 100 * (value - best) / abs(best) if best else math.inf


def _write(folder: Path, pool: Pool) -> None:
    content = {
        "within_pct": pool.within_pct, "complete": pool.complete,
        "others_at_least": pool.others, "others_at_least_pct": pool.others_pct, "members": pool.rows,
    }  # fmt: skip
    lines = [row | {"kept": json.dumps(row["kept"], ensure_ascii=False)} for row in pool.rows]
    write_csv(folder / "pool.csv", list(lines[0]), lines)
    write_text(folder / "pool.json", json.dumps(content, indent=2) + "\n")


def within(text: str) -> float:
    """What ``--within`` says, in percent.

    >>> within("1%"), within("0.5 %"), within("2")
    (1.0, 0.5, 2.0)
    """
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise TableError(f"--within must be a percentage such as 1%, got {text!r}")
    return value
