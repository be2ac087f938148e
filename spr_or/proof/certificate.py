"""The certificate of the certified solver: a solution with its proof, saved, loaded and checked."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spr_or.formulations.certificate import Certificate, relative_gap
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.check import ProofCheck, Stated, check, vanishes
from spr_or.proof.data import data_of
from spr_or.proof.storage import pack, unpack
from spr_or.proof.tree import Proof, silent
from spr_or.utils.files import write_aside
from spr_or.utils.untrusted import read_arrays, read_text

FORMAT = "spr-or branch-and-bound certificate 3"
# A proof with more numbers than this keeps them in an .npz file beside the JSON.
_INLINE = 200_000
_PLAIN = (
    "formulation", "integrality", "solver", "version", "status", "objective", "bound", "seconds",
    "nodes",
)  # fmt: skip


class SearchProgress(NamedTuple):
    """Where a search stands: seconds, best objective, bound, nodes evaluated and nodes open."""

    seconds: float
    objective: float
    bound: float
    nodes: int
    open: int

    @property
    def gap(self) -> float:
        """As of a `Certificate`."""
        return relative_gap(self.objective, self.bound)


@dataclass(frozen=True, eq=False, repr=False)
class ProofCertificate(Certificate):
    """A `Certificate` that carries its proof.

    Attributes beyond those of `Certificate`: ``problem``; ``proof``, the tree; ``nodes``, relaxations
    solved; ``trace``, a `SearchProgress` after every round.
    """

    problem: SparseTrainingProblem
    proof: Proof
    nodes: int
    trace: tuple[SearchProgress, ...]

    def check(self, exact: bool = False, tell: Callable[[int, int], None] = silent) -> ProofCheck:
        """Evaluate the solution and every bound of the tree again, from the problem's data: see
        `spr_or.proof.check`.

        In float64 with every rounding enclosed, or with ``exact`` in rational arithmetic (squared loss,
        small problems: ``ValueError`` otherwise).  Nothing the search computed is trusted but the points
        it left.  ``tell(done, of)`` hears how many records of the tree are done.
        """
        return check(self.problem, self._stated, exact, tell)

    @property
    def _stated(self) -> Stated:
        return Stated(
            self.weights.numpy(), self.indicators.numpy(), self.objective, self.bound,
            self.proof.records,
        )  # fmt: skip

    @cached_property
    def vanishes(self) -> bool:
        """Whether the objective is zero but for rounding, as `spr_or.proof.check` finds it."""
        return vanishes(self.problem, self._stated)

    @property
    def gap(self) -> float:
        """`relative_gap` of objective and bound; 0 where the objective vanishes, which then is optimal."""
        return 0.0 if self.vanishes else super().gap

    def save(self, path: str | Path) -> None:
        """Write JSON; a large proof keeps its numbers in an .npz file of the same name beside it."""
        path = Path(path)
        arrays = pack(self.proof, data_of(self.problem))
        content: dict[str, Any] = {
            "format": FORMAT,
            "problem": fingerprint(self.problem),
            "result": {name: getattr(self, name) for name in _PLAIN},
            "weights": self.weights.tolist(),
            "indicators": self.indicators.tolist(),
            "trace": [[x if math.isfinite(x) else None for x in row] for row in self.trace],
        }
        beside = path.with_suffix(".npz")
        if sum(array.size for array in arrays.values()) > _INLINE:
            write_aside(beside, lambda aside: np.savez_compressed(aside, **arrays))
            content["proof_file"] = beside.name
        else:
            content["proof"] = {name: array.tolist() for name, array in arrays.items()}
        write_aside(path, lambda aside: aside.write_text(json.dumps(content), encoding="utf-8"))


def load(path: str | Path, problem: SparseTrainingProblem) -> ProofCertificate:
    """Read a certificate for ``problem``; `ProofCertificate.check` then judges it.

    Raises ``ValueError`` naming the file where it is no certificate, is damaged, or belongs to other data.
    """
    path = Path(path)
    try:
        # A number that is not finite is none: where one is needed, that is an error below.
        content = json.loads(
            read_text(path), parse_constant=_none, parse_float=_finite, parse_int=_whole
        )
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, not {FORMAT!r}")
        expected = fingerprint(problem)
        if content["problem"] != expected:
            changed = [k for k, v in expected.items() if content["problem"].get(k) != v]
            raise ValueError(f"made for another problem: {', '.join(changed)} differ")
        if "proof" in content:
            arrays = content["proof"]
        else:
            arrays = read_arrays(path.parent / Path(content["proof_file"]).name)
        result = {name: content["result"][name] for name in _PLAIN}
        made_by = tuple(result[name] for name in ("formulation", "integrality", "solver"))
        if made_by != ("projected", "integer", "branch_and_bound"):
            raise ValueError(f"made by {made_by}, not by the certified solver")
        for name in ("objective", "bound", "seconds", "nodes"):
            if isinstance(result[name], bool) or not isinstance(result[name], int | float):
                raise ValueError(f"its {name} is no number")
        weights, indicators = (
            torch.tensor(content[name], dtype=torch.float64) for name in ("weights", "indicators")
        )
        if weights.shape != (problem.entities.n_parameters,) or indicators.shape != problem.M.shape:
            raise ValueError("its weights or indicators are not those of the problem")
        rows = problem.entities.rows(weights)
        return ProofCertificate(
            **result, weights=weights, indicators=indicators,
            m_active=(rows.abs().amax(-1) >= problem.M * (1 - 1e-6)) & (indicators > 0),
            problem=problem, proof=unpack(arrays, data_of(problem)),
            trace=tuple(_progress(*row) for row in content["trace"]),
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except (
        KeyError, TypeError, IndexError, AttributeError, OSError, RuntimeError, OverflowError,
        RecursionError, MemoryError, np.linalg.LinAlgError,
    ) as error:  # fmt: skip
        raise ValueError(f"{path} is not a certificate: {type(error).__name__} {error}") from None


def _progress(seconds: Any, objective: Any, bound: Any, nodes: Any, open_: Any) -> SearchProgress:
    known = -math.inf if bound is None else float(bound)
    return SearchProgress(float(seconds), float(objective), known, int(nodes), int(open_))


def _none(text: str) -> None:
    return None


def _whole(text: str) -> int | None:
    return int(text) if len(text) <= 18 else None


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def fingerprint(problem: SparseTrainingProblem) -> dict[str, Any]:
    """What identifies a problem: its numbers as SHA-256, its settings in clear."""
    settings = [problem.M, problem.u, problem.entities.index]
    if len(problem.entities.free):
        settings.append(torch.tensor(problem.M_free, dtype=torch.float64))
    if problem.rules is not None:
        most = -1 if problem.rules.most is None else problem.rules.most
        settings += [
            problem.rules.required,
            torch.tensor(most),
            problem.rules.needs,
            problem.rules.forbidden,
        ]
    settings += [x for x in (problem.nonnegative, problem.sample_weight) if x is not None]
    return {
        "data_sha256": _digest(problem.X, problem.y),
        "settings_sha256": _digest(*settings),
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
