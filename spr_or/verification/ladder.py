"""What `verify` returns: a `Ladder` of values and bounds, from the weakest relaxation to the optimum.

A `Rung` is one of them, computed by one solver for one formulation; a `Check` is a claim about them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from spr_or.solvers.certificate import Certificate

RELATIVE = 1e-5  # two values of one optimum may differ by this much, relative to the larger
ABSOLUTE = 1e-7  # ... and by this much near zero: what the solvers' feasibility tolerances leave
_NAMES = {"bigm": "big-M"}


def formulation_name(formulation: str) -> str:
    """A formulation as output and pictures call it.

    >>> formulation_name("bigm"), formulation_name("perspective"), formulation_name("projected")
    ('big-M', 'perspective', 'projected')
    """
    return _NAMES.get(formulation, formulation)


def tolerance(*values: float) -> float:
    """How far values of one optimum may lie apart."""
    return RELATIVE * max((abs(v) for v in values if math.isfinite(v)), default=0.0) + ABSOLUTE


@dataclass(frozen=True)
class Rung:
    """A value and a bound: of one formulation, relaxed or integer, by one solver.

    ``value`` is the solution's objective, re-evaluated outside the solver; ``bound`` the proven lower
    bound (-inf if there is none); the rest as in `spr_or.solvers.Certificate`.
    """

    formulation: str
    integrality: str
    solver: str
    value: float
    bound: float
    seconds: float
    status: str
    certificate: Certificate = field(repr=False)

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
    """A claim; ``slack`` is what is left before it would fail (negative: it fails)."""

    claim: str
    holds: bool
    slack: float


@dataclass(frozen=True)
class Ladder:
    """Values and bounds of one problem, and the claims about them.

    ``printed`` is the objective with the printed closed form at the minimiser of the relaxation;
    ``stopped`` says that the user stopped the work between two solvers.
    """

    name: str
    convex: bool
    n_entities: int
    rungs: list[Rung]
    checks: list[Check]
    printed: float = math.nan
    stopped: bool = False

    @property
    def ok(self) -> bool:
        """Whether all solvers have run and every claim holds."""
        return not self.interrupted and all(check.holds for check in self.checks)

    @property
    def interrupted(self) -> bool:
        """Whether the user stopped it."""
        return self.stopped or any(rung.status == "interrupted" for rung in self.rungs)

    def of(self, integrality: str, *formulations: str) -> list[Rung]:
        """The rungs of these formulations (none named: of all)."""
        return [
            rung
            for rung in self.rungs
            if rung.integrality == integrality
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
        if not gap > tolerance(low):
            return math.nan
        return (self.value("relaxed", "perspective") - low) / gap

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a number that is not finite becomes None."""
        return {
            "name": self.name,
            "ok": self.ok,
            "convex": self.convex,
            "n_entities": self.n_entities,
            "root_gap_closed": plain(self.root_gap_closed),
            "printed_at_minimiser": plain(self.printed),
            "rungs": [
                {k: plain(v) for k, v in vars(rung).items() if k != "certificate"}
                for rung in self.rungs
            ],
            "checks": [{k: plain(v) for k, v in vars(c).items()} for c in self.checks],
        }


def plain(value: Any) -> Any:
    """A value for JSON: None for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
