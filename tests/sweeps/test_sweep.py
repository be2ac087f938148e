"""Sweeps: what runs, that nothing runs twice, and that every engine gives the same table."""

import csv
import functools
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from forking_server import Server
from processes import wait_until_gone
from sweep_server import quick
from tiny_runs import assert_identical
from typer.testing import CliRunner

from spr_or.cli import app
from spr_or.sweeps import pools
from spr_or.sweeps.jobs import Job, dense_folder_name, dense_recipe, run_job
from spr_or.sweeps.pools import LocalPool
from spr_or.sweeps.run_table import write_tables
from spr_or.sweeps.show import figure, means
from spr_or.sweeps.sweep import JobEnded, run_sweep
from spr_or.sweeps.sweep_file import SweepError, SweepPlan, load_sweep
from spr_or.training.checkpoint import load
from spr_or.training.metrics import read_metrics
from spr_or.training.recipe import RecipeError, load_recipe
from spr_or.training.report import summary as report
from spr_or.utils import folder_lock, pareto

BASE = """
model = "models.toy:convnet"
[data]
train_rows = 256
eval_rows = 64
batch_size = 32
crop = 1
[dense]
epochs = 2
[spr]
epochs = 3
lam = 7.0
alpha = 0.3
lr = 0.05
method = "prox"
[finetune]
epochs = 2
[speed]
device = "cpu"
threads = 1
"""
GRID = """
base = "base.toml"
seeds = [0, 1]
[grid]
spr.lam = [12.0, 4.0]
"spr.alpha" = [0.1, 0.3]
"""
RUNS = 8  # of GRID
DENSE = 2


class Here:
    """A pool without processes: the same work, done when it is waited for."""

    def __init__(self, work: Callable[[Job], str | None] = quick) -> None:
        self.work = work
        self.jobs: deque[Job] = deque()

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def room(self) -> bool:
        return True

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def wait(self) -> tuple[Job, str | None]:
        job = self.jobs.popleft()
        return job, self.work(job)


def written(folder: Path, sweep: str = GRID, base: str = BASE) -> Path:
    (folder / "base.toml").write_text(base)
    path = folder / "sweep.toml"
    path.write_text(sweep)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nothing disturbed: its file, and its folder ``out``."""
    folder = tmp_path_factory.mktemp("sweep")
    run_sweep(load_sweep(written(folder)), folder / "out", Here())
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


# --- the plan -------------------------------------------------------------------------------


def test_a_grid_is_every_combination_for_every_seed(tmp_path: Path) -> None:
    plan = load_sweep(written(tmp_path), ["dense.epochs=5"])
    assert plan.keys == ("spr.lam", "spr.alpha")
    found = [(p.recipe.spr.lam, p.recipe.spr.alpha, p.recipe.seeds) for p in plan.runs]
    expected = [
        (lam, alpha, (seed,)) for lam in (12.0, 4.0) for alpha in (0.1, 0.3) for seed in (0, 1)
    ]
    assert found == expected
    assert {p.recipe.dense.epochs for p in plan.runs} == {5}
    assert plan.runs[0].folder_name == "spr.lam=12.0,spr.alpha=0.1,seed=0"


def test_what_the_command_sets_holds_or_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    plan = load_sweep(path, ["seeds=[7]", "spr.lr=0.5"])
    assert {(p.seed, p.recipe.spr.lr) for p in plan.runs} == {(7, 0.5)}
    with pytest.raises(SweepError, match="its runs change spr.lam, so --set cannot"):
        load_sweep(path, ["spr.lam=1.0"])


def test_a_list_changes_what_each_run_names(tmp_path: Path) -> None:
    text = """
    base = "base.toml"
    [set]
    spr.lr = 0.01
    model_kwargs.num_classes = 11
    [[runs]]
    spr.lam = 1.0
    data.source = "a/b c"
    [[runs]]
    spr.method = "gradient"
    dense.milestones = [1, 2]
    """
    one, two = load_sweep(written(tmp_path, text)).runs
    assert (one.recipe.spr.lam, one.recipe.spr.method, one.recipe.spr.lr) == (1.0, "prox", 0.01)
    assert one.recipe.model_kwargs == {"num_classes": 11} and one.recipe.data.source == "a/b c"
    assert (two.recipe.spr.method, two.recipe.dense.milestones) == ("gradient", (1, 2))
    assert "/" not in one.folder_name and " " not in one.folder_name
    other = load_sweep(written(tmp_path, text.replace("a/b c", "a-b-c"))).runs[0]
    assert other.folder_name != one.folder_name


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("base = 'base.toml'", SweepError, r"either \[grid\] or \[\[runs\]\]"),
        (GRID + "[[runs]]\nspr.lam = 1.0", SweepError, "not both"),
        (GRID.replace("base.toml", "none.toml"), SweepError, "'none.toml' is neither in"),
        (GRID.replace("seeds", "sedes"), SweepError, "sedes: no such key; a sweep file has base"),
        (GRID.replace("[12.0, 4.0]", "12.0"), SweepError, "spr.lam must be a list of values"),
        (GRID.replace("[12.0, 4.0]", "[4.0, 4.0]"), SweepError, "names the run .* twice"),
        (
            GRID.replace("[12.0, 4.0]", "[-1.0]"),
            RecipeError,
            r"sweep.toml: spr.lam=-1.0: lam must be",
        ),
        (BASE, SweepError, r"sweep.toml is a recipe, not a sweep: spr-or run .*toml takes it"),
        (GRID.replace("spr.lam", "spr.lamb"), RecipeError, "did you mean 'lam'"),
        (GRID.replace("spr.lam", "seeds"), SweepError, "seeds belong at the top"),
        (GRID.replace("[12.0, 4.0]", "[2020-01-01]"), SweepError, "not JSON serializable"),
        ("base = ", SweepError, "no valid TOML"),
    ],
)
def test_a_wrong_sweep_is_refused(
    tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_sweep(written(tmp_path, text))


# --- runs -----------------------------------------------------------------------------------


def test_a_run_of_a_sweep_is_the_run_alone_to_the_last_bit(whole: Path, tmp_path: Path) -> None:
    assert len(list((whole / "out" / "dense").iterdir())) == DENSE
    recipe = load_recipe(whole / "base.toml", ["spr.lam=4.0", "spr.alpha=0.1", "seeds=[1]"])
    quick(Job("alone", recipe, tmp_path / "runs" / "alone"))
    alone = tmp_path / "runs" / "alone"
    swept = whole / "out" / "runs" / "spr.lam=4.0,spr.alpha=0.1,seed=1"
    for name in ("compact.safetensors", "dense.safetensors"):
        assert (alone / name).read_bytes() == (swept / name).read_bytes()
    for name in ("last.pt", "previous.pt", "best.pt"):
        one, two = (load(folder / "checkpoints" / name) for folder in (alone, swept))
        assert_identical(one, two, name)
    records = [read_metrics(folder / "metrics.jsonl") for folder in (alone, swept)]
    for record in (*records[0], *records[1]):
        for clocked in [key for key in record if "second" in key or "wait" in key]:
            del record[clocked]
    assert records[0] == records[1] and len(records[0]) == 7
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (alone, swept)]
    for summary in summaries:
        summary["name"] = summary["recipe"]["name"] = ""
        for clocked in ("epoch_seconds", "data_wait_pct"):
            del summary[clocked]
    assert summaries[0] == summaries[1]


def test_the_table_is_sorted_and_says_what_the_runs_say(whole: Path) -> None:
    table = rows(whole / "out" / "table.csv")
    keys = [(float(r["spr.lam"]), float(r["spr.alpha"]), int(r["seed"])) for r in table]
    assert keys == sorted(keys) and len(set(keys)) == RUNS
    for row in table:
        name = f"spr.lam={row['spr.lam']},spr.alpha={row['spr.alpha']},seed={row['seed']}"
        summary = json.loads((whole / "out" / "runs" / name / "summary.json").read_text())
        assert float(row["accuracy"]) == summary["accuracy"]
        assert int(row["removed_params"]) == summary["removed_params"]
        assert summary["recipe"]["spr"]["lam"] == float(row["spr.lam"])
    assert not any("latency" in key or "seconds" in key for key in table[0])
    times = rows(whole / "out" / "times.csv")
    assert len(times) == RUNS and all(float(row["spr_seconds"]) > 0 for row in times)
    assert rows(whole / "out" / "failed.csv") == []


def test_what_removes_nothing_and_what_collapses_are_rows_with_a_note(tmp_path: Path) -> None:
    sweep = 'base = "base.toml"\n[grid]\nspr.lam = [0.0, 1e-6, 1e6, "0.5 max"]\n'
    base = BASE.replace("dense]\nepochs = 2", "dense]\nepochs = 6").replace("0.3", "0.1")
    plan = load_sweep(written(tmp_path, sweep, base))
    result = run_sweep(plan, tmp_path / "out", Here())
    assert result.failed == []
    notes = {row["spr.lam"]: row["note"] for row in rows(tmp_path / "out" / "table.csv")}
    assert notes["0.0"] == "" and notes["1e-06"] == "nothing removed"
    assert notes["1000000.0"] == "collapsed"
    assert run_sweep(plan, tmp_path / "out", Here()).failed == []  # and it stands when run again


def test_a_finished_sweep_does_nothing_and_guards_its_recipe(whole: Path) -> None:
    def work(job: Job) -> str | None:
        raise AssertionError(job)

    result = run_sweep(load_sweep(whole / "sweep.toml"), whole / "out", Here(work))
    assert len(result.finished) == RUNS
    changed = load_sweep(whole / "sweep.toml", ["finetune.epochs=9"])
    with pytest.raises(SweepError, match="another recipe.*finetune.epochs was 2, now 9"):
        run_sweep(changed, whole / "out", Here(work))


def test_failures_stand_apart_and_are_retried_on_demand(tmp_path: Path) -> None:
    text = GRID.replace("[12.0, 4.0]", "[4.0]").replace('"spr.alpha" = [0.1, 0.3]',
                                                          "spr.lr = [1e30, 0.05]")  # fmt: skip
    plan = load_sweep(written(tmp_path, text.replace("[0, 1]", "[0]")))
    ended: list[JobEnded] = []
    result = run_sweep(plan, tmp_path / "out", Here(), on_end=ended.append)
    assert [row["spr.lr"] for row in result.finished] == [0.05]
    (failed,) = rows(tmp_path / "out" / "failed.csv")
    assert failed["spr.lr"] == "1e+30" and "the loss became" in failed["error"]
    assert "Traceback" in Path(failed["traceback"]).read_text()
    told = [(p.error is None, p.done, p.total) for p in ended]
    assert told == [(True, 0, 2), (False, 1, 2), (True, 2, 2)]  # the dense phase first
    tried: list[str] = []

    def work(job: Job) -> str | None:
        tried.append(job.name)
        return quick(job)

    run_sweep(plan, tmp_path / "out", Here(work))
    assert tried == []
    run_sweep(plan, tmp_path / "out", Here(work), retry_failed=True)
    assert tried == ["spr.lam=4.0,spr.lr=1e+30,seed=0"]


def test_a_dense_phase_that_fails_takes_its_runs_along(tmp_path: Path) -> None:
    plan = load_sweep(written(tmp_path, GRID, BASE.replace("[dense]", "[dense]\nlr = 1e30")))
    result = run_sweep(plan, tmp_path / "out", Here())
    assert result.finished == [] and len(result.failed) == RUNS
    error = Path(result.failed[0]["traceback"]).read_text()
    assert error.startswith("in its dense phase:") and "dense.lr" in error


def test_one_sweep_at_a_time_in_a_folder(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock, "_GRACE", 0.3)  # nobody is about to let go of the lock
    plan = load_sweep(whole / "sweep.toml", ["finetune.epochs=1"])

    def work(job: Job) -> str | None:
        with pytest.raises(SweepError, match="another sweep is at work"):
            run_sweep(plan, tmp_path / "out", Here())
        return "stopped"

    result = run_sweep(plan, tmp_path / "out", Here(work))
    assert len(result.failed) == RUNS


def _copied(whole: Path, folder: Path) -> tuple[SweepPlan, Path]:
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    return load_sweep(folder / "sweep.toml"), folder / "out"


@pytest.mark.parametrize(
    ("damaged", "content"),
    [
        *(("summary", text) for text in ["cut", "", '{"other": 1}', "\\xff", "[" * 100_000]),
        *((files, "cut") for files in ["recipe", "both", "dense", "dense recipe"]),
        ("both", "[1, 2]"),
    ],
)
def test_damaged_files_do_not_stop_a_sweep(
    whole: Path, tmp_path: Path, damaged: str, content: str
) -> None:
    plan, out = _copied(whole, tmp_path)
    run, *_ = sorted((out / ("dense" if "dense" in damaged else "runs")).iterdir())
    names = {
        "summary": ["summary.json"],
        "recipe": ["recipe.json"],
        "both": ["summary.json", "recipe.json"],
        "dense": ["summary.json"],
        "dense recipe": ["summary.json", "recipe.json"],
    }[damaged]
    for name in names:
        whole_text = (run / name).read_text()
        text = whole_text[: len(whole_text) // 2] if content == "cut" else content
        (run / name).write_bytes(text.encode("latin-1").replace(b"\\xff", b"\xff"))
    if "dense" in damaged:  # and a run that needs it
        shutil.rmtree(next(r for r in (out / "runs").iterdir() if r.name.endswith("seed=0")))
    tried: list[str] = []

    def work(job: Job) -> str | None:
        tried.append(job.folder.name)
        return quick(job)

    told: list[str] = []
    result = run_sweep(plan, out, Here(work), warn=told.append)
    assert (len(result.finished), result.failed) == (RUNS, [])
    assert rows(out / "table.csv") == rows(whole / "out" / "table.csv")
    if damaged == "recipe":  # the summary holds it, too
        assert (tried, told) == ([], [])
    else:
        assert run.name in tried and len(tried) == (2 if "dense" in damaged else 1)
        (message,) = told
        assert str(run / "summary.json") in message and "repeated" in message
    assert json.loads((run / "summary.json").read_text())["recipe"]


def test_a_begun_run_with_a_damaged_recipe_is_begun_anew(whole: Path, tmp_path: Path) -> None:
    """Its checkpoints may be those of any recipe, so they are not taken."""
    plan, out = _copied(whole, tmp_path)
    one, other = sorted((out / "runs").iterdir())[:2]
    shutil.rmtree(one / "checkpoints")
    shutil.copytree(other / "checkpoints", one / "checkpoints")
    (one / "summary.json").unlink()
    (one / "recipe.json").write_text('{"model": "models.toy:conv')
    told: list[str] = []
    result = run_sweep(plan, out, Here(), warn=told.append)
    assert len(result.finished) == RUNS and "recipe.json is damaged" in told[0]
    assert rows(out / "table.csv") == rows(whole / "out" / "table.csv")


def test_half_precision_has_a_dense_phase_of_its_own(tmp_path: Path) -> None:
    plan = load_sweep(written(tmp_path, GRID.replace("spr.lam = [12.0, 4.0]",
                                                     'speed.amp = ["off", "bf16"]')))  # fmt: skip
    names = {(p.recipe.speed.amp, dense_folder_name(dense_recipe(p.recipe))) for p in plan.runs}
    assert len(names) == 4 and len({name for _, name in names}) == 4  # for each seed, too
    threads = plan.runs[0].recipe.speed.model_copy(update={"threads": 7})
    same = plan.runs[0].recipe.model_copy(update={"speed": threads})
    assert dense_folder_name(dense_recipe(same)) == dense_folder_name(
        dense_recipe(plan.runs[0].recipe)
    )


# --- processes ------------------------------------------------------------------------------


def _dies(job: Job) -> str | None:
    if "12.0" in job.name:
        os.kill(os.getpid(), signal.SIGKILL)
    job.folder.mkdir(parents=True, exist_ok=True)
    return None if "seed=0" in job.name else "no\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="spawning would import torch again")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_worker_that_dies_takes_one_run_with_it(tmp_path: Path) -> None:
    plan = load_sweep(written(tmp_path, base=BASE.replace("epochs = 2", "epochs = 0", 1)))
    pool = LocalPool(2, _dies, start_method="fork")
    errors: dict[str, str | None] = {}
    run_sweep(plan, tmp_path / "out", pool, on_end=lambda p: errors.update({p.job.name: p.error}))
    assert len(errors) == RUNS
    for name, error in errors.items():
        if "12.0" in name:
            assert error is not None and "WorkerDied" in error and "SIGKILL" in error
        else:
            assert error == (None if "seed=0" in name else "no")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="spawning would import torch again")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_worker_that_dies_while_it_waits_is_replaced(tmp_path: Path) -> None:
    recipe = load_sweep(written(tmp_path)).runs[0].recipe
    jobs = [Job(f"{number}, seed=0", recipe, tmp_path / str(number)) for number in range(2)]
    with LocalPool(1, _dies, start_method="fork") as pool:
        for job in jobs:
            pool.submit(job)
            assert pool.wait() == (job, None)
            (worker,) = multiprocessing.active_children()
            worker.kill()
            worker.join()


def _sleeps(job: Job) -> str | None:
    time.sleep(120)
    return None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="spawning would import torch again")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("when", ["_start", "send"])
def test_ctrl_c_while_a_worker_is_started_ends_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Interrupted before the pool has noted the worker, or the job that it got."""
    plan = load_sweep(written(tmp_path))
    job = Job("one", plan.runs[0].recipe, tmp_path / "one")
    owner: Any = LocalPool if when == "_start" else Connection
    original = getattr(owner, when)

    def pressed(self: Any, *arguments: Any) -> Any:
        answer = original(self, *arguments)
        os.kill(os.getpid(), signal.SIGINT)
        return answer

    with pytest.raises(KeyboardInterrupt), LocalPool(1, _sleeps, start_method="fork") as pool:
        monkeypatch.setattr(owner, when, pressed)
        pool.submit(job)
    assert multiprocessing.active_children() == []


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the server forks")
def test_a_killed_sweep_repeats_no_finished_run(whole: Path, tmp_path: Path) -> None:
    server = Server("sweep_server.py")
    out = tmp_path / "out"
    finished: dict[str, int] = {}
    try:
        for wanted in (1, 3, 6):
            process = server.ask(f"{whole / 'sweep.toml'} {out}")
            until = time.monotonic() + 300
            while len(_finished(out)) < wanted and time.monotonic() < until:
                time.sleep(0.002)
            os.kill(process, signal.SIGKILL)
            assert server.ask("wait") == -signal.SIGKILL
            for worker in _workers(out):
                wait_until_gone(worker, 20)
            after = _finished(out)
            assert finished.items() <= after.items()  # none was written again
            finished = after
            assert wanted <= len(finished) < RUNS
        server.ask(f"{whole / 'sweep.toml'} {out}")
        assert server.ask("wait") == 0
    finally:
        server.close()
    assert finished.items() <= _finished(out).items()
    assert (out / "table.csv").read_bytes() == (whole / "out" / "table.csv").read_bytes()
    assert not list((out / "runs").glob("*/error.txt"))


def _finished(out: Path) -> dict[str, int]:
    """The finished runs, and when each was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("runs/*/summary.json")}


def _workers(out: Path) -> set[int]:
    return {int(line.split()[0]) for line in (out / "log.txt").read_text().splitlines()}


@pytest.mark.slow  # Ray alone takes ten seconds to start and to end
def test_two_ray_workers_give_the_table_of_the_local_engine(whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is an optional extra")
    from spr_or.sweeps.pools import RayPool

    log = tmp_path / "log"
    log.mkdir()

    def work(job: Job) -> str | None:  # within this function, so that Ray ships its code

        report._draw = lambda *arguments: []
        report.latency_ms = lambda *arguments: [1.0, 1.0]
        report.spr_step_overhead = lambda *arguments: 1.0
        (log / str(os.getpid())).touch()
        return run_job(job)

    plan = load_sweep(whole / "sweep.toml", ["seeds=[1]"])
    run_sweep(plan, tmp_path / "out", RayPool(2, work))
    assert len(list(log.iterdir())) == 2
    expected = [row for row in rows(whole / "out" / "table.csv") if row["seed"] == "1"]
    assert len(expected) == RUNS / 2
    assert rows(tmp_path / "out" / "table.csv") == expected


# --- what is shown --------------------------------------------------------------------------


def test_the_front_is_what_nothing_beats() -> None:
    points = [(float(x * 7 % 11), float(x * 5 % 13)) for x in range(40)]
    expected = {
        p for p in points if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points)
    }
    found = pareto.front(points)
    assert {points[i] for i in found} == expected and len(found) == len(expected)
    assert [points[i][0] for i in found] == sorted(points[i][0] for i in found)


def test_means_are_over_the_seeds_of_a_setting(whole: Path, tmp_path: Path) -> None:
    plan = load_sweep(whole / "sweep.toml")
    table, _ = write_tables(plan, whole / "out" / "runs", whole / "out")
    found = means(plan.keys, table)
    assert [m.setting for m in found] == [("4.0", "0.1"), ("4.0", "0.3"), ("12.0", "0.1"),
                                          ("12.0", "0.3")]  # fmt: skip
    one, two = (row["accuracy"] for row in table[:2])
    assert found[0].accuracy == pytest.approx((one + two) / 2)
    assert found[0].deviation == pytest.approx(abs(one - two) / 2**0.5)
    assert figure("title", plan.keys, table, tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").read_bytes()[:4] == b"\x89PNG"


# Spawned workers are those of the command; a forked one has imported torch already. It cannot train where
# this process had threads of autograd for a device, which other tests start where torch knows CUDA.
_FORK = pytest.param(
    "fork", marks=pytest.mark.skipif(torch.version.cuda is not None, reason="autograd's threads")
)


@pytest.mark.parametrize("start", [_FORK, pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_the_command_lists_runs_and_explains(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No pictures of each run.
    pool = functools.partial(LocalPool, work=quick, start_method=start)
    monkeypatch.setattr(pools, "LocalPool", pool)
    cli = CliRunner()
    text = GRID.replace("[12.0, 4.0]", "[4.0]").replace("[0.1, 0.3]", "[0.3]")
    sweep = str(written(tmp_path, text.replace("[0, 1]", "[0]")))
    out = ["--out", str(tmp_path / "out")]
    listed = cli.invoke(app, ["sweep", sweep, *out, "--dry-run"])
    assert listed.exit_code == 0 and "1 run, 1 dense phase\n" in listed.output
    assert not (tmp_path / "out").exists()
    wrong = cli.invoke(app, ["sweep", str(tmp_path / "none.toml")])
    assert wrong.exit_code == 2 and "no sweep file" in wrong.output
    out += ["--set", "dense.epochs=0"]  # one report less to wait for
    done = cli.invoke(app, ["sweep", sweep, *out])
    assert done.exit_code == 0, done.output
    for name in ("table.csv", "times.csv", "failed.csv", "pareto.png"):
        assert (tmp_path / "out" / name).exists()
    again = cli.invoke(app, ["sweep", sweep, *out, "--dry-run"])
    assert "finished" in again.output


def test_data_that_are_missing_end_a_sweep_before_any_run(tmp_path: Path) -> None:
    sweep = written(tmp_path, base=BASE.replace("[data]", '[data]\nsource = "not/here/at-all"'))
    arguments = ["sweep", str(sweep), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert result.output.count('data.source = "not/here/at-all": no folder at') == 1
    assert "SPR_OR_DATA" in result.output and not (tmp_path / "out" / "runs").exists()


def test_without_ray_the_engine_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    sweep = str(written(tmp_path))
    result = CliRunner().invoke(app, ["sweep", sweep, "--engine", "ray", "--out", str(tmp_path)])
    assert result.exit_code == 2 and "pip install 'spr-or[ray]'" in result.output
