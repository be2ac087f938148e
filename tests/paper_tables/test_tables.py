"""The paper's tables: what is published, what is ours, and what was not run."""

import csv
import io
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from damaged import NASTY
from image_files import picture, write_split
from tiny_runs import tiny_recipe
from typer.testing import CliRunner

from spr_or.cli import app
from spr_or.paper_tables.ours import Run, Setting, find_runs, image_format, settings
from spr_or.paper_tables.published import (
    DENOMINATORS,
    PROTOCOLS,
    REFERENCE,
    Problem,
    Published,
    read_epoch_times,
    read_published,
)
from spr_or.paper_tables.tables_figures import our_series
from spr_or.paper_tables.tables_report import (
    markdown,
    matches,
    rival_rows,
    spr_rows,
    time_rows,
    write_report,
)
from spr_or.sweeps.sweep_file import load_sweep
from spr_or.training.recipe import Recipe, parse_recipe
from spr_or.training.report import summary as report
from spr_or.utils import palette, pareto

TABLES = REFERENCE.parent / "tables"
PUBLISHED = read_published()


def summary(recipe: Recipe, seed: int, **values: Any) -> dict[str, Any]:
    """What a run of ResNet-20 leaves, with numbers that are easy to follow."""
    return {
        "dense_accuracy": 92.0,
        "accuracy_before_finetune": 70.0,
        "accuracy": 90.0 + seed,
        "masked_filter_weights": 135_000,
        "removed_params_pct": 60.0,
        "macs_dense": 400,
        "macs_compact": 100,
        "parameters": 269_722,
        "seed": seed,
        "dataset": "CIFAR-10 (JPEG q75)",
        "train_images": 50_000,
        "device": "cuda",
        "recipe": recipe.model_dump(mode="json"),
    } | values


def leave(folder: Path, recipe: Recipe, seed: int, **values: Any) -> Run:
    """The folder of a run that never was."""
    folder.mkdir(parents=True)
    found = summary(recipe, seed, **values)
    (folder / "summary.json").write_text(json.dumps(found))
    seconds = {"dense": [9.0, 2.0, 2.0], "spr": [3.0, 3.0, 8.0], "finetune": [4.0]}
    lines = [{"phase": p, "seconds": s} for p, all_ in seconds.items() for s in all_]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Run(folder, found, recipe)


def resnet20(lam: float = 1.1, alpha: float = 0.01, **sections: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": "models.resnet_cifar:resnet20",
        "data": {"source": "cifar10", "crop": 4, "flip": True},
        "spr": {"lam": lam, "alpha": alpha, "lr": 0.1, "variant": "printed"},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return parse_recipe(values)


def line(table: int, lam: float, alpha: float) -> Published:
    (found,) = [p for p in PUBLISHED if (p.table, p.lam, p.alpha) == (table, lam, alpha)]
    return found


# --- what is published ----------------------------------------------------------------------


def test_the_denominators_are_those_of_the_printed_counts() -> None:
    with (REFERENCE / "paper_results.csv").open() as stream:
        rows = [r for r in csv.DictReader(stream) if r["method"] == "SPR" and r["pruned_params"]]
    assert len(rows) == 33
    for row in rows:
        weights = DENOMINATORS[Problem(row["dataset"], row["architecture"])].weights
        share = 100 * float(row["pruned_params"]) / weights
        assert share == pytest.approx(float(row["pruned_pct"]), abs=0.01), row  # rounded or cut


def test_every_published_setting_of_spr_is_one_of_the_recipes() -> None:
    tables = sorted({p.table for p in PUBLISHED if p.method == "SPR"})
    assert tables == [1, 2, 3, 4, 5, 6, 7, 16]
    assert len(list(TABLES.glob("table*.toml"))) == len(tables)
    for number in tables:
        plan = load_sweep(TABLES / f"table{number:02d}.toml")
        lines = [p for p in PUBLISHED if p.table == number and p.method == "SPR"]
        recipes = {p.recipe.model_copy(update={"seeds": (0,), "name": ""}).model_dump_json():
                   p.recipe for p in plan.runs}  # fmt: skip
        assert len(recipes) == len(lines)
        for published in lines:
            protocol = PROTOCOLS[published.problem.dataset]
            found = []
            for recipe in recipes.values():
                name = recipe.data.source
                values = {"dataset": name, "train_images": protocol.train_images}
                run = Run(Path(), summary(recipe, 0, **values), recipe)
                if matches(published, Setting((run,))):
                    found.append(recipe)
            (recipe,) = found
            assert recipe.spr.epochs == protocol.spr_epochs
            assert recipe.finetune.epochs == protocol.finetune_epochs
            assert recipe.data.batch_size == protocol.batch_size


# --- what is ours ---------------------------------------------------------------------------


def test_runs_are_put_together_by_all_but_their_seed(tmp_path: Path) -> None:
    leave(tmp_path / "a" / "seed-0", resnet20(), 0)
    leave(tmp_path / "b" / "seed-1", resnet20(), 1)
    leave(tmp_path / "again", resnet20(), 1, accuracy=0.0)  # a seed that was run twice
    leave(tmp_path / "c", resnet20(spr={"start": "dense"}), 0)
    leave(tmp_path / "d", resnet20(), 0, dataset="CIFAR-10")
    leave(tmp_path / "dense", resnet20(spr={"epochs": 0}), 0)  # shared by a sweep
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "metrics.jsonl").write_text("{}\n")
    runs, unfinished = find_runs(tmp_path)
    assert unfinished == [tmp_path / "broken"] and len(runs) == 5
    found = settings(runs)
    assert sorted(one.seeds for one in found) == [[0], [0], [0, 1]]
    assert {one.problem for one in found} == {Problem("CIFAR-10", "ResNet-20")}
    (both,) = [one for one in found if len(one.runs) == 2]
    kept = [run.summary["accuracy"] for run in both.runs]
    assert both.spread("accuracy") == (statistics.fmean(kept), statistics.stdev(kept))
    with pytest.raises(ValueError, match="there is no folder"):
        find_runs(tmp_path / "none")


@pytest.mark.parametrize("name", NASTY)
def test_a_strange_name_stays_in_its_cell(name: str) -> None:
    head, rule, line = markdown([{"a": name, "b": "1"}]).split("\n")
    assert line.endswith(" | 1 |") and "<" not in line and line.isprintable()


def test_a_row_has_our_figures_in_the_papers_measure_and_ours(tmp_path: Path) -> None:
    runs = [leave(tmp_path / str(seed), resnet20(), seed) for seed in (0, 1, 2)]
    (row,) = spr_rows([line(1, 1.1, 0.01)], settings(runs))
    assert row["published top-1"] == "85.56" and row["top-1"] == "91.00 ± 1.00"
    assert row["zero filters %"] == "50.00 ± 0.00"  # of 270,000, not of the 269,722 there are
    assert row["removed %"] == "60.00 ± 0.00" and row["MACs removed %"] == "75.00 ± 0.00"
    assert (row["seeds"], row["epochs"], row["form"]) == ("0, 1, 2", "200+300+200",
                                                           "printed, gradient")  # fmt: skip
    assert row["differences, options"] == "CIFAR-10 (JPEG q75)"
    (other,) = spr_rows([line(1, 1.7, 0.3)], settings(runs))
    assert {other[key] for key in ("top-1", "zero filters %", "removed %")} == {"not run"}


@pytest.mark.parametrize(
    ("recipe", "values", "said"),
    [
        (resnet20(spr={"epochs": 30}, finetune={"epochs": 5}), {}, "30+5 epochs, not 300+200"),
        (resnet20(), {"train_images": 2560}, "2,560 training images"),
        (resnet20(data={"batch_size": 256}), {}, "batches of 256"),
        (resnet20(data={"crop": 0}), {}, "crop 0, flip True"),
        (resnet20(data={"cutout": 8}), {}, "cutout 8"),
        (resnet20(spr={"schedule": "cosine"}), {}, "cosine schedule"),
        (resnet20(spr={"start": "dense", "include_norm": True}), {}, "spr.include_norm=True"),
        (resnet20(finetune={"distill": 0.5}), {}, "finetune.distill=0.5"),
        (
            resnet20(finetune={"distill": 0.5, "teachers": ["a/x.pt", "cifar10_resnet20"]}),
            {},
            "finetune.teachers=x.pt,cifar10_resnet20",
        ),
        (resnet20(spr={"ignored": ["conv1", "fc"]}), {}, "spr.ignored=conv1,fc"),
        (resnet20(), {"dataset": "cifar10"}, "encoding of cifar10 unknown"),
    ],
)
def test_a_reduced_run_says_so(recipe: Recipe, values: dict[str, Any], said: str) -> None:
    one = Setting((Run(Path(), summary(recipe, 0, **values), recipe),))
    assert said in one.differences


def test_the_papers_protocol_differs_in_nothing() -> None:
    recipe = resnet20(data={"source": "uoft-cs/cifar10"})
    run = Run(Path(), summary(recipe, 0, dataset="uoft-cs/cifar10"), recipe)
    assert Setting((run,)).differences == []


def test_images_encoded_again_are_seen(tmp_path: Path) -> None:
    for kind in ("JPEG", "PNG"):
        folder = tmp_path / kind / "cifar10"
        folder.mkdir(parents=True)
        stream = io.BytesIO()
        picture(0).save(stream, kind)
        write_split(folder / "train-00000-of-00001.parquet", [stream.getvalue()] * 2, [0, 0])
        assert image_format(str(folder), "train") == kind
        recipe = resnet20(data={"source": str(folder)})
        run = Run(Path(), summary(recipe, 0, dataset=str(folder)), recipe)
        assert any("JPEG" in text for text in Setting((run,)).differences) == (kind == "JPEG")
    assert image_format("owner/name", "train") is None


def test_a_budget_matches_no_published_lambda(tmp_path: Path) -> None:
    recipe = resnet20(spr={"target_removed_pct": 60.0})
    one = Setting((Run(tmp_path, summary(recipe, 0), recipe),))
    assert not matches(line(1, 1.1, 0.01), one)


def test_epoch_times_are_medians_of_the_logs(tmp_path: Path) -> None:
    runs = [leave(tmp_path / "a", resnet20(), 0)]
    rows = time_rows(read_epoch_times(), settings(runs))
    first, *others = rows
    assert (first["with SPR"], first["without"], first["ratio"]) == ("3.00", "2.00", "1.50")
    assert first["published ratio"] == "2.00"
    assert len(others) == 3 and {row["with SPR"] for row in others} == {"not run"}


def test_a_rivals_line_stands_beside_our_run_of_the_nearest_budget(tmp_path: Path) -> None:
    def ours(name: str, budget: float) -> Recipe:
        return resnet20(spr={"target_removed_pct": budget}, method={"name": name})

    runs = [leave(tmp_path / f"{b}-{s}", ours("sss", b), s) for b in (20.0, 50.0) for s in (0, 1)]
    runs += [leave(tmp_path / "spr", resnet20(spr={"target_removed_pct": 50.0}), 5)]
    found = settings(runs)
    write_report(tmp_path, found, PUBLISHED, read_epoch_times())
    text = (tmp_path / "tables.md").read_text()
    table = text[text.index("## Table 8:") : text.index("## Table 9:")]
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()]
    (p1,) = [row for row in rows if row[1:3] == ["SSS", "P1"]]  # 44.44 % pruned
    assert p1[3:5] == ["90.80", "44.44"] and p1[6] == "90.50 ± 0.71" and p1[9] == "0, 1"
    others = [row for row in rows if row[1:2] in (["EPFS"], ["PFC"], ["L2PF"])]
    assert others and all(row[5] == "not run" or row[6] == "not run" for row in others)
    nearest = rival_rows(
        [replace(PUBLISHED[0], method="SSS", pruned_pct=p) for p in (1.0, 99.0)], found
    )
    assert [row["top-1"] for row in nearest] == ["90.50 ± 0.71"] * 2
    # A rival has no line among the figures of SPR, nor a λ of its own.
    assert "| sss |" not in text[: text.index("## Table 8:")]
    (sss, *_) = [one for one in found if not one.is_spr]
    assert (sss.lam, sss.alpha, sss.form) == ("", "", "sss")


# --- the pictures ---------------------------------------------------------------------------


def test_each_point_has_the_accuracy_of_its_own_dense_network(tmp_path: Path) -> None:
    dense = {0.5: 99.4, 1.1: 88.9, 1.7: 95.0}
    runs = [
        leave(tmp_path / str(lam), resnet20(lam), 0, dense_accuracy=accuracy)
        for lam, accuracy in dense.items()
    ]
    runs.append(leave(tmp_path / "prox", resnet20(spr={"variant": "exact"}), 0,
                      dense_accuracy=90.5))  # fmt: skip
    runs.append(leave(tmp_path / "again", resnet20(0.5), 1, dense_accuracy=99.0))
    printed, exact = our_series(settings(runs), Setting.macs_removed)
    assert printed.names == ["λ=0.5, α=0.01", "λ=1.1, α=0.01", "λ=1.7, α=0.01"]
    assert printed.dense == pytest.approx([99.2, 88.9, 95.0])  # the first: mean of two seeds
    assert exact.dense == [90.5]
    again, _ = our_series(settings(runs), Setting.macs_removed)
    assert again == printed


def test_no_dense_line_stands_for_runs_that_have_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [
        leave(tmp_path / str(lam), resnet20(lam), 0, dense_accuracy=80.0 + 10 * lam)
        for lam in (0.5, 1.1)
    ]
    lines: list[Any] = []
    monkeypatch.setattr(
        pareto, "draw", lambda series, path, *, dense=(), **rest: lines.extend(dense) or True
    )
    write_report(tmp_path / "out", settings(runs), PUBLISHED, read_epoch_times())
    assert lines and all(label == "published, dense" for label, _, _ in lines)


def test_the_dense_accuracies_are_drawn(tmp_path: Path) -> None:
    shown = {}
    for name, dense in (("with", [99.0, 91.0]), ("without", None)):
        one = pareto.Series("ours", [10.0, 60.0], [98.0, 90.0], palette.BLUE, dense=dense)
        assert pareto.draw([one], tmp_path / f"{name}.png", xlabel="removed (%)")
        shown[name] = (tmp_path / f"{name}.png").read_bytes()
    assert shown["with"] != shown["without"]


# --- the report -----------------------------------------------------------------------------


def test_without_runs_every_figure_of_ours_says_so(tmp_path: Path) -> None:
    write_report(tmp_path, [], PUBLISHED, read_epoch_times())
    text = (tmp_path / "tables.md").read_text()
    headings = [part.split(":")[0] for part in text.split("## Table ")[1:]]
    assert [int(number) for number in headings] == list(range(1, 18))
    with (tmp_path / "tables.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(PUBLISHED) + 4 + 1
    assert {row["top-1"] for row in rows if row["table"] not in ("15", "17")} == {"not run"}
    for image in text.split("](figures/")[1:]:
        name = image.split(")")[0]
        assert (tmp_path / "figures" / name).read_bytes()[:4] == b"\x89PNG"


def test_the_command_reads_real_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spr_or.training.runner import run_recipe

    monkeypatch.setattr(report, "_draw", lambda *arguments: [])
    real = run_recipe(tiny_recipe(), tmp_path / "runs" / "real")
    leave(tmp_path / "runs" / "published", resnet20(), 0)
    leave(tmp_path / "runs" / "other", resnet20(lam=9.0), 0)
    arguments = ["tables", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0 and "3 runs read, 0 not finished" in done.output
    text = (tmp_path / "out" / "tables.md").read_text()
    assert "## Runs without a published counterpart: models.toy:convnet on digits" in text
    assert "## Runs without a published counterpart: ResNet-20 on CIFAR-10" in text
    assert f"| {real['accuracy']:.2f} |" in text
    gained = real["accuracy"] - real["accuracy_before_finetune"]
    assert f"{gained:+.2f}" in text
    figures = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    for name in ("resnet-20-cifar-10", "models-toy-convnet-digits"):
        assert {f"{name}.png", f"{name}-removed.png", f"{name}-macs.png"} <= figures
    wrong = CliRunner().invoke(app, ["tables", str(tmp_path / "none")])
    assert wrong.exit_code == 2 and "there is no folder" in wrong.output
