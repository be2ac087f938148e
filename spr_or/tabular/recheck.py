"""The check of a folder of `spr-or solve` from the data: proof, M, and every stored number.

Nothing in the folder is believed. The points in it (weights, the proof's points, the evidence for M)
are evaluated again; every number that is stated beside them has to be the one that follows.
Comparisons are written so that a NaN fails them.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.certificate import ProofCertificate, load
from spr_or.proof.exact import refuse
from spr_or.proof.losses import size_at_zero
from spr_or.proof.tree import silent
from spr_or.proof.weight_bounds import weight_bounds
from spr_or.tabular.choice_rule import criteria
from spr_or.tabular.folder import differences, lambda_folders, question, question_of
from spr_or.tabular.path_table import table_faults
from spr_or.tabular.prepare import OwnData
from spr_or.tabular.results import (
    group_rows,
    kept_groups,
    outcome,
    prepared,
    problem_of,
    weight_rows,
)
from spr_or.tabular.source import TableError
from spr_or.tabular.stored_result import StoredResult, read_result
from spr_or.utils.untrusted import UnreadableFile, check_regular, read_json, read_text

# Sums over the data come out differently with another number of threads: by this share of the loss
# at zero weights, or of a number itself.
_ROUNDING = 1e-9
_FOUND = 0.01  # of the gap asked for, that the one found here may be larger


class Subject(NamedTuple):
    """What was checked: data, model and the strength of the penalty; ``M`` from smallest to largest."""

    file: Path
    sha256: str
    targets: list[str]
    rows: int
    columns: int
    groups: int
    loss: str
    intercept: bool
    standardised: bool
    rules: list[str]
    lam: float
    alpha: float
    M: tuple[float, float]


class Recheck(NamedTuple):
    """What a check of a folder found; ``problems`` is empty where everything holds.

    ``result`` is what result.json states, ``criteria`` are BIC and EBIC of weights that hold, ``gap`` is
    that of the objective and the bound that were computed here.
    """

    objective: float
    bound: float
    m_proven: bool
    problems: list[str]
    result: StoredResult
    subject: Subject | None = None
    criteria: tuple[float, float] | None = None
    gap: float = math.inf

    @property
    def ok(self) -> bool:
        """Whether everything holds."""
        return not self.problems


def recheck(
    folder: Path,
    data_file: Path | None = None,
    exact: bool = False,
    tell: Callable[[int, int], None] = silent,
) -> Recheck:
    """Check a folder of `write_result` from the data file: certificate, M, and all that is stated.

    ``data_file``: where the data is now, if not where it was.  ``tell(done, of)`` hears how many records
    of the proof are done.  Raises `TableError` where there is
    nothing to check: no result or certificate, a file that cannot be read, no data, other data.
    """
    result = read_result(folder)
    return _recheck(folder, result, prepared(result, data_file), exact, tell)


def stored(
    folder: Path,
    data: OwnData,
    lam: float,
    alpha: float,
    M: float | None,
    gap: float,
    path: Sequence[float],
) -> ProofCertificate | None:
    """The certificate in ``folder`` if it answers just this question of a path to this gap, and its
    check holds; else None."""
    try:
        result = read_result(folder)
        asked = question(data, alpha, M, lam, path)
        if question_of(result) != asked or not _recheck(folder, result, data, exact=False).ok:
            return None
        certificate = read_certificate(folder / "certificate.json", problem_of(result, data))
    except ValueError:
        return None
    return certificate if certificate.gap <= gap else None


def _recheck(
    folder: Path,
    result: StoredResult,
    data: OwnData,
    exact: bool,
    tell: Callable[[int, int], None] = silent,
) -> Recheck:
    problems = _place_faults(folder, result)
    subject = None
    try:
        problem = problem_of(result, data)
        subject = _subject(data, problem)
        certificate = read_certificate(folder / "certificate.json", problem)
        if exact:
            _allow_exact(problem)
        found = certificate.check(exact, tell)
        problems += found.problems
        problems += _stated_faults(result, certificate)
        gap = found.gap if found.ok else certificate.gap
        problems += _gap_faults(result, certificate, gap)
        problems += _table_faults(folder, result, data, certificate)
        m_faults = _m_faults(result, data, problem) if result.M.auto else []
        proven = result.M.auto and not m_faults
        of_choice = criteria(certificate) if found.ok else None
        problems += m_faults
        return Recheck(
            found.objective, found.bound, proven, problems, result, subject, of_choice, found.gap
        )
    except TableError:
        raise
    except ValueError as error:
        return Recheck(math.nan, -math.inf, False, [*problems, str(error)], result, subject)


def path_faults(folder: Path, places: Sequence[Path], results: Sequence[StoredResult]) -> list[str]:
    """What does not fit together in the folder of a path: its tables, its lambdas, other results.

    ``places`` are the folders of the lambdas, and ``results`` what they hold.
    """
    first = question_of(results[0])
    problems = []
    for place, result in zip(places, results, strict=True):
        changed = differences(question_of(result), first)
        if changed:
            problems.append(
                f"{place.name} was solved for another problem than {places[0].name}: "
                f"{', '.join(changed)} differ"
            )
    stray = sorted(p.name for p in folder.glob("lambda-*") if p not in places)
    problems += [f"{name} is in the folder and holds no result of the path" for name in stray]
    return problems + table_faults(folder, places, results)


def _subject(data: OwnData, problem: SparseTrainingProblem) -> Subject:
    rows, columns = data.table.X.shape
    return Subject(
        data.path, data.sha256, data.table.targets, rows, columns, len(data.groups), data.loss,
        data.intercept, data.standardise, data.rules.spoken(), problem.lam, problem.alpha,
        (float(problem.M.min()), float(problem.M.max())),
    )  # fmt: skip


def read_certificate(file: Path, problem: SparseTrainingProblem) -> ProofCertificate:
    """A stored certificate; `TableError` where the file cannot be read, ``ValueError`` where it does
    not fit the problem."""
    try:
        read_json(file)  # finite numbers, no endless nesting, no pipe
        if file.with_suffix(".npz").exists():
            check_regular(file.with_suffix(".npz"))
    except UnreadableFile as error:
        raise TableError(str(error)) from None
    return load(file, problem)


def _allow_exact(problem: SparseTrainingProblem) -> None:
    try:
        refuse(problem)
    except ValueError as error:
        raise TableError(f"--exact: {error}") from None


def _place_faults(folder: Path, result: StoredResult) -> list[str]:
    """Whether a result stands where it belongs: alone, or at its place on its path."""
    if result.path is None:
        beside = lambda_folders(folder)
        if not beside:
            return []
        return [f"the folder holds this result and a path ({beside[0].name}, ...): two problems"]
    number = folder.absolute().name.removeprefix("lambda-")
    at = int(number) if number.isdecimal() and len(number) <= 6 else 0
    if 1 <= at <= len(result.path) and result.path[at - 1] == result.lam:
        return []
    return [f"lambda {result.lam:g} does not stand at this place of its path"]


def _stated_faults(result: StoredResult, certificate: ProofCertificate) -> list[str]:
    """The outcome that result.json states, against the certificate, which is checked by itself."""
    stated, actual = result.outcome.model_dump(), outcome(certificate)
    slack = _ROUNDING * size_at_zero(certificate.problem)
    problems = [
        f"result.json states {name} {stated[name]!r}, the certificate says {actual[name]!r}"
        for name in ("status", "objective", "bound", "nodes", "seconds")
        if stated[name] != actual[name]
    ]
    for name, value in (("gap", actual["gap"]), ("mean_loss", actual["mean_loss"])):
        if not _agree(stated[name], value, slack if name == "mean_loss" else 0.0):
            problems.append(f"result.json states {name} {stated[name]!r}, it is {value!r}")
    return problems


def _gap_faults(result: StoredResult, certificate: ProofCertificate, found: float) -> list[str]:
    """Whether "optimal" means the gap that was asked for: as stated, and as it is ``found`` here."""
    if certificate.status != "optimal":
        return []
    # Results of earlier versions do not say which gap was asked for: the default then.
    asked = 1e-4 if result.asked_gap is None else result.asked_gap
    for gap, slack in ((certificate.gap, _ROUNDING), (found, _FOUND)):
        if not gap <= asked * (1 + slack):
            return [
                f"the status is optimal, but the gap is {100 * gap:.4g} % and "
                f"{100 * asked:.4g} % were asked for"
            ]
    return []


def _agree(stated: float | None, value: float | None, slack: float) -> bool:
    if stated is None or value is None:
        return stated is value
    return math.isclose(stated, value, rel_tol=_ROUNDING, abs_tol=slack)


def _table_faults(
    folder: Path, result: StoredResult, data: OwnData, certificate: ProofCertificate
) -> list[str]:
    kept = kept_groups(data, certificate)
    problems = []
    if [group.name for group in kept] != result.kept:
        problems.append("result.json names other groups than the certificate keeps")
    if result.preparation is not None and not result.preparation.agrees(data.table.preparation):
        problems.append("result.json states another preparation than the data get")
    if data.table.classes != result.model.classes:
        problems.append("result.json names other classes than the data have")
    weights = weight_rows(data, certificate.weights)
    if not _same_table(folder / "weights.csv", weights, names=2):
        problems.append("weights.csv does not hold the weights of the certificate")
    if not _same_table(folder / "groups.csv", group_rows(kept), names=2):
        problems.append("groups.csv does not hold the groups that the certificate keeps")
    return problems


def _same_table(path: Path, expected: Sequence[Sequence[Any]], names: int) -> bool:
    """Whether a CSV file has these rows: its heads and first ``names`` columns as they are, the
    numbers to the last digits, and to those of the largest of them."""
    try:
        written = list(csv.reader(io.StringIO(read_text(path), newline="")))
        if [row[:names] for row in written] != [list(row[:names]) for row in expected]:
            return False
        if not written or written[0] != list(expected[0]):
            return False
        numbers = [[float(cell) for cell in row[names:]] for row in written[1:]]
    except (UnreadableFile, csv.Error, ValueError):
        return False
    wanted = [list(row[names:]) for row in expected[1:]]
    largest = max((abs(x) for row in wanted for x in row), default=0.0)
    return all(
        len(row) == len(want)
        and all(math.isclose(x, y, rel_tol=_ROUNDING, abs_tol=1e-12 * largest)
                for x, y in zip(row, want, strict=True))
        for row, want in zip(numbers, wanted, strict=True)
    )  # fmt: skip


def _m_faults(result: StoredResult, data: OwnData, problem: SparseTrainingProblem) -> list[str]:
    """Whether the evidence proves the M in use."""
    evidence = result.M.evidence
    if evidence is None:
        return ["M is said to be derived from the data, but there is no evidence for it"]
    size = problem.entities.n_parameters
    incumbent = _dense(evidence.incumbent, size, "incumbent")
    point = None if evidence.point is None else _dense(evidence.point, size, "point")
    near = None if point is None else point.numpy()
    bounds, M = weight_bounds(problem, incumbent.numpy(), near), problem.M.numpy()
    needed, loose = bounds[: len(M)], bounds[len(M) :]
    if not (loose <= problem.M_free).all():
        return [
            f"M = {problem.M_free:g} of the free columns is below {loose.max():g}, the least that its "
            "evidence proves"
        ]
    if bool((needed <= M).all()):
        return []
    i = int(np.flatnonzero(~(needed <= M))[0])
    return [
        f"M = {M[i]:g} of group {list(data.groups)[i]!r} is below {needed[i]:g}, the least "
        "that its evidence proves"
    ]


def _dense(entries: dict[str, float], size: int, name: str) -> Tensor:
    """A stored point; ``ValueError`` for an index that is none of ``size`` weights."""
    theta = torch.zeros(size, dtype=torch.float64)
    for key, value in entries.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 18 and int(key) < size):
            raise ValueError(
                f"result.json: the {name} of M's evidence names weight {key!r}; there are 0 to "
                f"{size - 1}"
            )
        theta[int(key)] = value
    return theta
