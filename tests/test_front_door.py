"""The front door: the names of `import spr_or`, and what is imported for them."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import spr_or

LAZY = ("pyomo", "cvxpy", "clarabel", "highspy", "pyscipopt", "matplotlib", "ray")
# Modules that a careless front door would hand out in the place of a function.
INSIDE = (
    "spr_or.pruning.compaction.api",
    "spr_or.pruning.compaction",
    "spr_or.tabular.check",
    "spr_or.commands.check",
    "spr_or.commands.solve",
    "spr_or.commands.verify",
    "spr_or.certified_solver.solver",
    "spr_or.verification.ladder_of_bounds",
)


def in_a_fresh_process(code: str) -> str:
    """What the code prints; other tests of this process have loaded nearly everything."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def names_first() -> list[str]:
    """The heavy modules that are loaded with the names of README, in one fresh process.

    In the same process the modules of these names are loaded then; the names stay functions.
    """
    code = f"""
import importlib, sys
from spr_or import SPR, ProxSGD, SparseTrainingProblem, verify, solve, check, compact
assert all(map(callable, (verify, solve, check, compact)))
print(*(m for m in {LAZY!r} if m in sys.modules), ".")
for name in {INSIDE!r}: importlib.import_module(name)
import spr_or as so
print(all(map(callable, (so.verify, so.solve, so.check, so.compact))))
"""
    return in_a_fresh_process(code).split(".")


def test_the_names_of_the_readme_load_no_solver_and_no_plotting(names_first: list[str]) -> None:
    assert names_first[0].split() == []


def test_the_package_alone_loads_no_torch() -> None:
    code = "import sys, spr_or; spr_or.__version__, dir(spr_or); print('torch' in sys.modules)"
    assert in_a_fresh_process(code).split() == ["False"]


def test_names_stay_functions_when_they_are_asked_for_first(names_first: list[str]) -> None:
    assert names_first[1].split() == ["True"]


def test_names_are_functions_when_their_modules_are_imported_first() -> None:
    load = f"import importlib\nfor name in {INSIDE!r}: importlib.import_module(name)\n"
    assertion = "assert all(map(callable, (so.verify, so.solve, so.check, so.compact)))"
    in_a_fresh_process(f"import spr_or as so\n{load}{assertion}")


def typed_names() -> dict[str, str]:
    """What type checkers see: each name under TYPE_CHECKING with its home, module:name."""
    tree = ast.parse(Path(spr_or.__file__ or "").read_text(encoding="utf-8"))
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    return {
        alias.asname or alias.name: f"{statement.module}:{alias.name}"
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }


def test_type_checkers_see_the_names_that_load_lazily() -> None:
    lazy = {
        name: home if ":" in home else ":".join(home.rsplit(".", 1))
        for name, home in spr_or._HOMES.items()
    }
    assert typed_names() == lazy
    assert set(spr_or.__all__) == {*lazy, "__version__"}
    assert {name for name in dir(spr_or) if not name.startswith("__")} == {
        name for name in spr_or.__all__ if not name.startswith("__")
    }


@pytest.mark.parametrize("name", sorted(spr_or._HOMES))
def test_each_name_is_what_its_home_defines(name: str) -> None:
    module, _, attribute = spr_or._HOMES[name].partition(":")
    home = importlib.import_module(module)
    assert getattr(spr_or, name) is (getattr(home, attribute) if attribute else home)
    modules = ("bigm", "perspective", "projected", "rules")
    assert callable(getattr(spr_or, name)) == (name not in modules)


def test_an_unknown_name_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(AttributeError, match="no attribute 'verfy'; did you mean 'verify'?"):
        _ = spr_or.verfy
    with pytest.raises(AttributeError, match="no attribute 'zzzzzz'$"):
        _ = spr_or.zzzzzz
