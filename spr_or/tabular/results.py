"""What `spr-or solve` leaves in a folder, and the check of such a folder from the data alone.

``result.json``       settings, groups, M and the evidence for it, the outcome
``certificate.json``  the proof (with certificate.npz where it is large)
``weights.csv``       a row for each column of the data
``groups.csv``        a row for each group that is kept
``path.csv``, ``path.json``  of a path over lambda: a row for each lambda
"""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spr_or.certified_solver.derived_m import AutomaticBound, weight_bounds
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.certificate import ProofCertificate, load
from spr_or.proof.exact import refuse
from spr_or.tabular.prepare import OwnData, prepare
from spr_or.tabular.read import TableError
from spr_or.utils.files import write_aside, write_json

FORMAT = "spr-or solve 1"


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
    folder: Path, data: OwnData, certificate: ProofCertificate, bound: AutomaticBound | None
) -> None:
    """Fill ``folder`` (made if need be); ``bound`` None: M was given by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    problem = certificate.problem
    kept = kept_groups(data, certificate)
    evidence = None
    if bound is not None:
        point = None if bound.point is None else _sparse(bound.point)
        evidence = {"incumbent": _sparse(bound.incumbent), "point": point}
    certificate.save(folder / "certificate.json")
    _write_text(folder / "weights.csv", _weights_csv(data, certificate.weights))
    _write_text(folder / "groups.csv", _groups_csv(kept))
    write_json(
        folder / "result.json",
        {
            "format": FORMAT,
            "data": {"file": str(data.path.resolve()), "sha256": data.sha256},
            "model": {
                "target": data.target,
                "groups": data.table.labels,
                "loss": data.loss,
                "classes": data.table.classes,
                "intercept": data.intercept,
                "standardise": data.standardise,
            },
            "lam": problem.lam,
            "alpha": problem.alpha,
            "M": {"auto": evidence is not None, "value": problem.M.tolist(), "evidence": evidence},
            "outcome": outcome(certificate),
            "kept": [group.name for group in kept],
        },
    )


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


class Recheck(NamedTuple):
    """What a check of a folder found; ``problems`` is empty where everything holds."""

    objective: float
    bound: float
    m_proven: bool
    problems: list[str]

    @property
    def ok(self) -> bool:
        """Whether everything holds."""
        return not self.problems


def read_problem(folder: Path, data_file: Path | None = None) -> SparseTrainingProblem:
    """The problem that `write_result` describes in ``folder``, from its data file.

    Raises `TableError` where the folder has no result or the data are not those that were solved.
    """
    content = _read_result(folder)
    try:
        return _problem(content, _prepared(content, data_file))
    except TableError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        detail = f"{type(error).__name__} {error}"
        raise TableError(f"{folder / 'result.json'} is damaged: {detail}") from None


def recheck(folder: Path, data_file: Path | None = None, exact: bool = False) -> Recheck:
    """Check a folder of `write_result` from the data file alone: certificate, M, tables.

    ``data_file``: where the data is now, if not where it was.  Raises `TableError` where there is
    nothing to check: no result, no data, other data.
    """
    content = _read_result(folder)
    try:
        data = _prepared(content, data_file)
        stated, M = content["outcome"], content["M"]
        problem = _problem(content, data)
        certificate = load(folder / "certificate.json", problem)
        if exact:
            _allow_exact(problem)
        found = certificate.check(exact)
        problems = list(found.problems)
        for name in ("status", "objective", "bound", "nodes"):
            if stated[name] != outcome(certificate)[name]:
                problems.append(
                    f"result.json states {name} {stated[name]!r}, the certificate does not"
                )
        if [group.name for group in kept_groups(data, certificate)] != content["kept"]:
            problems.append("result.json names other groups than the certificate keeps")
        problems += _weights_faults(folder / "weights.csv", data, certificate.weights)
        if M["auto"]:
            size = problem.entities.n_parameters
            point = M["evidence"]["point"]
            needed = weight_bounds(
                problem, _dense(M["evidence"]["incumbent"], size),
                None if point is None else _dense(point, size),
            )  # fmt: skip
            short = (needed > problem.M).nonzero().flatten().tolist()
            if short:
                name = list(data.groups)[short[0]]
                problems.append(
                    f"M = {problem.M[short[0]]:g} of group {name!r} is below {needed[short[0]]:g}, "
                    "the least that its evidence proves"
                )
        return Recheck(found.objective, found.bound, bool(M["auto"]), problems)
    except TableError:
        raise
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        detail = f"{type(error).__name__} {error}"
        return Recheck(math.nan, -math.inf, False, [f"result.json is damaged: {detail}"])
    except ValueError as error:
        return Recheck(math.nan, -math.inf, False, [str(error)])


def _allow_exact(problem: SparseTrainingProblem) -> None:
    try:
        refuse(problem)
    except ValueError as error:
        raise TableError(f"--exact: {error}") from None


def stored(
    folder: Path, data: OwnData, lam: float, alpha: float, M: float | None, gap: float
) -> ProofCertificate | None:
    """The certificate in ``folder`` if it answers just this question to this gap, else None."""
    try:
        content = _read_result(folder)
        same = (
            content["data"]["sha256"] == data.sha256
            and content["M"]["auto"] == (M is None)
            and (M is None or content["M"]["value"] == [M] * len(data.groups))
            and (content["lam"], content["alpha"]) == (lam, alpha)
        )
        if not same:
            return None
        # load compares data, groups and M with those of the file, number by number.
        certificate = load(
            folder / "certificate.json", data.problem(lam, alpha, content["M"]["value"])
        )
    except (ValueError, KeyError, TypeError):
        return None
    return certificate if certificate.gap <= gap else None


def _read_result(folder: Path) -> dict[str, Any]:
    path = folder / "result.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TableError(f"{path}: {error.strerror or error}") from None
    except ValueError:
        raise TableError(f"{path}: not JSON") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise TableError(f"{path}: not a result of spr-or solve")
    return content


def _prepared(content: dict[str, Any], data_file: Path | None) -> OwnData:
    """The data of a result, from where they are now; `TableError` if they are others."""
    data = prepare(Path(data_file or content["data"]["file"]), *_model(content))
    if data.sha256 != content["data"]["sha256"]:
        raise TableError(f"{data.path}: the file is not the one that was solved (SHA-256 differs)")
    return data


def _problem(content: dict[str, Any], data: OwnData) -> SparseTrainingProblem:
    return data.problem(content["lam"], content["alpha"], content["M"]["value"])


def _model(content: dict[str, Any]) -> tuple[Any, ...]:
    model = content["model"]
    return tuple(model[name] for name in ("target", "groups", "loss", "intercept", "standardise"))


def _sparse(theta: Tensor) -> dict[str, float]:
    return {str(j): float(theta[j]) for j in theta.nonzero().flatten().tolist()}


def _dense(entries: dict[str, float], size: int) -> Tensor:
    theta = torch.zeros(size, dtype=torch.float64)
    for j, value in entries.items():
        theta[int(j)] = value
    return theta


def _weight_rows(data: OwnData, theta: Tensor) -> list[list[Any]]:
    W, intercept = data.weights(theta)
    table = data.table
    rows = [["(intercept)", "", *map(float, intercept)]] if data.intercept else []
    parts = zip(table.columns, table.labels, W, strict=True)
    return rows + [[name, label, *map(float, row)] for name, label, row in parts]


def _weights_csv(data: OwnData, theta: Tensor) -> str:
    targets = data.table.targets
    heads = ["weight"] if len(targets) == 1 else [f"weight {name}" for name in targets]
    return _csv_text([["column", "group", *heads], *_weight_rows(data, theta)])


def _weights_faults(path: Path, data: OwnData, theta: Tensor) -> list[str]:
    """Whether weights.csv says what the certificate's weights are, to the last digits."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            written = list(csv.reader(file))[1:]
        expected = _weight_rows(data, theta)
        names = [row[:2] for row in written] == [row[:2] for row in expected]
        values = np.array([row[2:] for row in written], dtype=np.float64)
        wanted = np.array([row[2:] for row in expected], dtype=np.float64)
        if names and np.allclose(values, wanted, rtol=1e-9, atol=1e-12 * np.abs(wanted).max()):
            return []
    except (OSError, ValueError):
        pass
    return ["weights.csv does not hold the weights of the certificate"]


def _groups_csv(kept: list[KeptGroup]) -> str:
    heads = ["group", "columns", "norm", "largest_weight_over_M"]
    rows = [[g.name, " ".join(g.columns), g.norm, g.share_of_M] for g in kept]
    return _csv_text([heads, *rows])


def _csv_text(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _write_text(path: Path, text: str) -> None:
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))
