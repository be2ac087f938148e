"""The certificate of a branch and bound: it can be checked, saved and loaded without the solver."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spr_or.certified_solver.design import design_of
from spr_or.certified_solver.many_outputs import indicators_of, point_of
from spr_or.certified_solver.proof_exact import ExactBounds
from spr_or.certified_solver.proof_tree import Evaluator, FloatBounds, Proof, Record, check_tree
from spr_or.certified_solver.search import SearchProgress
from spr_or.formulations import bigm
from spr_or.formulations.losses import LOSSES
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.solvers.certificate import Certificate
from spr_or.utils.files import write_aside

_FORMAT = "spr-or branch-and-bound certificate 3"
# A proof with more numbers than this keeps them in an .npz file beside the JSON.
_INLINE = 200_000


def rounding(problem: SparseTrainingProblem) -> float:
    """The absolute allowance for float64: 1e-10 of the loss at zero."""
    q = problem.n_outputs
    zero = torch.zeros((problem.n, q), dtype=torch.float64)
    return 1e-10 * max(1e-12, float(LOSSES[problem.loss].value(zero, problem.y).mean()))


class ProofCheck(NamedTuple):
    """The outcome of a check: whether everything holds, the numbers found, and what was wrong."""

    ok: bool
    objective: float
    bound: float
    problems: list[str]


@dataclass(frozen=True, eq=False)
class ProofCertificate(Certificate):
    """A `Certificate` that carries its proof.

    Attributes beyond those of `Certificate`: ``problem``; ``proof``, the tree; ``nodes``, relaxations
    solved; ``trace``, a `SearchProgress` after every round.
    """

    problem: SparseTrainingProblem
    proof: Proof
    nodes: int
    trace: tuple[SearchProgress, ...]

    def check(self, exact: bool = False) -> ProofCheck:
        """Evaluate the incumbent and every bound of the tree again, from the problem's data.

        In float64 with the allowance `rounding`; with ``exact`` in rational arithmetic and no allowance
        (squared loss, small problems: ``ValueError`` otherwise).  Nothing the search computed is
        trusted but the points it left.
        """
        problems = list(_incumbent_faults(self))
        objective = _objective(self)
        allowance = rounding(self.problem)
        if not abs(objective - self.objective) <= allowance:
            problems.append(f"the objective is {objective!r}, not {self.objective!r} as stated")
        design = design_of(self.problem)
        evaluate: Evaluator
        if exact:
            evaluate, allowance = ExactBounds(self.problem), 0
        else:
            evaluate = FloatBounds(design, self.proof, allowance)
        bound, found = check_tree(self.proof, design.shape, evaluate)
        problems += found
        # A fraction may be less than any float.
        proven = float(bound) if bound > -1e300 else -math.inf
        if not self.bound <= bound + allowance and not found:
            problems.append(f"the tree proves the bound {proven!r}, not {self.bound!r} as stated")
        return ProofCheck(not problems, objective, min(proven, objective), problems)

    def save(self, path: str | Path) -> None:
        """Write JSON; a large proof keeps its numbers in an .npz file of the same name beside it."""
        path = Path(path)
        arrays = _pack(self.proof) if self.problem.n_outputs == 1 else _pack_points(self)
        content: dict[str, Any] = {
            "format": _FORMAT,
            "problem": _fingerprint(self.problem),
            "result": {name: getattr(self, name) for name in _PLAIN},
            "weights": self.weights.tolist(),
            "indicators": self.indicators.tolist(),
            "trace": [list(progress) for progress in self.trace],
        }
        beside = path.with_suffix(".npz")
        if sum(array.size for array in arrays.values()) > _INLINE:
            write_aside(beside, lambda aside: np.savez_compressed(aside, **arrays))  # type: ignore[arg-type]
            content["proof_file"] = beside.name
        else:
            content["proof"] = {name: array.tolist() for name, array in arrays.items()}
        write_aside(path, lambda aside: aside.write_text(json.dumps(content), encoding="utf-8"))


_PLAIN = (
    "formulation", "integrality", "solver", "version", "status", "objective", "bound", "seconds",
    "nodes",
)  # fmt: skip


def load(path: str | Path, problem: SparseTrainingProblem) -> ProofCertificate:
    """Read a certificate for ``problem``; `ProofCertificate.check` then judges it.

    Raises ``ValueError`` where the file is no certificate or belongs to other data.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r}, not {_FORMAT!r}")
        expected = _fingerprint(problem)
        if content["problem"] != expected:
            changed = [k for k, v in expected.items() if content["problem"].get(k) != v]
            raise ValueError(f"made for another problem: {', '.join(changed)} differ")
        if "proof" in content:
            arrays = {k: np.asarray(v) for k, v in content["proof"].items()}
        else:
            with np.load(path.parent / Path(content["proof_file"]).name) as stored:
                arrays = dict(stored)
        weights = torch.tensor(content["weights"], dtype=torch.float64)
        indicators = torch.tensor(content["indicators"], dtype=torch.float64)
        rows = problem.entities.rows(weights)
        return ProofCertificate(
            **content["result"], weights=weights, indicators=indicators,
            m_active=(rows.abs().amax(-1) >= problem.M * (1 - 1e-6)) & (indicators > 0),
            problem=problem, proof=_unpack(arrays, problem),
            trace=tuple(SearchProgress(*row) for row in content["trace"]),
        )  # fmt: skip
    except (KeyError, TypeError, IndexError, OSError, json.JSONDecodeError, RuntimeError) as error:
        raise ValueError(f"{path} is not a certificate: {type(error).__name__} {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _incumbent_faults(certificate: ProofCertificate) -> list[str]:
    problem, y = certificate.problem, certificate.indicators
    faults = []
    if y.shape != (len(problem.entities),) or not bool(((y == 0) | (y == 1)).all()):
        return ["the indicators are not 0 or 1, one an entity"]
    if certificate.weights.shape != (problem.entities.n_parameters,):
        return ["the weights have the wrong shape"]
    peaks = problem.entities.rows(certificate.weights).abs().amax(-1)
    if not bool((peaks <= problem.M * y).all()):
        i = int((peaks > problem.M * y).nonzero()[0])
        faults.append(f"entity {i} has a weight of {peaks[i]:g} outside M y")
    return faults


def _objective(certificate: ProofCertificate) -> float:
    problem = certificate.problem
    rows = problem.entities.rows(certificate.weights)
    penalty = bigm.penalty(rows, certificate.indicators, problem.alpha)
    return float(problem.objective(certificate.weights, penalty))


def _fingerprint(problem: SparseTrainingProblem) -> dict[str, Any]:
    """What identifies a problem: its numbers as SHA-256, its settings in clear."""
    return {
        "data_sha256": _digest(problem.X, problem.y),
        "settings_sha256": _digest(problem.M, problem.u, problem.entities.index),
        "loss": problem.loss,
        "lam": problem.lam,
        "alpha": problem.alpha,
        "entities": len(problem.entities),
        "samples": problem.n,
    }


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _pack(proof: Proof) -> dict[str, np.ndarray]:
    """Ragged lists as flat arrays with lengths."""
    records = proof.records
    packed: dict[str, np.ndarray] = {
        name: np.array([getattr(r, name) for r in records], dtype=np.int64)
        for name in ("parent", "value", "branch")
    }
    packed["width"] = np.array(records[0].W.shape[1:] if records else (0, 0), dtype=np.int64)
    packed["split"] = np.array([r.d is not None for r in records])
    for name in ("entities", "zeros", "ones"):
        tensors = [getattr(r, name) for r in records]
        packed[name] = torch.cat(tensors).numpy() if tensors else np.empty(0, np.int64)
        packed[f"{name}_length"] = np.array([len(t) for t in tensors], dtype=np.int64)
    packed["W"] = torch.cat([r.W.flatten() for r in records]).numpy() if records else np.empty(0)
    clusters = [r.clusters for r in records if r.clusters is not None]
    shapes = [(0, 0) if r.clusters is None else tuple(r.clusters.shape) for r in records]
    packed["clusters_shape"] = np.array(shapes, dtype=np.int64).reshape(-1, 2)
    packed["clusters"] = (
        torch.cat([c.flatten() for c in clusters]).numpy() if clusters else np.empty(0, np.int64)
    )
    moved = [r.d.flatten() for r in records if r.d is not None]
    packed["d"] = torch.cat(moved).numpy() if moved else np.empty(0)
    return packed


def _pack_points(certificate: ProofCertificate) -> dict[str, np.ndarray]:
    """As `_pack`, with the indicators y behind the points of moved curvature instead of W.

    W has k q numbers an entity, y one; `many_outputs.point_of` gives W back to rounding, of which a
    tangent bound loses the square.
    """
    records = certificate.proof.records
    split = [r for r in records if r.d is not None]
    plain = [r if r.d is None else replace(r, W=r.W[:0]) for r in records]
    packed = _pack(Proof(plain))
    if split:
        design = design_of(certificate.problem).with_moments()
        y = [indicators_of(design, r.entities, r.W, r.d) for r in split if r.d is not None]
        packed["y"] = torch.cat(y).numpy()
    return packed


def _unpack(packed: dict[str, np.ndarray], problem: SparseTrainingProblem) -> Proof:
    k, q = (int(x) for x in packed["width"])
    split, lengths = packed["split"].tolist(), packed["entities_length"].tolist()

    def ragged(name: str) -> tuple[Tensor, ...]:
        flat = torch.from_numpy(np.asarray(packed[name], dtype=np.int64))
        return flat.split(packed[f"{name}_length"].tolist())

    W = torch.from_numpy(np.asarray(packed["W"], dtype=np.float64))
    d = torch.from_numpy(np.asarray(packed["d"], dtype=np.float64))
    shapes = packed["clusters_shape"].tolist()
    # Of each record: the shape of d, blocks of clusters, blocks of entities or a diagonal.
    wide = [
        (m, s * k, s * k) if m else (n, k, k) if q == 1 else (n, k)
        for n, (m, s) in zip(lengths, shapes, strict=True)
    ]
    wide = [shape for shape, has in zip(wide, split, strict=True) if has]
    pieces = d.split([math.prod(shape) for shape in wide])
    moved = [piece.view(shape) for piece, shape in zip(pieces, wide, strict=True)]
    members = torch.from_numpy(np.asarray(packed["clusters"], dtype=np.int64))
    clusters = [
        piece.view(m, s) if m else None
        for piece, (m, s) in zip(members.split([m * s for m, s in shapes]), shapes, strict=True)
    ]
    if "y" in packed:
        stored = [0 if has else n for n, has in zip(lengths, split, strict=True)]
        rows = list(W.view(-1, k, q).split(stored))
        design = design_of(problem).with_moments()
        entities = ragged("entities")
        y = torch.from_numpy(np.asarray(packed["y"], dtype=np.float64)).split(list(map(len, moved)))
        places = [i for i, has in enumerate(split) if has]
        for i, at, near in zip(places, moved, y, strict=True):
            rows[i] = point_of(design, entities[i], at, near)
    else:
        rows = list(W.view(-1, k, q).split(lengths))
    following = iter(moved)
    columns = zip(
        packed["parent"].tolist(), packed["value"].tolist(), ragged("entities"), rows, split,
        ragged("zeros"), ragged("ones"), packed["branch"].tolist(), clusters, strict=True,
    )  # fmt: skip
    return Proof(
        [
            Record(
                parent,
                value,
                entities,
                w,
                next(following) if has else None,
                zeros,
                ones,
                branch,
                cluster,
            )
            for parent, value, entities, w, has, zeros, ones, branch, cluster in columns
        ]
    )
