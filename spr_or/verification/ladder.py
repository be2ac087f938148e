"""What `verify` returns: a `Ladder` of values and bounds, from the weakest relaxation to the optimum.

A `Rung` is one of them, computed by one solver for one formulation; a `Check` is a claim about them.
A claim holds, is refuted or was not tested, and what was not tested never counts as holding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from spr_or.formulations.certificate import Certificate
from spr_or.formulations.losses import LOSSES
from spr_or.formulations.problem import SparseTrainingProblem

Verdict = Literal["holds", "refuted", "not tested"]

RELATIVE = 1e-5  # two values of one optimum may differ by this much, relative to the larger
NEAR_ZERO = 1e-7  # ... and by this share of the loss at zero weights, which no optimum exceeds
_NAMES = {"bigm": "big-M"}


def formulation_name(formulation: str) -> str:
    """A formulation as output and pictures call it.

    >>> formulation_name("bigm"), formulation_name("perspective"), formulation_name("projected")
    ('big-M', 'perspective', 'projected')
    """
    return _NAMES.get(formulation, formulation)


def scale_of(problem: SparseTrainingProblem) -> float:
    """What a value of the problem is small against: the mean loss at zero weights.

    Where that is 0, so that nothing needs to be learned, the dearest indicator takes its place.

    >>> X = [[1.0], [1.0]]
    >>> p = SparseTrainingProblem.linear(X, [2.0, 4.0], [[0]], lam=0.1, alpha=0.5, M=2)
    >>> scale_of(p)
    10.0
    """
    zero = torch.zeros((problem.n, problem.n_outputs), dtype=torch.float64)
    loss = float(LOSSES[problem.loss].value(zero, problem.y).mean())
    return loss if loss > 0 else problem.lam * float(problem.u.max())


def verdict_of(slack: float) -> Verdict:
    """What a comparison says: nan is no answer.

    >>> verdict_of(0.0), verdict_of(-1e-300), verdict_of(math.nan)
    ('holds', 'refuted', 'not tested')
    """
    if math.isnan(slack):
        return "not tested"
    return "holds" if slack >= 0 else "refuted"


@dataclass(frozen=True)
class Rung:
    """A value and a bound: of one formulation, relaxed or integer, by one solver.

    ``value`` is the solution's objective, re-evaluated outside the solver; ``bound`` the proven lower
    bound (-inf if there is none).  ``fault`` says why the answer takes part in no comparison, and is
    empty where it does; the rest as in `spr_or.solvers.certificate.Certificate`.
    """

    formulation: str
    integrality: str
    solver: str
    value: float
    bound: float
    seconds: float
    status: str
    certificate: Certificate = field(repr=False)
    fault: str = ""

    @classmethod
    def of(cls, c: Certificate) -> Rung:
        """The rung of a certificate."""
        return cls(
            c.formulation, c.integrality, c.solver, c.objective, c.bound, c.seconds, c.status, c
        )

    @property
    def closed(self) -> bool:
        """Whether value and bound meet."""
        return self.status == "optimal"

    @property
    def proven(self) -> float:
        """What the rung stands for as a lower bound: its value once closed, else its bound."""
        return self.value if self.closed else self.bound

    @property
    def what(self) -> str:
        """Formulation and integrality in words."""
        return f"{formulation_name(self.formulation)} {self.integrality}"

    @property
    def label(self) -> str:
        """Formulation, integrality and solver in words."""
        return f"{self.what} ({self.solver})"


@dataclass(frozen=True)
class Check:
    """A claim and what became of it.

    ``slack`` is what is left before it would be refuted (negative: it is), nan where nothing could be
    compared; ``reason`` says why it was not tested, or what refutes it.
    """

    claim: str
    verdict: Verdict
    slack: float
    reason: str = ""

    @property
    def holds(self) -> bool:
        """Whether it was tested and holds."""
        return self.verdict == "holds"


@dataclass(frozen=True, repr=False)
class Ladder:
    """Values and bounds of one problem, and the claims about them.

    ``printed`` is the objective with the printed closed form at the minimiser of the relaxation;
    ``scale`` is that of `scale_of`; ``notes`` are observations that no claim depends on; ``stopped``
    says that the user stopped the work between two solvers.
    """

    name: str
    convex: bool
    n_entities: int
    rungs: list[Rung]
    checks: list[Check]
    printed: float = math.nan
    stopped: bool = False
    scale: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """ "refuted" if any claim is, else "not tested" if any was not, else "holds".

        A ladder without claims, or one that was interrupted, was not tested.
        """
        verdicts = {check.verdict for check in self.checks}
        if "refuted" in verdicts:
            return "refuted"
        return "holds" if verdicts == {"holds"} and not self.interrupted else "not tested"

    @property
    def ok(self) -> bool:
        """Whether all solvers have run and every claim was tested and holds."""
        return self.verdict == "holds"

    @property
    def interrupted(self) -> bool:
        """Whether the user stopped it."""
        return self.stopped or any(rung.status == "interrupted" for rung in self.rungs)

    def __repr__(self) -> str:
        """One line; what it is made of stands in ``rungs`` and ``checks``."""
        held = sum(check.holds for check in self.checks)
        return (
            f"<Ladder {self.name!r}: {self.verdict}, {held} of {len(self.checks)} claims hold, "
            f"best objective {self.value('integer'):.6g}, bound {self.proven('integer'):.6g}>"
        )

    def tolerance(self, *values: float) -> float:
        """How far values of one optimum may lie apart.

        >>> f'{Ladder("x", True, 1, [], [], scale=10.0).tolerance(2.0, -3.0, math.inf):.3g}'
        '3.1e-05'
        """
        largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
        return RELATIVE * largest + NEAR_ZERO * self.scale

    def of(self, integrality: str, *formulations: str) -> list[Rung]:
        """The rungs of these formulations (none named: of all) whose answers can be compared."""
        return [
            rung
            for rung in self.rungs
            if not rung.fault
            and rung.integrality == integrality
            and (not formulations or rung.formulation in formulations)
        ]

    def value(self, integrality: str, *formulations: str) -> float:
        """The best value among these rungs; inf where there is none."""
        return min((r.value for r in self.of(integrality, *formulations)), default=math.inf)

    def proven(self, integrality: str, *formulations: str) -> float:
        """The best lower bound among these rungs; -inf where there is none."""
        return max((r.proven for r in self.of(integrality, *formulations)), default=-math.inf)

    @property
    def root_gap_closed(self) -> float:
        """(perspective - big-M) / (MIP - big-M): the share of the root gap that perspective closes.

        nan where there is no root gap.
        """
        low = self.value("relaxed", "bigm")
        gap = self.value("integer") - low
        if not gap > self.tolerance(low):
            return math.nan
        return (self.value("relaxed", "perspective") - low) / gap

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a number that is not finite becomes None."""
        return {
            "name": self.name,
            "ok": self.ok,
            "verdict": self.verdict,
            "convex": self.convex,
            "n_entities": self.n_entities,
            "root_gap_closed": plain(self.root_gap_closed),
            "printed_at_minimiser": plain(self.printed),
            "rungs": [
                {k: plain(v) for k, v in vars(rung).items() if k != "certificate"}
                for rung in self.rungs
            ],
            "checks": [
                {"holds": c.holds, **{k: plain(v) for k, v in vars(c).items()}} for c in self.checks
            ],
            "notes": self.notes,
        }


def plain(value: Any) -> Any:
    """A value for JSON: None for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
