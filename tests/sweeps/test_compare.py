"""Comparisons: what a file says, what the table and its marks mean, and that nothing runs twice."""

from dataclasses import replace
from pathlib import Path

import pytest
from sweep_server import quick
from test_sweep import Here
from typer.testing import CliRunner

from spr_or.cli import app
from spr_or.sweeps.accuracy_dots import accuracy_dots, ranked
from spr_or.sweeps.checking import check_all
from spr_or.sweeps.compare_file import SPR_FORMS, load_comparison
from spr_or.sweeps.comparison import (
    PICTURES,
    Line,
    lines_of,
    numbers_of,
    rows_of,
    significance,
    winners,
    write_comparison,
)
from spr_or.sweeps.sweep import run_sweep
from spr_or.sweeps.sweep_file import SweepError
from spr_or.training.method import shipped_methods
from spr_or.training.recipe import RecipeError
from spr_or.utils.shipped import shipped_names

BASE = """
model = "models.toy:convnet"
[data]
train_rows = 256
eval_rows = 64
batch_size = 32
[dense]
epochs = 1
[spr]
epochs = 2
alpha = 0.3
lr = 0.05
lam = "auto"
start = "dense"
method = "prox"
[finetune]
epochs = 1
[speed]
device = "cpu"
threads = 1
"""
FILE = """
base = "base.toml"
seeds = [0, 1]
budgets = [30, 60.0]
methods = ["spr-prox", "pffec", {name = "plugged_methods:METHOD", label = "mine", decay = 0.25}]
"""


def write(folder: Path, text: str = FILE) -> Path:
    (folder / "base.toml").write_text(BASE)
    (folder / "some.toml").write_text(text)
    return folder / "some.toml"


def test_every_method_meets_every_budget_with_every_seed(tmp_path):
    plan = load_comparison(write(tmp_path), ["finetune.epochs=0"])
    assert plan.keys == ("method", "budget") and len(plan.runs) == 3 * 2 * 2
    recipes = {(r.changes["method"], r.changes["budget"], r.seed): r.recipe for r in plan.runs}
    mine = recipes["mine", 60.0, 1]
    assert mine.method.name == "plugged_methods:METHOD" and mine.method.model_extra == {
        "decay": 0.25
    }
    assert mine.spr.target_removed_pct == 60 and mine.finetune.epochs == 0
    assert recipes["spr-prox", 30.0, 0].method.name == "spr"


def test_lambda_starts_by_itself_unless_the_file_says_so(tmp_path):
    (tmp_path / "base.toml").write_text(BASE.replace('"auto"', "65.0"))
    file = tmp_path / "some.toml"
    lams = []
    for text in (FILE, FILE + "[set]\nspr.lam = 3.0\n"):
        file.write_text(text)
        lams.append({run.recipe.spr.lam for run in load_comparison(file).runs})
    assert lams == [{"auto"}, {3.0}]
    with pytest.raises(SweepError, match="seeds must differ"):
        file.write_text(FILE.replace("[0, 1]", "[0, 0]"))
        load_comparison(file)
    with pytest.raises(SweepError, match="spr.target_removed_pct is given by budgets"):
        load_comparison(write(tmp_path), ["spr.target_removed_pct=30"])


def test_all_are_the_shipped_methods_and_the_forms_of_spr(tmp_path):
    plan = load_comparison(write(tmp_path, FILE.partition("methods")[0] + 'methods = "all"'))
    labels = dict.fromkeys(run.changes["method"] for run in plan.runs)
    assert list(labels) == [*SPR_FORMS, *shipped_methods()]
    forms = {r.changes["method"]: (r.recipe.spr.method, r.recipe.spr.variant) for r in plan.runs}
    assert forms["spr-printed"] == ("gradient", "printed")
    assert forms["spr-exact"] == ("gradient", "exact")


def test_a_folder_does_not_hide_the_shipped_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    plan = load_comparison("digits")
    assert plan.runs[0].recipe.model == "models.toy:digits_resnet"


@pytest.mark.parametrize("name", shipped_names("comparisons"))
def test_every_shipped_comparison_loads(name):
    assert load_comparison(name).runs


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('methods = ["pfec"]', "no method 'pfec'. Did you mean 'pffec'"),
        ('methods = ["spr_prox"]', "Did you mean 'spr-prox'"),
        ('methods = ["pffec", "pffec"]', "two methods are called 'pffec'"),
        ('methods = "most"', "or \"all\", not 'most'"),
        ("methods = []", "methods"),
        ("methods = [{label = 'a'}]", "needs a name"),
        ("methods = [{name = 'pffec', label = 3}]", "must be text, got 3"),
        ("methods = [{name = 'pffec', imags = 3}]", "pffec has no key 'imags'"),
        ("methods = [{name = 'pffec', spr.alpha = 0.3}]", "pffec does not read spr.alpha"),
        ("methods = [{name = 'pffec', spr.epoch = 3}]", "pffec has spr.epoch, which is the same"),
        ("methods = ['pffec']\nbugdets = [1]", "bugdets: no such key; a comparison has base"),
        ("methods = ['nowhere:METHOD']", "nowhere"),
        (
            "methods = [{name = 'random', finetune.epochs = 9}]",
            "random has finetune.epochs, which is",
        ),
        (
            "methods = [{name = 'spr', spr.target_of = 'macs'}]",
            "spr.target_of, which is the same for",
        ),
        ("methods = ['pffec']\n[set]\nspr.target_removed_pct = 3", "given by budgets and methods"),
        ("methods = ['pffec']\n[set]\nmethod.name = 'hrank'", "method.name is given by"),
        (
            "methods = [{ name = 'spr-prox', spr.alhpa = 0.3 }]",
            "has no key 'spr.alhpa'; did you mean 'spr.alpha'",
        ),
    ],
)
def test_what_is_wrong_in_the_file_is_told(line, says, tmp_path):
    file = write(tmp_path, FILE.partition("methods")[0] + line)
    with pytest.raises((SweepError, RecipeError), match=says):
        load_comparison(file)


@pytest.mark.parametrize(
    ("budgets", "says"),
    [("[]", "budgets"), ("[0]", "budgets"), ("[100]", "budgets"), ("[50, 50.0]", "must differ")],
)
def test_budgets_are_shares_in_percent(budgets, says, tmp_path):
    with pytest.raises(SweepError, match=says):
        load_comparison(write(tmp_path, FILE.replace("[30, 60.0]", budgets)))


def test_what_does_not_fit_is_told_for_all_methods_before_anything_is_trained(tmp_path):
    text = FILE.replace("[30, 60.0]", "[60.0, 99.9]").replace("decay = 0.25", "decay = 0.5")
    text = text.replace('"pffec"', '"plugged_methods:REFUSING"')
    plan = load_comparison(write(tmp_path, text))
    with pytest.raises(SweepError) as error:
        check_all(plan.runs)
    told = str(error.value)
    assert told.count("cannot be reached") == 1 and "it takes only networks with a gate" in told
    result = CliRunner().invoke(
        app, ["compare", str(tmp_path / "some.toml"), "--out", str(tmp_path / "o")]
    )
    assert result.exit_code == 2 and not list((tmp_path / "o").glob("runs/*"))


def test_a_comparison_ends_in_a_table_and_goes_on_where_it_stopped(tmp_path):
    text = (
        FILE.replace("[30, 60.0]", "[40.0]")
        .replace("[0, 1]", "[0]")
        .replace('"pffec"', '"pffec", "plugged_methods:NO_NUMBER"')
    )
    plan = load_comparison(write(tmp_path, text))
    folder = tmp_path / "out"
    before = lines_of(plan, folder)
    assert {line.waiting for line in before} == {1}
    assert "No run has ended yet" in significance(before)
    result = run_sweep(plan, folder, Here())
    assert len(result.finished) == 3 and len(result.failed) == 1
    lines = {line.method: line for line in write_comparison(plan, folder)}
    assert lines["plugged_methods:NO_NUMBER"].accuracy == ()
    assert "scores of layer" in lines["plugged_methods:NO_NUMBER"].reasons[0]
    assert "Traceback" not in lines["plugged_methods:NO_NUMBER"].reasons[0]
    assert lines["pffec"].removed[0] == pytest.approx(40, abs=2)
    assert lines["pffec"].dense == lines["mine"].dense
    assert lines["mine"].pruning_seconds[0] > 0
    text = (folder / "comparison.md").read_text()
    assert "| mine |" in text and "Fewer than 3 seeds" in text and " *" not in text.split("\n\n")[0]
    assert all((folder / picture).stat().st_size > 1000 for picture in PICTURES)
    trained: list[str] = []

    def never(job):
        trained.append(job.name)
        return quick(job)

    run_sweep(plan, folder, Here(never))
    assert trained == []


def line_of(method: str, *accuracy: float, budget: float = 50.0) -> Line:
    ones = (1.0,) * len(accuracy)
    seeds = tuple(range(len(accuracy)))
    return Line(
        method, "score", budget, seeds, accuracy, *[ones] * 6, reasons=(), waiting=0
    )  # fmt: skip


def test_a_winner_leads_by_more_than_two_deviations():
    close = [line_of("a", 91.0, 92.0, 93.0), line_of("b", 90.0, 90.1, 90.2)]
    assert winners(close) == set()  # 1.9 points ahead, and its own seeds differ by one
    clear = [line_of("a", 92.0, 92.1, 92.2), line_of("b", 90.0, 90.1, 90.2)]
    assert winners(clear) == {("a", 50.0)}
    noisy = [line_of("a", 92.0, 92.1, 92.2), line_of("b", 88.0, 91.9, 90.2)]
    assert winners(noisy) == set()  # the second differs by more from seed to seed
    assert winners([line_of("a", 99.0), line_of("b", 10.0)]) == set()
    assert winners([line_of("a", 99.0, 99.1, 99.2)]) == set()  # nobody to lead
    two = [line_of("a", 92.0, 92.1), line_of("b", 90.0, 90.1)]
    assert winners(two) == set()  # the deviation of two numbers says little
    for lame in (
        replace(clear[0], reasons=("seed 1: the budget is missed, 20.0 % went",)),
        replace(clear[0], waiting=1),
        replace(clear[0], seeds=(0, 1, 3)),
    ):
        assert winners([lame, clear[1]]) == set()
    far = [*close, *(replace(line, budget=75.0) for line in clear)]
    assert winners(far) == {("a", 75.0)}
    marked = [row["method"] for row in rows_of(far)]
    assert marked == ["a", "b", "a *", "b"]


def test_a_method_without_a_result_comes_last():
    rows = rows_of([line_of("none"), line_of("some", 20.0)])
    assert [row["method"] for row in rows] == ["some", "none"]
    assert rows[1]["accuracy %"] == "–"


def test_the_numbers_of_a_line_are_numbers():
    full, none = numbers_of([line_of("none"), line_of("some", 20.0, 22.0)])
    assert full["method"] == "some" and full["accuracy"] == 21.0 and full["seeds"] == 2
    assert full["accuracy_deviation"] == pytest.approx(2**0.5) and full["leads"] is False
    assert none["accuracy"] is None and none["accuracy_deviation"] is None


def test_the_picture_ranks_methods_by_the_budgets_that_all_have(tmp_path: Path):
    lines = [
        line_of("half", 99.0, 99.5),
        *(line_of("low", 90.0, budget=b) for b in (50.0, 75.0)),
        *(line_of("$x_^{", 95.0, 96.0, budget=b) for b in (50.0, 75.0)),  # no mathematics
    ]
    assert ranked(lines) == ["$x_^{", "low", "half"]
    assert accuracy_dots("a $ b", [*lines, line_of("none")], tmp_path / "dots.png")
    assert (tmp_path / "dots.png").stat().st_size > 1000
    assert not accuracy_dots("nothing", [line_of("none")], tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()


def test_methods_are_listed_and_told(tmp_path, monkeypatch):
    run = CliRunner().invoke(app, ["methods"])
    assert run.exit_code == 0
    for name in ("spr", *shipped_methods()):
        assert name in run.output
    one = CliRunner().invoke(app, ["methods", "plugged_methods:METHOD"])
    assert "weight of the term" in one.output and one.exit_code == 0
    wrong = CliRunner().invoke(app, ["methods", "pfec"])
    assert wrong.exit_code == 2
