"""The checker shares nothing with what it checks."""

import ast
import subprocess
import sys
from pathlib import Path

import spr_or.proof

FOLDER = Path(spr_or.proof.__file__).parent
ALLOWED = ("spr_or.proof", "spr_or.formulations.problem", "spr_or.formulations.certificate",
           "spr_or.formulations.one_hidden_layer",  # what kind of network a problem has
           "spr_or.utils.files", "spr_or.utils.untrusted")  # fmt: skip


def test_it_imports_the_problem_and_nothing_of_the_search():
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, path.name
                names = [node.module or ""]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                inside = any(name == a or name.startswith(f"{a}.") for a in ALLOWED)
                assert inside or not name.startswith("spr_or"), f"{path.name} imports {name}"


def test_a_check_loads_no_module_of_the_search():
    code = (
        "import sys, spr_or.proof.certificate, spr_or.proof.weight_bounds; "
        "print(*(m for m in sys.modules if m.startswith('spr_or.') "
        "and 'certified' in m or m.startswith('spr_or.solvers')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_it_can_be_read_in_one_sitting():
    lines = {path.name: len(path.read_text().splitlines()) for path in FOLDER.glob("*.py")}
    theorem = ("check.py", "tree.py", "bounds.py", "gradients.py", "rounding.py",
               "data.py", "losses.py")  # fmt: skip
    assert sum(lines[name] for name in theorem) < 1500, lines
