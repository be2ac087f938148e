"""`make gpu`: which steps are taken, what is kept of them, and the tables that they write."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "experiments" / "research" / "gpu.py"
SPEEDS = {"seconds": 1.0, "speedup": 8.5, "speedup_spread": 0.1, "over_fast": 1.02,
          "over_fast_spread": 0.01, "images_per_second": 12345.0, "share_of_peak": 0.25}  # fmt: skip
CONTENTS: dict[str, Any] = {
    "tests": {"tests": 12, "failures": 0, "errors": 0, "skipped": 2},
    "training": {"images": 50_000, "peak_flops": 1e15, "rows": [SPEEDS | {"method": "fast, SPR"}]},
    "regularizer": {
        "rows": [
            {"network": "resnet20, batch 128", "setting": "cuda float32", "method": "ProxSGD",
             "milliseconds": 3.0, "ratio": 1.25, "spread": 0.01}
        ]
    },
    "budgets": {
        "epochs": 800,
        "rows": [
            {"spr.target_removed_pct": 50.0, "removed_params_pct": 50.1, "accuracy": 91.25,
             "dense_accuracy": 92.0, "macs_dense": 40_000_000, "macs_compact": 16_000_000}
        ],
        "hours": [{"dense_seconds": 0.5, "spr_seconds": 0.75, "finetune_seconds": 0.5}],
    },
}  # fmt: skip
TABLES = {
    "tests": "10 tests that need the device pass.",
    "training": "| fast, SPR | 12,345 | 25.0 % | 8.50 ± 0.10 | 1.020 ± 0.010 |",
    "regularizer": "| resnet20, batch 128 | cuda float32 | ProxSGD | 3.00 | 1.250 ± 0.010 |",
    "budgets": "| 50 % | 50.1 % | 91.25 % | 92.00 % | 2.50 | 1.25 |",
}


@pytest.fixture(scope="module")
def gpu() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def taken(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps that are taken, each with a given result."""
    names: list[str] = []

    def stand_in(name: str) -> Any:
        def measure(place: Any) -> Any:
            names.append(name)
            return CONTENTS[name]

        return measure

    steps = {name: step._replace(measure=stand_in(name)) for name, step in gpu.STEPS.items()}
    monkeypatch.setattr(gpu, "STEPS", steps)
    return names


def smoke(gpu: Any, out: Path) -> int:
    status: int = gpu.main(["--device", "cpu", "--smoke", "--out", str(out)])
    return status


def test_without_a_gpu_it_says_so(
    gpu: Any, taken: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "out")]) == 3
    assert "torch finds no CUDA device here, so nothing was measured" in capsys.readouterr().err
    assert taken == [] and not (tmp_path / "out").exists()


def test_figures_of_a_cpu_do_not_get_into_the_docs(gpu: Any, taken: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        gpu.main(["--device", "cpu"])
    assert stop.value.code == 2 and taken == []


def test_every_table_is_written_between_the_marks(
    gpu: Any, taken: list[str], tmp_path: Path
) -> None:
    before = gpu.PAGE.read_text()
    assert smoke(gpu, tmp_path) == 0
    page = (tmp_path / "speed.md").read_text()
    assert page.partition(gpu.BEGIN)[0] == before.partition(gpu.BEGIN)[0]
    assert page.partition(gpu.END)[2] == before.partition(gpu.END)[2]
    for table in TABLES.values():
        assert page.count(table) == 1
    assert "Not measured" not in page and gpu.PAGE.read_text() == before
    assert gpu.with_section(page, "x") == gpu.with_section(before, "x")


def test_the_page_of_the_docs_names_every_step(gpu: Any) -> None:
    """Until it is measured; afterwards nothing of the section may be left out."""
    page = gpu.PAGE.read_text()
    assert gpu.with_section(page, gpu.section({})).count("Not measured yet: ") == len(gpu.STEPS)


def test_a_finished_step_is_not_repeated(gpu: Any, taken: list[str], tmp_path: Path) -> None:
    smoke(gpu, tmp_path)
    first = (tmp_path / "speed.md").read_text()
    (tmp_path / "training.json").unlink()
    (tmp_path / "tests.json").write_text('{"cut')
    taken.clear()
    assert smoke(gpu, tmp_path) == 0
    assert taken == ["tests", "training"] and (tmp_path / "speed.md").read_text() == first


def test_a_smoke_run_is_no_result(gpu: Any, taken: list[str], tmp_path: Path) -> None:
    smoke(gpu, tmp_path)
    place = gpu.Place("cpu", tmp_path, True)
    assert gpu.finished(place, "tests")["content"] == CONTENTS["tests"]
    assert gpu.finished(place._replace(smoke=False), "tests") is None
    assert gpu.finished(place._replace(device="cuda"), "tests") is None


def test_the_others_go_on_where_a_step_fails(
    gpu: Any, taken: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fails(place: Any) -> Any:
        raise gpu.StepFailed("2 of 12 tests failed")

    good = gpu.STEPS["tests"]
    monkeypatch.setitem(gpu.STEPS, "tests", good._replace(measure=fails))
    assert smoke(gpu, tmp_path) == 1
    assert "tests: failed, StepFailed: 2 of 12 tests failed" in capsys.readouterr().err
    assert taken == ["training", "regularizer", "budgets"]
    assert "Not measured yet: tests." in (tmp_path / "speed.md").read_text()
    monkeypatch.setitem(gpu.STEPS, "tests", good)
    assert smoke(gpu, tmp_path) == 0 and taken[3:] == ["tests"]


def test_a_page_without_marks_is_refused(gpu: Any) -> None:
    with pytest.raises(ValueError, match="the page lacks"):
        gpu.with_section("# Speed", "x")


def test_the_full_runs_are_three_budgets_of_the_papers_protocol(gpu: Any) -> None:
    plan = gpu.load_sweep(SCRIPT.with_name("gpu_budgets.toml"))
    budgets = [run.recipe.spr.target_removed_pct for run in plan.runs]
    assert budgets == [30.0, 50.0, 70.0]
    for run in plan.runs:
        assert (run.recipe.dense.epochs, run.recipe.spr.epochs, run.recipe.finetune.epochs) == (
            300,
            300,
            200,
        )
        assert run.recipe.speed.cuda_graph and run.recipe.speed.amp == "bf16"


@pytest.mark.slow
def test_the_smoke_run_measures_every_step(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models.toy import digits_resnet

    def small() -> Any:
        return digits_resnet(in_channels=3)

    monkeypatch.setattr(gpu.training, "BATCH", 2)
    monkeypatch.setattr(gpu.training, "SIDES", {"cpu": 64})
    monkeypatch.setattr("spr_or.models.resnet_cifar.resnet20", small)
    monkeypatch.setattr(gpu.regularizer_cost, "BATCH", 2)
    monkeypatch.setattr(gpu, "resnet20", small)
    monkeypatch.setattr(gpu, "resnet56", small)
    monkeypatch.setenv("SPR_OR_CACHE", str(tmp_path / "cache"))
    assert smoke(gpu, tmp_path / "out") == 0
    page = (tmp_path / "out" / "speed.md").read_text()
    section = page.partition(gpu.BEGIN)[2].partition(gpu.END)[0]
    assert "Not measured" not in section
    assert section.count("| fast, ProxSGD |") == 1 and section.count("| ProxSGD |") == 2
    assert [f"| {budget} % |" in section for budget in (30, 50, 70)] == [True] * 3
    results = {
        path.stem: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")
    }
    assert results.keys() == gpu.STEPS.keys()
    assert all(result["smoke"] and result["on"] == "cpu" for result in results.values())
    assert results["tests"]["content"]["tests"] > 0
    again = page, {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.json")}
    assert smoke(gpu, tmp_path / "out") == 0
    assert again == (
        (tmp_path / "out" / "speed.md").read_text(),
        {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.json")},
    )
