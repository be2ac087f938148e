"""All that needs a GPU, measured by one command: ``make gpu``, or this script from the repository's root.

1. ``tests``: those marked ``gpu``.
2. ``training``: an epoch of ResNet-20, the fast path against a plain loop, with SPR and without.
3. ``regularizer``: steps of ResNet-20 and ResNet-56 with and without SPR, eager and captured.
4. ``budgets``: ResNet-20 on CIFAR-10 over the paper's 800 epochs, at three budgets.

A step that is finished leaves ``STEP.json`` in ``--out`` and is not repeated; the last one goes on
after its last epoch. So the command can be stopped at any moment, and a GPU may be lent for ten
minutes at a time: keep the folder, bring it along, and start again. After each step the tables
in docs/lab/speed.md are written anew. ``--device cpu --smoke`` does the same in a minute with tiny sizes
and writes the page into ``--out``.

Exit status: 0 all is measured, 1 a step failed, 3 there is no such device, 130 interrupted.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from spr_or.models.resnet_cifar import resnet20, resnet56

from spr_or.bench import regularizer_cost, training
from spr_or.sweeps.pools import LocalPool
from spr_or.sweeps.run_table import seconds
from spr_or.sweeps.sweep import run_sweep
from spr_or.sweeps.sweep_file import load_sweep
from spr_or.utils.files import write_json, write_text
from spr_or.utils.untrusted import UnreadableFile, read_json

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "lab" / "speed.md"
TESTS = ROOT / "tests"
BEGIN, END = "<!-- tables of make gpu -->", "<!-- end of the tables of make gpu -->"
NO_DEVICE = 3
_SMOKE_RUN = (
    "model=models.toy:convnet", "data.source=digits", "data.crop=1", "data.flip=false",
    "data.train_rows=128", "data.eval_rows=64", "data.batch_size=32", "dense.epochs=1",
    "dense.milestones=[]", "spr.epochs=1", "spr.milestones=[]", "finetune.epochs=1",
)  # fmt: skip
_ON_CPU = ("speed.device=cpu", "speed.threads=1", "speed.amp=off", "speed.cuda_graph=false")

Content = dict[str, Any]


class Place(NamedTuple):
    """Where and how much is measured."""

    device: str
    out: Path
    smoke: bool


class StepFailed(RuntimeError):
    """A step that could not be finished; the message says why."""


# --- steps ----------------------------------------------------------------------------------


def run_tests(place: Place) -> Content:
    """The tests that need the device; in a smoke run a file of tests that need none.

    Other files are not even collected: a machine that is lent may lack the solvers that they import.
    """
    report = place.out / "tests.xml"
    marked = [
        str(p) for p in sorted(TESTS.rglob("test_*.py")) if "mark.gpu" in p.read_text("utf-8")
    ]
    chosen = ["tests/utils/test_files.py"] if place.smoke else ["-m", "gpu", *marked]
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *chosen]
    subprocess.run(command, cwd=ROOT, check=False)
    if not report.exists():
        raise StepFailed("pytest has written no report")
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    counts = {
        name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")
    }
    report.unlink()
    if counts["failures"] or counts["errors"] or not counts["tests"]:
        raise StepFailed(
            f"{counts['failures'] + counts['errors']} of {counts['tests']} tests failed"
        )
    return counts


def run_training(place: Place) -> Content:
    """What ``spr-or bench training`` measures, on this device."""
    rows = training.BATCH if place.smoke else training.ROWS[place.device]
    peak = training.peak_flops(place.device)
    workers, limit = (0, 0.1) if place.smoke else (2, 60.0)
    found = training.measure(place.device, rows, workers, limit, peak)
    return {"images": rows, "peak_flops": peak, "rows": [asdict(row) for row in found]}


def run_regularizer(place: Place) -> Content:
    """The steps of ``spr-or bench regularizer``, on this device."""
    limit = 0.1 if place.smoke else 8.0
    rows = [
        row
        for make in (resnet20, resnet56)
        for setting in regularizer_cost.SETTINGS[place.device]
        for row in regularizer_cost.step_rows(
            make(), make.__name__, place.device, setting, limit, print
        )
    ]
    return {"rows": [asdict(row) for row in rows]}


def run_budgets(place: Place) -> Content:
    """The sweep ``gpu_budgets.toml``, from where it stands."""
    overrides = [*(_SMOKE_RUN if place.smoke else ()), *(_ON_CPU if place.device == "cpu" else ())]
    plan = load_sweep(Path(__file__).with_name("gpu_budgets.toml"), overrides)
    folder = place.out / "budgets"
    result = run_sweep(
        plan, folder, LocalPool(1), retry_failed=True,
        on_end=lambda ended: print(f"{ended.job.name}: {ended.error or 'done'}", flush=True),
    )  # fmt: skip
    if result.failed:
        raise StepFailed(
            f"{len(result.failed)} of {len(plan.runs)} runs: {result.failed[0]['error']}"
        )
    hours = [
        {key: value / 3600 for key, value in seconds(folder / "runs" / run.folder_name).items()}
        for run in plan.runs
    ]
    recipe = plan.runs[0].recipe
    epochs = recipe.dense.epochs + recipe.spr.epochs + recipe.finetune.epochs
    return {"epochs": epochs, "rows": result.finished, "hours": hours}


# --- tables ---------------------------------------------------------------------------------


def tests_text(content: Content) -> str:
    """A sentence about the tests."""
    return f"{content['tests'] - content['skipped']} tests that need the device pass."


def training_table(content: Content) -> str:
    """An epoch in four ways."""
    columns = (
        "epoch",
        "images/s",
        "share of peak",
        "times as fast as the plain loop",
        "time over fast",
    )
    rows = [
        (
            row["method"],
            f"{row['images_per_second']:,.0f}",
            f"{100 * row['share_of_peak']:.1f} %",
            f"{row['speedup']:.2f} ± {row['speedup_spread']:.2f}",
            f"{row['over_fast']:.3f} ± {row['over_fast_spread']:.3f}",
        )
        for row in content["rows"]
    ]
    about = (
        f"ResNet-20, batch 128, epochs of {content['images']:,} images, peak "
        f"{content['peak_flops']:.3g} FLOP/s; the aims are 8 times for the fast path and 1.05 with SPR:"
    )
    return f"{about}\n\n{markdown(columns, rows)}"


def regularizer_table(content: Content) -> str:
    """Steps with SPR over those without."""
    columns = ("network", "setting", "step", "ms", "over plain SGD")
    rows = [
        (
            row["network"], row["setting"], row["method"], f"{row['milliseconds']:.2f}",
            f"{row['ratio']:.3f} ± {row['spread']:.3f}",
        )
        for row in content["rows"]
    ]  # fmt: skip
    return f"What SPR adds to a training step:\n\n{markdown(columns, rows, words=3)}"


def budgets_table(content: Content) -> str:
    """Accuracy and size of the runs."""
    columns = (
        "budget",
        "removed",
        "accuracy",
        "dense",
        "MACs, ratio",
        "hours with SPR and fine-tuning",
    )
    rows = []
    for row, hours in zip(content["rows"], content["hours"], strict=True):
        rows.append(
            (
                f"{row['spr.target_removed_pct']:g} %",
                f"{row['removed_params_pct']:.1f} %",
                f"{row['accuracy']:.2f} %",
                f"{row['dense_accuracy']:.2f} %",
                f"{row['macs_dense'] / row['macs_compact']:.2f}",
                f"{hours['spr_seconds'] + hours['finetune_seconds']:.2f}",
            )
        )
    about = f"ResNet-20 on CIFAR-10, {content['epochs']} epochs in all, last epoch, one seed:"
    return f"{about}\n\n{markdown(columns, rows)}"


def markdown(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], words: int = 1) -> str:
    """A table whose first ``words`` columns are words, the others numbers."""
    rules = tuple("---" if i < words else "---:" for i in range(len(columns)))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rules, *rows))


class Step(NamedTuple):
    """What is measured, and how it is shown."""

    measure: Callable[[Place], Content]
    show: Callable[[Content], str]


STEPS = {
    "tests": Step(run_tests, tests_text),
    "training": Step(run_training, training_table),
    "regularizer": Step(run_regularizer, regularizer_table),
    "budgets": Step(run_budgets, budgets_table),
}


def section(results: dict[str, Content]) -> str:
    """What stands between the marks of the page, from the results of the steps."""
    parts = []
    for name, step in STEPS.items():
        if name not in results:
            parts.append(f"Not measured yet: {name}.")
            continue
        result = results[name]
        machine = result["machine"]
        on = f"{machine['device'] or machine['processor']}, torch {machine['torch']}"
        parts.append(f"*{result['date']}, {on}.* {step.show(result['content'])}")
    return "\n\n".join(parts)


def with_section(page: str, text: str) -> str:
    """The page with ``text`` between its two marks; ``ValueError`` where they are missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


# --- the command ----------------------------------------------------------------------------


def measure_all(place: Place, page: Path) -> int:
    """Take the steps that are not finished, and write the page after each; the exit status."""
    place.out.mkdir(parents=True, exist_ok=True)
    text = PAGE.read_text(encoding="utf-8")
    results = {name: content for name in STEPS if (content := finished(place, name)) is not None}
    status = 0
    for name, step in STEPS.items():
        if name in results:
            print(f"{name}: finished on {results[name]['date']}", flush=True)
            continue
        print(f"{name}: begins", flush=True)
        try:
            content = step.measure(place)
        except Exception as error:  # the other steps may do
            print(f"{name}: failed, {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            status = 1
            continue
        machine = regularizer_cost.describe_machine()
        if place.device == "cpu":
            machine["device"] = None
        results[name] = {
            "smoke": place.smoke, "on": place.device, "date": str(date.today()),
            "machine": machine, "content": content,
        }  # fmt: skip
        write_json(place.out / f"{name}.json", results[name])
        write_text(page, with_section(text, section(results)))
    write_text(page, with_section(text, section(results)))
    print(f"tables: {page}")
    return status


def finished(place: Place, name: str) -> Content | None:
    """The result of a step, if it was finished on such a device and at this size."""
    path = place.out / f"{name}.json"
    if not path.exists():
        return None
    try:
        result: Content = read_json(path)
    except UnreadableFile as error:
        print(f"{name}: is repeated ({error})", file=sys.stderr)
        return None
    return result if (result["smoke"], result["on"]) == (place.smoke, place.device) else None


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes; docs stay as they are")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", metavar="DIR")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print(
            "make gpu: torch finds no CUDA device here, so nothing was measured. To see that the steps "
            f"work: {shlex.join([sys.executable, *sys.argv])} --device cpu --smoke",
            file=sys.stderr,
        )
        return NO_DEVICE
    if given.device == "cpu" and not given.smoke:
        parser.error("--device cpu goes with --smoke: the tables are those of a GPU")
    page = given.out / PAGE.name if given.smoke else PAGE
    try:
        return measure_all(Place(given.device, given.out, given.smoke), page)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
