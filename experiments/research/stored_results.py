"""Keep finished runs in the project, and write the page that shows them.

    python experiments/research/stored_results.py keep cifar10_resnet20 RUN …
    python experiments/research/stored_results.py page cifar10_resnet20
    python experiments/research/stored_results.py compare digits FOLDER

``keep`` copies the recipe, ``summary.json``, ``metrics.jsonl`` and, where the run's folder has it, the
compact network of each run into ``experiments/results/NAME/RUN``, and with ``--dense FILE`` a dense
network with its hash. ``page`` makes the tables of ``docs/lab/NAME.md`` between its marks, and those
pictures that the page shows, from what is kept: accuracy, and the regimes of all entities in the run
of SPR that lost least. ``compare`` keeps the runs of a comparison of methods without their networks,
and puts its table and picture on ``docs/lab/methods.md``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from spr_or.training.report.run_figures import each_entity
from spr_or.utils.files import file_hash, write_aside, write_text
from spr_or.utils.palette import BLUE, GREEN, GREY, ORANGE

ROOT = Path(__file__).parents[2]
COMPACT = "compact.safetensors"
KEPT = ("recipe.json", "summary.json", "metrics.jsonl", COMPACT)
BEGIN, END = "<!-- written by stored_results.py -->", "<!-- end -->"
FORMS = {
    ("prox", "exact"): ("ProxSGD, exact", BLUE, "o"),
    ("gradient", "exact"): ("gradient, exact", GREEN, "s"),
    ("gradient", "printed"): ("gradient, printed", ORANGE, "^"),
}


def results(name: str) -> Path:
    """The folder of the kept runs."""
    return ROOT / "experiments" / "results" / name


def keep(name: str, runs: list[Path], dense: Path | None) -> None:
    """Copy finished runs; a run without a summary is refused."""
    for run in runs:
        if not (run / "summary.json").is_file():
            sys.exit(f"{run} has no summary.json: the run is not finished")
        place = results(name) / run.name
        place.mkdir(parents=True, exist_ok=True)
        for file in KEPT:
            if file != COMPACT or (run / file).exists():
                shutil.copyfile(run / file, place / file)
    if dense is not None:
        target = results(name) / "dense.safetensors"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(dense, target)
        digest = file_hash(target)
        write_text(target.parent / "SHA256SUMS", f"{digest}  {target.name}\n")


def load(name: str) -> list[dict[str, Any]]:
    """The summaries of the kept runs, with their records."""
    found = []
    for file in sorted(results(name).glob("*/summary.json")):
        summary = json.loads(file.read_text(encoding="utf-8"))
        lines = (file.parent / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        found.append(summary | {"run": file.parent.name, "records": list(map(json.loads, lines))})
    return found


def form_of(summary: dict[str, Any]) -> str:
    """ProxSGD or gradient, exact or printed; of another method its name."""
    recipe = summary["recipe"]
    if (name := recipe.get("method", {}).get("name", "spr")) != "spr":
        return name
    return FORMS[recipe["spr"]["method"], recipe["spr"]["variant"]][0]


def seconds(summary: dict[str, Any], phase: str) -> float | None:
    """Mean seconds of an epoch of a phase."""
    found = [r["seconds"] for r in summary["records"] if r["phase"] == phase]
    return statistics.fmean(found) if found else None


def table(runs: list[dict[str, Any]]) -> str:
    """A line for each run, by form, budget and seed."""
    head = (
        "| form | entities | α | min_keep | budget | cutout | epochs | fine-tuned from | seed | removed "
        "| MACs left | held-out | test | below dense | before fine-tuning | SPR epoch | fine-tuning epoch |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: "
        "| ---: | ---: | ---: |\n"
    )
    lines = []
    for run in sorted(runs, key=_order):
        spr = run["recipe"]["spr"]
        held = run.get("held_out_accuracy")
        shrink = "" if spr.get("shrink") else " (whole)"
        lines.append(
            f"| {form_of(run)}{shrink} | {_entities(spr)} | {_alpha(run)} "
            f"| {spr.get('min_keep', 1)} | {_budgets(spr)} "
            f"| {run['recipe']['data'].get('cutout') or ''} | {_epochs(run)} "
            f"| {_start(run)} | {run['seed']} "
            f"| {run['removed_params_pct']:.1f} % | {100 * run['macs_compact'] / run['macs_dense']:.1f} % "
            f"| {_number(held, ' %')} | {run['accuracy']:.2f} % "
            f"| {run['dense_accuracy'] - run['accuracy']:.2f} | {run['accuracy_before_finetune']:.2f} % "
            f"| {_number(seconds(run, 'spr'), ' s')} "
            f"| {_number(seconds(run, 'finetune'), ' s')} |\n"
        )
    return head + "".join(lines)


def _entities(spr: dict[str, Any]) -> str:
    """The kind of entities, and the layers that keep all of theirs."""
    ignored = ", ".join(spr.get("ignored", ()))
    return spr.get("entities", "filters") + (f", not of `{ignored}`" if ignored else "")


def _budgets(spr: dict[str, Any]) -> str:
    """What shall go, of which measure; parameters are not named."""
    asked = {spr.get("target_of", "params"): spr["target_removed_pct"]} | spr.get(
        "also_removed_pct", {}
    )
    return ", ".join(
        f"{percent:g} %" + ("" if of == "params" else f" of {of}") for of, percent in asked.items()
    )


def _alpha(run: dict[str, Any]) -> str:
    """Alpha of a run of SPR; other methods have none."""
    other = run["recipe"].get("method", {}).get("name", "spr") != "spr"
    return "" if other else f"{run['recipe']['spr']['alpha']:g}"


def _start(run: dict[str, Any]) -> str:
    """Whose weights fine-tuning began with, at which rate, the share of teachers and how many."""
    fine = run["recipe"]["finetune"]
    first = next(r["lr"] for r in run["records"] if r["phase"] == "finetune")
    count = 1 + len(fine.get("teachers", ()))
    who = "teacher" if count == 1 else f"{count} teachers"
    teacher = f", {who} {fine['distill']:g}" if fine["distill"] else ""
    return f"{fine.get('start', 'last')} at {first:.2g}{teacher}"


def _epochs(run: dict[str, Any]) -> str:
    """Epochs of the two phases, as they were run, and their numbers where these are not float32."""
    count = [sum(r["phase"] == phase for r in run["records"]) for phase in ("spr", "finetune")]
    numbers = " in bf16" if run["recipe"].get("speed", {}).get("amp") == "bf16" else ""
    return " + ".join(map(str, count)) + numbers


def _order(run: dict[str, Any]) -> tuple[str, float, int]:
    return form_of(run), run["recipe"]["spr"]["target_removed_pct"], run["seed"]


def _number(value: float | None, unit: str) -> str:
    return (
        "not measured"
        if value is None
        else f"{value:.2f}{unit}"
        if unit == " %"
        else f"{value:.0f}{unit}"
    )


def integrality(runs: list[dict[str, Any]]) -> str:
    """How integral the relaxation was at the end of the SPR phase, or before its early cut."""
    head = "| run | entities | zero | y~ = 1 | 0 < y~ < 1 |\n| --- | ---: | ---: | ---: | ---: |\n"
    lines = []
    for run in sorted(runs, key=_order):
        last = [
            r for r in run["records"] if r["phase"] == "spr" and r.get("lam") and "fractional" in r
        ]
        if not last:
            continue
        total = sum(last[-1]["regimes"].values())
        zero, between = last[-1]["regimes"]["zero"], last[-1]["fractional"]
        lines.append(
            f"| {run['run']} | {total} | {100 * zero / total:.1f} % "
            f"| {100 * (total - zero - between) / total:.1f} % | {100 * between / total:.1f} % |\n"
        )
    return head + "".join(lines) if lines else ""


def picture(runs: list[dict[str, Any]], path: Path) -> None:
    """Accuracy on the test images over what is removed: parameters and multiplications."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    marks = {label: (colour, marker) for label, colour, marker in FORMS.values()}
    for run in runs:
        form = form_of(run)
        groups[form if form in marks else "other methods"].append(run)
    for label, members in groups.items():
        colour, marker = marks.get(label, (GREY, "D"))
        for axis, removed in zip(axes, (_params, _macs), strict=True):
            members.sort(key=removed)
            axis.plot([removed(r) for r in members], [r["accuracy"] for r in members], marker,
                      color=colour, label=label, linestyle="none")  # fmt: skip
    for axis, what in zip(axes, ("parameters", "multiplications"), strict=True):
        axis.axhline(runs[0]["dense_accuracy"], color=GREY, linestyle="--", label="dense")
        axis.set_xlabel(f"{what} removed (%)")
        axis.set_xlim(0, 100)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("accuracy on the test images (%)")
    axes[0].legend(frameon=False, loc="lower left")
    write_aside(path, lambda aside: figure.savefig(aside, dpi=150))
    plt.close(figure)


def _params(run: dict[str, Any]) -> float:
    return run["removed_params_pct"]


def _macs(run: dict[str, Any]) -> float:
    return 100 * (1 - run["macs_compact"] / run["macs_dense"])


def write_page(name: str) -> None:
    """Replace what stands between the marks of the page."""
    runs = load(name)
    if not runs:
        sys.exit(f"nothing is kept in {results(name)}")
    page = ROOT / "docs" / "lab" / f"{name}.md"
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = f"{table(runs)}\n{integrality(runs)}"
    write_text(page, f"{before}{BEGIN}\n\n{made}\n{END}{after}")
    if f"/{name}.png" in text:
        picture(runs, ROOT / "docs" / "figures" / f"{name}.png")
    shown = [run for run in runs if form_of(run) in {label for label, _, _ in FORMS.values()}]
    figure = f"{name}_entities.png"
    if shown and figure in text:
        best = min(shown, key=lambda run: run["dense_accuracy"] - run["accuracy"])
        each_entity(best["records"], {}, ROOT / "docs" / "figures" / figure)
        print(f"the picture of entities is that of {best['run']}")


def put_comparison(name: str, folder: Path) -> None:
    """Keep ``comparison.csv``, and show table and picture between the marks that bear the name."""
    place = ROOT / "experiments" / "results" / f"compare-{name}"
    place.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "comparison.csv", place / "comparison.csv")
    for run in sorted((folder / "runs").glob("*/summary.json")):
        (place / run.parent.name).mkdir(exist_ok=True)
        for file in KEPT[:3]:
            shutil.copyfile(run.parent / file, place / run.parent.name / file)
    shutil.copyfile(
        folder / "comparison-methods.png", ROOT / "docs" / "figures" / f"compare-{name}.png"
    )
    page = ROOT / "docs" / "lab" / "methods.md"
    text = page.read_text(encoding="utf-8")
    begin, end = f"<!-- comparison {name} -->", f"<!-- end of {name} -->"
    before, found, rest = text.partition(begin)
    if not found:
        sys.exit(f"{page} has no mark {begin}")
    after = rest.partition(end)[2]
    table = (folder / "comparison.md").read_text(encoding="utf-8")
    picture = f"![Accuracy of each method at each budget, {name}](../figures/compare-{name}.png)"
    write_text(page, f"{before}{begin}\n\n{table}\n{picture}\n\n{end}{after}")


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    kept = commands.add_parser("keep")
    kept.add_argument("name")
    kept.add_argument("runs", nargs="*", type=Path)
    kept.add_argument("--dense", type=Path)
    commands.add_parser("page").add_argument("name")
    compared = commands.add_parser("compare")
    compared.add_argument("name")
    compared.add_argument("folder", type=Path)
    given = parser.parse_args()
    if given.command == "keep":
        keep(given.name, given.runs, given.dense)
    elif given.command == "compare":
        put_comparison(given.name, given.folder)
    else:
        write_page(given.name)


if __name__ == "__main__":
    main()
