"""Training must not pay for the solvers: they load on first use, never on import."""

import subprocess
import sys

import pytest

LAZY = ("pyomo", "cvxpy", "clarabel", "highspy", "pyscipopt", "matplotlib", "ray")


@pytest.mark.parametrize("module", ["spr_or", "spr_or.formulations.projected"])
def test_import_loads_no_solver_and_no_plotting(module: str) -> None:
    # A fresh interpreter, because other tests of this process have loaded the solvers.
    code = f"import sys, {module}; print(*(m for m in {LAZY!r} if m in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []
