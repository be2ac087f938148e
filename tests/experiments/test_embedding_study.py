"""The study of docs/lab/embedding.md: answers that are stored are not asked again, and the table adds up."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "embedding" / "verify.py"


@pytest.fixture(scope="module")
def study() -> Any:
    spec = importlib.util.spec_from_file_location("embedding_study", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def case(solver: str, network: str, image: int, radius: float, **figures: Any) -> dict[str, Any]:
    given = {
        "answer": "robust", "attack": -0.5, "binaries": 4, "root": 0.1, "nodes": 1,
        "processor_seconds": 1.0,
    }  # fmt: skip
    asked = {"solver": solver, "network": network, "image": image, "radius": radius}
    return asked | given | figures


def test_a_line_that_was_cut_is_dropped(study: Any, tmp_path: Path) -> None:
    file = tmp_path / "cases.jsonl"
    assert study.read_cases(file) == []
    whole = case("highs", "dense", 0, 0.1)
    file.write_text(json.dumps(whole) + "\n" + json.dumps(whole)[:40], encoding="utf-8")
    assert study.read_cases(file) == [whole]
    assert file.read_text(encoding="utf-8") == json.dumps(whole) + "\n"


def test_the_table_compares_times_case_by_case(study: Any, capsys: Any) -> None:
    cases = [
        case(solver, name, image, radius, processor_seconds=seconds * (1 + image))
        for solver in study.SOLVERS
        for radius in study.RADII
        for image in (0, 1)
        for name, seconds in (("dense", 6.0), ("SPR, 75 %", 1.5))
    ]
    study.report(cases, {"dense": (96.0, 6310), "SPR, 75 %": (95.0, 1500)})
    told = capsys.readouterr().out
    rows = [line.split() for line in told.splitlines() if line.lstrip().startswith("SPR, 75 %")]
    networks, *rows = rows
    assert networks[3:] == ["1,500", "95.00", *["4.0"] * 3, *["0.10"] * 3]
    assert len(rows) == len(study.SOLVERS) * len(study.RADII)
    # 4 times faster in all and in the median; both images robust, none broken, none undecided.
    assert all(row[-5:] == ["4.0", "4.0", "2", "0", "0"] for row in rows)
    assert "highs, SPR, 75 %: 4.0 times faster in all, median 4.0" in told
    assert "24 proofs" in told and "0 proofs refuted" in told


@pytest.mark.parametrize("name", ["classifier", "pruned"])
def test_its_files_are_a_recipe_and_a_comparison(name: str) -> None:
    from spr_or.sweeps.compare_file import load_comparison
    from spr_or.training.recipe import load_recipe

    load = load_recipe if name == "classifier" else load_comparison
    assert load(SCRIPT.parent / f"{name}.toml")
