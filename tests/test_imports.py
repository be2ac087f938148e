"""Training must not pay for the solvers: they load on first use, never on import."""

import json
import subprocess
import sys

import pytest

LAZY = ("pyomo", "cvxpy", "clarabel", "highspy", "pyscipopt", "matplotlib", "ray")
SOLVERS = ("conic", "fixed_support", "enumeration", "outer_approximation", "projected_first_order")


@pytest.fixture(scope="module")
def loaded() -> dict[str, list[str]]:
    """For each module all top-level modules that are loaded once it is imported.

    One fresh interpreter, because other tests of this process have loaded the solvers, imports
    them one after the other: what one of them loads shows there and in all that follow.
    """
    modules = ["spr_or", "spr_or.formulations.projected"]
    modules += [f"spr_or.solvers.{name}" for name in SOLVERS] + ["spr_or.training.runner"]
    code = f"""if True:
        import importlib, json, sys
        seen = {{}}
        for name in {modules!r}:
            importlib.import_module(name)
            seen[name] = sorted({{module.partition(".")[0] for module in sys.modules}})
        print(json.dumps(seen))
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    seen: dict[str, list[str]] = json.loads(result.stdout)
    assert all("torch" in names for name, names in seen.items() if name != "spr_or")
    return seen


@pytest.mark.parametrize("module", ["spr_or", "spr_or.formulations.projected"])
def test_import_loads_no_solver_and_no_plotting(loaded: dict[str, list[str]], module: str) -> None:
    assert not set(LAZY) & set(loaded[module])


def test_modules_are_light(loaded: dict[str, list[str]]) -> None:
    for name in SOLVERS:
        assert not {*LAZY, "scipy"} & set(loaded[f"spr_or.solvers.{name}"]), name


def test_training_loads_no_solver_and_no_plotting(loaded: dict[str, list[str]]) -> None:
    assert not set(LAZY) & set(loaded["spr_or.training.runner"])
