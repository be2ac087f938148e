"""What `spr-or solve` leaves in a folder, and how it is read; `spr_or.tabular.recheck` checks it.

``result.json``       settings, groups, M and the evidence for it, the outcome
``certificate.json``  the proof (with certificate.npz where it is large)
``weights.csv``       a row for each column of the data
``groups.csv``        a row for each group that is kept
``path.csv``, ``path.json``  of a path over lambda: a row for each lambda
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from spr_or.certified_solver.derived_m import AutomaticBound
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.certificate import ProofCertificate
from spr_or.tabular.preparation import Reading
from spr_or.tabular.prepare import OwnData, prepare
from spr_or.tabular.source import TableError
from spr_or.tabular.stored_result import FORMAT, StoredResult, read_result
from spr_or.utils.files import file_hash, write_aside, write_json


class KeptGroup(NamedTuple):
    """A group in use: its columns, the norm of its weights, and its largest weight as a share of M."""

    name: str
    columns: list[str]
    norm: float
    share_of_M: float


def kept_groups(data: OwnData, certificate: ProofCertificate) -> list[KeptGroup]:
    """The groups in use, largest norm first; weights as in the problem (after standardising)."""
    problem = certificate.problem
    rows = problem.entities.rows(certificate.weights)
    names = data.table.columns
    kept = [
        KeptGroup(label, [names[j] for j in columns], float(row.norm()), float(row.abs().max() / M))
        for (label, columns), row, M, y in zip(
            data.groups.items(), rows, problem.M, certificate.indicators.tolist(), strict=True
        )
        if y == 1
    ]
    return sorted(kept, key=lambda group: -group.norm)


def write_result(
    folder: Path,
    data: OwnData,
    certificate: ProofCertificate,
    bound: AutomaticBound | None,
    asked_gap: float | None = None,
    path: Sequence[float] | None = None,
) -> None:
    """Fill ``folder`` (made if need be); ``bound`` None: M was given by hand.

    ``asked_gap``: what the search was to reach; ``path``: all lambdas, if this one belongs to a path.
    A result that stood there goes first, and the new one comes last: a folder whose writing was cut
    off has no result, and never a mixture of two.
    """
    folder.mkdir(parents=True, exist_ok=True)
    problem = certificate.problem
    kept = kept_groups(data, certificate)
    evidence = None
    if bound is not None:
        point = None if bound.point is None else _sparse(bound.point)
        evidence = {"incumbent": _sparse(bound.incumbent), "point": point}
    for old in ("result.json", "certificate.json", "certificate.npz"):
        (folder / old).unlink(missing_ok=True)
    certificate.save(folder / "certificate.json")
    _write_text(folder / "weights.csv", csv_text(weight_rows(data, certificate.weights)))
    _write_text(folder / "groups.csv", csv_text(group_rows(kept)))
    content = {
        "format": FORMAT,
        "data": {"file": str(data.path.resolve()), "sha256": data.sha256},
        "model": {
            "target": data.target,
            "groups": data.table.labels,
            "loss": data.loss,
            "classes": data.table.classes,
            "intercept": data.intercept,
            "standardise": data.standardise,
            "scale_target": data.scale_target,
            "rules": data.rules.model_dump(),
        },
        "lam": problem.lam,
        "alpha": problem.alpha,
        "M": {
            "auto": evidence is not None,
            "value": problem.M.tolist(),
            "evidence": evidence,
            "free": problem.M_free if len(problem.entities.free) else None,
        },
        "outcome": outcome(certificate),
        "kept": [group.name for group in kept],
        "preparation": data.table.preparation.content(),
    }
    if asked_gap is not None:
        content["asked_gap"] = asked_gap
    if path is not None:
        content["path"] = list(path)
    write_json(folder / "result.json", content)


def outcome(certificate: ProofCertificate) -> dict[str, Any]:
    """The numbers of a certificate, ready for JSON (null where there is none)."""
    return {
        "status": certificate.status,
        "objective": certificate.objective,
        "bound": certificate.bound if math.isfinite(certificate.bound) else None,
        "gap": certificate.gap if math.isfinite(certificate.gap) else None,
        "nodes": certificate.nodes,
        "seconds": certificate.seconds,
        "mean_loss": float(certificate.problem.loss_value(certificate.weights)),
    }


def weight_rows(data: OwnData, theta: Tensor) -> list[list[Any]]:
    """The rows of weights.csv, its heads first: weights of the columns as they are in the file."""
    W, intercept = data.weights(theta)
    table = data.table
    targets = table.targets
    heads = ["weight"] if len(targets) == 1 else [f"weight {name}" for name in targets]
    rows = [["(intercept)", "", *map(float, intercept)]] if data.intercept else []
    parts = zip(table.columns, table.labels, W, strict=True)
    return [
        ["column", "group", *heads],
        *rows,
        *([name, label, *map(float, row)] for name, label, row in parts),
    ]


def group_rows(kept: Sequence[KeptGroup]) -> list[list[Any]]:
    """The rows of groups.csv, its heads first."""
    heads = ["group", "columns", "norm", "largest_weight_over_M"]
    return [heads, *([g.name, " ".join(g.columns), g.norm, g.share_of_M] for g in kept)]


def csv_text(rows: Sequence[Sequence[Any]]) -> str:
    """Rows as the text of a CSV file, in which names with any kind of line break are quoted."""
    lines = []
    for row in rows:
        line = io.StringIO()
        csv.writer(line, lineterminator="\r\n").writerow(row)
        lines.append(line.getvalue().removesuffix("\r\n") + "\n")
    return "".join(lines)


def prepared(result: StoredResult, data_file: Path | None) -> OwnData:
    """The data of a result, from where they are now; `TableError` if they are others."""
    model, done = result.model, result.preparation
    path = Path(data_file or result.data.file)
    if path.is_file() and file_hash(path) != result.data.sha256:
        raise TableError(f"{path}: the file is not the one that was solved (SHA-256 differs)")
    return prepare(
        path, model.target, model.groups, model.loss, model.intercept, model.standardise,
        Reading(as_is=True) if done is None else done.asked,
        None if done is None else done.kept_equal, model.rules, model.scale_target,
    )  # fmt: skip


def problem_of(result: StoredResult, data: OwnData) -> SparseTrainingProblem:
    """The problem of a result on its data; raises ``ValueError`` for settings that are none."""
    return data.problem(result.lam, result.alpha, result.M.value, result.M.free)


def read_problem(folder: Path, data_file: Path | None = None) -> SparseTrainingProblem:
    """The problem that `write_result` describes in ``folder``, from its data file.

    Raises `TableError` where the folder has no result or the data are not those that were solved.
    """
    result = read_result(folder)
    data = prepared(result, data_file)
    try:
        return problem_of(result, data)
    except ValueError as error:
        raise TableError(f"{folder / 'result.json'} is damaged: {error}") from None


def _sparse(theta: Tensor) -> dict[str, float]:
    return {str(j): float(theta[j]) for j in theta.nonzero().flatten().tolist()}


def _write_text(path: Path, text: str) -> None:
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))
