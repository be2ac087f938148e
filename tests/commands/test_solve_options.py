"""`spr-or solve`: the log, limits, warm starts, models for other solvers, and the choice of lambda."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from spr_or.certified_solver.solver import branch_and_bound
from spr_or.cli import app
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.tabular.limits import Limits, most_memory_gb
from spr_or.tabular.model_files import export_model
from spr_or.tabular.prepare import prepare
from spr_or.tabular.scaling import Scaling
from spr_or.tabular.warm_start import start_from


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve columns that are alike, so that a search takes some nodes; two of them matter."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=(60, 1))
    X = (common + rng.normal(size=(60, 12))) * np.arange(1, 13) + 5
    y = X[:, 0] - 0.4 * X[:, 4] + 0.8 * rng.normal(size=60) + 30
    path = tmp_path_factory.mktemp("options") / "own.csv"
    with path.open("w", newline="") as file:
        heads = [f"c{j}" for j in range(12)]
        csv.writer(file).writerows([[*heads, "y"], *np.column_stack([X, y]).tolist()])
    return path


def test_the_log_stays_and_grows(data: Path, tmp_path: Path) -> None:
    asked = ["solve", data, "--target", "y", "--standardise", "--lam", 0.02, "--out", tmp_path]
    run(*asked)
    first = (tmp_path / "solve.log").read_text()
    comments = [line for line in first.splitlines() if line.startswith("#")]
    assert "lambda 0.02, alpha 0.1" in comments[0] and comments[-1].startswith("# optimal")
    heads, *rows = [line.split() for line in first.splitlines() if not line.startswith("#")]
    numbers = np.array(rows, dtype=float)
    assert heads == ["seconds", "nodes", "open", "incumbent", "bound", "gap_pct"]
    assert (np.diff(numbers[:, 0]) >= 0).all() and (numbers[:, 4] <= numbers[:, 3]).all()
    stated = json.loads((tmp_path / "result.json").read_text())["outcome"]
    assert numbers[-1, 3] == pytest.approx(stated["objective"], rel=1e-6)
    run(*asked)
    assert (tmp_path / "solve.log").read_text().startswith(first)


def test_a_limit_on_nodes_keeps_a_proven_gap(data: Path, tmp_path: Path) -> None:
    asked = ["solve", data, "--target", "y", "--standardise", "--lam", 0.003, "--out", tmp_path]
    text = run(*asked, "--nodes", 3, code=1)
    assert "node limit: objective" in text
    outcome = json.loads((tmp_path / "result.json").read_text())["outcome"]
    assert outcome["status"] == "node_limit" and 1e-4 < outcome["gap"] < 1
    assert "holds" in run("check", tmp_path)


def test_a_path_goes_on_after_a_limit(data: Path, tmp_path: Path) -> None:
    text = run("solve", data, "--target", "y", "--standardise", "--path", "0.01,0.003", "--nodes", 3,
               "--out", tmp_path, code=1)  # fmt: skip
    assert text.count("node_limit") == 2


def test_a_limit_on_memory() -> None:
    assert 0.05 < most_memory_gb() < 100
    assert Limits(memory_gb=0.01).reached(None) == "memory_limit"
    assert Limits(memory_gb=1e4).reached(None) is None


def test_weights_go_into_the_units_of_the_problem_and_back() -> None:
    rng = np.random.default_rng(0)
    how = Scaling(
        rng.normal(size=3), rng.uniform(1, 2, 3), rng.normal(size=2), np.array([2.0, 5.0])
    )
    W = rng.normal(size=(3, 2))
    back, _ = how.weights(how.theta(W))
    assert np.allclose(back, W)
    back, intercept = how.weights(how.theta(W, np.array([7.0, 8.0])))
    assert np.allclose(back, W) and np.allclose(intercept, [7, 8])


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_a_warm_start_is_the_earlier_solution(data: Path, tmp_path: Path, loss: str) -> None:
    table = np.loadtxt(data, delimiter=",", skiprows=1)
    if loss == "logistic":
        table[:, -1] = table[:, -1] > np.median(table[:, -1])
    file = tmp_path / "own.csv"
    np.savetxt(file, table, delimiter=",", header=data.read_text().splitlines()[0], comments="")
    asked = ["solve", file, "--target", "y", "--standardise", "--loss", loss]
    run(*asked, "--lam", 0.05, "--out", tmp_path / "one")
    again = prepare(file, "y", None, loss, standardise=True)
    start = start_from(tmp_path / "one", again)
    certificate = json.loads((tmp_path / "one" / "certificate.json").read_text())
    assert start.tolist() == pytest.approx(certificate["weights"], rel=1e-9, abs=1e-12)
    run(*asked, "--lam", 0.04, "--out", tmp_path / "two", "--warm-start", tmp_path / "one")
    cold = run(*asked, "--lam", 0.04, "--out", tmp_path / "three")
    assert re.search(r"objective (\S+),", cold)
    results = [
        json.loads((tmp_path / name / "result.json").read_text())["outcome"]["objective"]
        for name in ("two", "three")
    ]
    assert results[0] == pytest.approx(results[1], rel=2e-4)


def test_a_warm_start_needs_a_common_column(data: Path, tmp_path: Path) -> None:
    run("solve", data, "--target", "y", "--lam", 2, "--out", tmp_path / "one")
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n2,3\n3,5\n")
    text = run(
        "solve", other, "--target", "b", "--lam", 1, "--warm-start", tmp_path / "one", code=2
    )
    assert "has none of the columns a" in text
    text = run(
        "solve", data, "--target", "y", "--path", 3, "--warm-start", tmp_path / "one", code=2
    )
    assert "--warm-start belongs to a single lambda" in text


def problem_of(loss: str) -> SparseTrainingProblem:
    rng = np.random.default_rng(1)
    X = rng.normal(size=(20, 4))
    y = X[:, 0] - X[:, 3] + 0.3 * rng.normal(size=20)
    if loss == "logistic":
        y = np.where(y > 0, 1.0, -1.0)
    return SparseTrainingProblem.linear(
        X, y, [[0, 1], [2], [3]], loss, lam=0.1, alpha=0.2, M=3, max_entities=2
    )


@pytest.mark.parametrize("formulation", ["bigm", "perspective"])
@pytest.mark.parametrize(
    ("loss", "suffix"),
    [("squared", ".lp"), ("squared", ".mps"), ("squared", ".nl"), ("logistic", ".nl")],
)
def test_another_solver_finds_the_same_optimum_in_the_file(
    loss: str, suffix: str, formulation: str, tmp_path: Path
) -> None:
    import pyscipopt

    problem = problem_of(loss)
    file = tmp_path / f"model{suffix}"
    export_model(file, problem, formulation)
    scip = pyscipopt.Model()
    scip.hideOutput()
    scip.readProblem(str(file))
    scip.optimize()
    assert scip.getStatus() == "optimal"
    ours = branch_and_bound(problem, 1e-7)
    assert scip.getObjVal() == pytest.approx(ours.objective, rel=1e-4)


def test_export_writes_the_model_with_the_proven_bound(data: Path, tmp_path: Path) -> None:
    import pyscipopt

    asked = [
        "solve",
        data,
        "--target",
        "y",
        "--standardise",
        "--lam",
        0.05,
        "--out",
        tmp_path / "o",
    ]
    text = run(*asked, "--export", tmp_path / "model.lp")
    assert "model (perspective)" in text
    scip = pyscipopt.Model()
    scip.hideOutput()
    scip.readProblem(str(tmp_path / "model.lp"))
    scip.optimize()
    stated = json.loads((tmp_path / "o" / "result.json").read_text())["outcome"]["objective"]
    assert scip.getObjVal() == pytest.approx(stated, rel=2e-4)
    assert "must end in .lp" in run(*asked, "--export", tmp_path / "model.txt", code=2)
    assert "needs a .nl file" in run(
        *asked, "--loss", "logistic", "--export", tmp_path / "model.lp", code=2
    )


@pytest.mark.pictures
def test_cross_validation_chooses_a_lambda_that_predict_uses(data: Path, tmp_path: Path) -> None:
    asked = ["solve", data, "--target", "y", "--standardise", "--path", "0.9,0.2,0.05,0.01",
             "--out", tmp_path]  # fmt: skip
    text = run(*asked, "--cv", 3)
    choice = json.loads((tmp_path / "choice.json").read_text())
    assert f"({choice['chosen']})" in text and choice["folds"] == 3
    losses = [row["held_out_loss"] for row in choice["compared"]]
    best = int(np.argmin(losses))
    limit = losses[best] + choice["compared"][best]["standard_error"]
    first = next(i for i, loss in enumerate(losses) if loss <= limit)
    assert choice["chosen"] == f"lambda-{first + 1:02d}"
    assert choice["compared"][0]["kept"] == [] and choice["compared"][3]["kept"]
    with (tmp_path / "choice.csv").open() as file:
        assert [row["chosen"] for row in csv.DictReader(file)].index("True") == first
    assert (tmp_path / "choice.png").read_bytes()[:4] == b"\x89PNG"
    predicted = run("predict", tmp_path, data)
    assert predicted == run("predict", tmp_path / choice["chosen"], data)
    assert "holds" in run("check", tmp_path)
    text = run(*asked, "--ic", "ebic")
    choice = json.loads((tmp_path / "choice.json").read_text())
    assert choice["criterion"] == "ebic" and "the least EBIC" in text
    assert choice["compared"][0]["ebic"] == pytest.approx(np.log(60), abs=1e-9)


def test_options_that_exclude_each_other(data: Path) -> None:
    asked = ["solve", data, "--target", "y"]
    assert "--cv or --ic" in run(*asked, "--cv", 3, "--ic", "bic", code=2)
    assert "--lam, or --path" in run(*asked, "--cv", 3, "--lam", 1, code=2)
    assert "single lambda" in run(*asked, "--cv", 3, "--export", "model.lp", code=2)


def test_the_folds_of_labels_are_stratified(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = np.sort(rng.normal(size=60))
    file = tmp_path / "own.csv"
    rows = [[x[i], rng.normal(), "yes" if i >= 52 else "no"] for i in range(60)]
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([["a", "b", "ill"], *rows])
    run("solve", file, "--target", "ill", "--loss", "logistic", "--standardise", "--path", "0.5,0.1",
        "--cv", 4, "--out", tmp_path / "o")  # fmt: skip
    choice = json.loads((tmp_path / "o" / "choice.json").read_text())
    share = 8 / 60
    empty = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    # Every fold has two of the eight, so the model without groups has the same loss in all.
    assert choice["compared"][0]["held_out_loss"] == pytest.approx(empty, rel=1e-6)
    assert choice["compared"][0]["standard_error"] == pytest.approx(0, abs=1e-6)
