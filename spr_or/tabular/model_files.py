"""The model of a problem as a file for other solvers: formulation (1) or (4), written by Pyomo."""

from __future__ import annotations

from pathlib import Path

from spr_or.formulations import bigm, perspective
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.utils.files import write_aside

FORMULATIONS = {"bigm": bigm.build, "perspective": perspective.build}
KINDS = (".lp", ".mps", ".nl")


def check_kind(path: Path, loss: str) -> None:
    """Raise ``ValueError`` where a file of this name cannot hold the model of a problem with this loss."""
    if path.suffix.lower() not in KINDS:
        raise ValueError(f"--export {path}: the name must end in {', '.join(KINDS)}")
    if loss == "poisson":
        raise ValueError("--export: models for other solvers do not take the poisson loss")
    if loss == "logistic" and path.suffix.lower() != ".nl":
        raise ValueError(
            f"--export {path}: the logistic loss is no polynomial of degree two, and needs a .nl file"
        )


def export_model(path: Path, problem: SparseTrainingProblem, formulation: str) -> None:
    """Write the mixed-integer model of a problem, with its M.

    Parameters
    ----------
    path : ends in .lp, .mps or .nl
    formulation : "bigm", (1) to (3), or "perspective", (4), with rotated cones as quadratic rows

    The variables are w[0], w[1], ... for the weights (of the scaled columns, in their order) and y[0],
    y[1], ... for the groups; with (4) also t[i] >= ||w^i||^2 / y[i].  Raises ``ValueError``.
    """
    check_kind(path, problem.loss)
    model = FORMULATIONS[formulation](problem)
    text = path.suffix.lower() == ".lp"
    named = {} if path.suffix.lower() == ".nl" else {"symbolic_solver_labels": True}
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(aside: Path) -> None:
        model.write(str(aside), io_options=named)
        if text:  # "x ^ 2", as Pyomo writes it, is an error for SCIP; "x ^2" is what CPLEX and Gurobi write
            written = aside.read_text(encoding="utf-8")
            aside.write_text(written.replace(" ^ 2\n", " ^2\n"), encoding="utf-8")

    write_aside(path, write)
