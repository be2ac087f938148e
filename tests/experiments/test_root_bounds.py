"""The root bounds of the research script: in the right order, and none above the optimum."""

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import pytest

from spr_or.certified_solver.design import design_of
from spr_or.certified_solver.solver import branch_and_bound

SCRIPT = Path(__file__).parents[2] / "experiments" / "research" / "root_bounds.py"
GROUPS = 4
ACCURACY = 1e-5  # of Clarabel, relative


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("like", ["H1", "H3"])
def test_bounds_stand_in_order(script: Any, like: str) -> None:
    problem = script.instance(like, GROUPS, seed=4)
    optimum = branch_and_bound(problem, gap=1e-6).objective
    design = design_of(problem).with_moments()
    pairs = list(itertools.combinations(range(GROUPS), 2))
    blocks = script.root(design).bound
    rank_one = script.root(design, rank_one=pairs).bound
    hulls = script.root(design, hulls=pairs).bound
    spare = ACCURACY * optimum
    assert blocks <= rank_one + spare
    assert rank_one <= hulls + spare
    assert hulls <= optimum + spare
    assert blocks <= script.root(design, box=True).bound + spare <= optimum + 2 * spare


def test_the_hull_of_all_entities_is_the_problem_itself(script: Any) -> None:
    problem = script.instance("H3", GROUPS, seed=4)
    design = design_of(problem).with_moments()
    best = branch_and_bound(problem, gap=1e-6)
    assert float(best.weights.abs().max()) < 3.0  # M: the hull leaves the box out
    optimum = best.objective
    assert script.root(design).bound < 0.999 * optimum
    assert script.root(design, hulls=[range(GROUPS)]).bound == pytest.approx(optimum, rel=ACCURACY)
