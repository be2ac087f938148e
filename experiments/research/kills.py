"""Runs and sweeps killed at random moments and started again: nothing is lost, to the last bit.

Run ``python experiments/research/kills.py`` from the repository's root (CPU, some minutes; POSIX). It
trains a small network once undisturbed, then again and again in fresh folders, each time ended by
SIGKILL at a random moment and continued, until there were enough kills; every run that comes to its
end is compared with the undisturbed one. Then the same with one that shrinks and is cut exactly, and
with a sweep of eight runs over two workers.
Exit status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sklearn.datasets  # what a run imports late is imported once, before the processes fork
import sklearn.model_selection  # noqa: F401
import torch
import torch._dynamo  # noqa: F401

from spr_or.sweeps.pools import LocalPool
from spr_or.sweeps.sweep import run_sweep
from spr_or.sweeps.sweep_file import load_sweep
from spr_or.training import checkpoint
from spr_or.training.metrics import read_metrics
from spr_or.training.recipe import load_recipe
from spr_or.training.report import run_figures  # noqa: F401
from spr_or.training.runner import run_recipe
from spr_or.utils.terminal import console, show, table

RECIPE = """
model = "models.toy:convnet"
[data]
train_rows = 256
eval_rows = 64
batch_size = 32
crop = 1
[dense]
epochs = 6
[spr]
method = "prox"
epochs = 10
alpha = 0.3
lr = 0.05
[finetune]
epochs = 6
distill = 0.5
[speed]
device = "cpu"
threads = 1
"""
STEERED = """lam = 7.0
target_removed_pct = 40
lam_warmup = 2
bounds_every = 3
"""
SHRINKING = """lam = "auto"
entities = "channels"
target_removed_pct = 40
cut = "exact"
also_removed_pct = { macs = 45 }
shrink = true
"""
SWEEP = """
base = "run.toml"
seeds = [0, 1]
[grid]
spr.lam = [12.0, 4.0]
spr.alpha = [0.1, 0.3]
"""
CLOCKED = ("second", "wait", "latency", "speedup", "overhead")
A_FEW = 4
Work = Callable[[Path], None]


def main() -> None:
    """Kill, continue, compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30, help="kills of single runs, of each kind")
    parser.add_argument("--sweeps", type=int, default=12, help="kills of sweeps")
    parser.add_argument("--seed", type=int, default=4, help="of the moments")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dice = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, settings in (("run", STEERED), ("shrinking", SHRINKING)):
            recipe = RECIPE.replace("[finetune]", settings + "[finetune]")
            (folder / f"{name}.toml").write_text(recipe)
        (folder / "sweep.toml").write_text(SWEEP)
        rows = [
            attack("run", run, differences, arguments.runs, folder / "run", dice),
            attack("shrinking", run, differences, arguments.runs, folder / "shrinking", dice),
            attack("sweep", sweep, sweep_differences, arguments.sweeps, folder / "sweep", dice),
        ]
    screen = console()
    columns = ("what", "kills", "killed in", "brought to an end", "different")
    words = ("what", "killed in", "different")
    show(screen, table(columns, [row[:-1] for row in rows], text=words))
    sys.exit(any(row[-1] for row in rows))


def run(folder: Path) -> None:
    """Start or continue the run in a folder; its parent is named as the recipe."""
    run_recipe(load_recipe(folder.parent.with_suffix(".toml")), folder, resume=True)


def sweep(folder: Path) -> None:
    """Start or continue the sweep in a folder."""
    plan = load_sweep(folder.parents[1] / "sweep.toml")
    result = run_sweep(plan, folder, LocalPool(2, start_method="fork"))
    assert not result.failed, result.failed


def attack(
    what: str,
    work: Work,
    compare: Callable[[Path, Path], list[str]],
    wanted: int,
    place: Path,
    dice: random.Random,
) -> tuple[str, str, str, str, str, bool]:
    """A row of the table: ``wanted`` kills of ``work``, and how what it left differs."""
    whole = place / "whole"
    started = time.monotonic()
    assert ended(work, whole, None) == 0
    length = time.monotonic() - started
    kills, finished, phases = 0, 0, Counter[str]()
    found: list[str] = []
    while kills < wanted:
        folder = place / f"killed-{finished}"
        before = kills
        while True:
            # A few kills for each folder, or most of them would hit its end.
            more = kills < min(wanted, before + A_FEW)
            wait = dice.uniform(0, length / 2) if more else None
            status = ended(work, folder, wait)
            if status == 0:
                break
            if status != -signal.SIGKILL:
                found.append(f"{folder.name}: exit status {status}")
                break
            kills += 1
            phases[phase_of(folder)] += 1
            print(f"{what}: {kills} of {wanted} kills", file=sys.stderr)
        finished += 1
        found += [f"{folder.name}: {text}" for text in compare(whole, folder)]
    moments = ", ".join(f"{phase} {count}" for phase, count in phases.items())
    return what, str(kills), moments, str(finished), "; ".join(found) or "nothing", bool(found)


def ended(work: Work, folder: Path, wait: float | None) -> int:
    """The exit status of a process that works in a folder, killed after ``wait`` seconds."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            sys.stderr = (folder.parent.parent / "errors.txt").open("a")
            work(folder)
            status = 0
        finally:
            os._exit(status)
    if wait is not None:
        time.sleep(wait)
        os.kill(process, signal.SIGKILL)  # one that has ended takes it without complaint
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def phase_of(folder: Path) -> str:
    """Where a run, or the last of a sweep's, stood when it was killed."""
    logs = sorted(folder.rglob("metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    records = read_metrics(logs[-1]) if logs else []
    if not records:
        return "start"
    last = records[-1]
    return "report" if (last["phase"], last["epoch"]) == ("finetune", 5) else last["phase"]


def differences(one: Path, two: Path) -> list[str]:
    """What two finished runs do not share; clocks apart."""
    found = []
    for name in ("compact.safetensors", "dense.safetensors"):
        if (one / name).read_bytes() != (two / name).read_bytes():
            found.append(name)
    for name in (checkpoint.LAST, checkpoint.PREVIOUS, checkpoint.BEST):
        states = [checkpoint.load(folder / "checkpoints" / name) for folder in (one, two)]
        if not equal(*map(without_clocks, states)):
            found.append(name)
    records = [without_clocks(read_metrics(folder / "metrics.jsonl")) for folder in (one, two)]
    if records[0] != records[1]:
        found.append("metrics.jsonl")
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, two)]
    if without_clocks(summaries[0]) != without_clocks(summaries[1]):
        found.append("summary.json")
    known = [{p.name for p in folder.rglob("*")} for folder in (one, two)]
    if known[0] != known[1]:
        found.append(f"files {known[0] ^ known[1]}")
    return found


def sweep_differences(one: Path, two: Path) -> list[str]:
    """What two finished sweeps do not share; clocks apart."""
    found = []
    if (one / "table.csv").read_bytes() != (two / "table.csv").read_bytes():
        found.append("table.csv")
    for run in sorted((one / "runs").iterdir()):
        other = two / "runs" / run.name
        found += [f"{run.name}/{text}" for text in differences(run, other)]
    return found


def equal(one: Any, two: Any) -> bool:
    """Whether two checkpoints hold the same, to the last bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(equal, one, two))
    return bool(one == two)


def without_clocks(value: Any) -> Any:
    """A record, summary or checkpoint without what a clock measured."""
    if isinstance(value, list):
        return [without_clocks(item) for item in value]
    if isinstance(value, dict):
        return {
            key: without_clocks(item)
            for key, item in value.items()
            if not any(word in str(key) for word in CLOCKED)
        }
    return value


if __name__ == "__main__":
    main()
