"""A small table is answered at once: nothing is imported that the answer does not need."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

_RUN = """
import json, sys
from spr_or.cli import app
try:
    app()
except SystemExit:
    import gc
    print(json.dumps([sorted({name.split(".")[0] for name in sys.modules}), gc.get_freeze_count()]))
"""
UNUSED = {"matplotlib", "PIL", "pandas", "pyomo", "cvxpy", "highspy", "sklearn", "joblib", "sympy"}


def test_a_solve_imports_no_library_for_pictures_models_or_estimators(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 4))
    np.savetxt(
        tmp_path / "t.csv",
        np.column_stack([X, X[:, 0]]),
        delimiter=",",
        header="a,b,c,d,y",
        comments="",
    )
    asked = [
        "solve",
        str(tmp_path / "t.csv"),
        "--target",
        "y",
        "--lam",
        "0.1",
        "--out",
        str(tmp_path / "o"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *asked], capture_output=True, text=True, check=True
    )
    imported, frozen = json.loads(done.stdout.splitlines()[-1])
    assert not UNUSED & set(imported) and "torch" in imported
    assert frozen > 100_000  # the collector was off while torch was imported
    assert (tmp_path / "o" / "report.html").exists()
