"""Which options prune better: the runs, the table and the picture of docs/lab/accuracy.md.

Run ``python experiments/research/accuracy.py`` from the repository's root: ResNet-20 on CIFAR-10
where there is an accelerator, else a small residual network on scikit-learn's digits (CPU, about ten
seconds for each run). Every row prunes to the same shares of the parameters (``target_removed_pct``), so
accuracies can be compared. Started again, it continues; finished runs are only read.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spr_or.training.recipe import load_recipe
from spr_or.training.runner import run_recipe
from spr_or.utils.files import write_aside
from spr_or.utils.palette import BLUE, GREEN, GREY, ORANGE, RED
from spr_or.utils.pareto import Series, draw

ROOT = Path(__file__).parents[2]
SEEDS = (0, 1, 2)
TARGETS = (90.0, 75.0)  # the options are tried at the first, where there is more to lose
ALPHAS = (0.1, 0.3)
EXACT = "gradient, exact"
OPTIONS_ON = ("ProxSGD, α = 0.1", "gradient, exact, α = 0.3")


@dataclass(frozen=True)
class Setting:
    """What a data set asks for, as overrides of its recipe: for all rows, and for each method."""

    recipe: str
    shared: tuple[str, ...]
    prox: tuple[str, ...]
    gradient: tuple[str, ...]
    printed_lam: float  # where lambda starts for the printed form, which pulls harder
    warmup: int
    renewal: int


SETTINGS = {
    "digits": Setting(
        "digits",
        ("spr.epochs=14", "finetune.epochs=14"),
        (),
        ('spr.method="gradient"', 'spr.schedule="steps"', "spr.milestones=[7, 10]", "spr.lam=5",
         "spr.zero_below=1e-3", "spr.share=0.9"),
        3.0, 4, 4,
    ),
    "cifar10": Setting(
        "cifar10_resnet20",
        ('spr.start="dense"',),
        ('spr.method="prox"', "spr.lam=20"),
        ("spr.lam=1",),
        0.6, 30, 30,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class StudyRow:
    """One way of pruning, compared with the row named ``against`` ("": with none)."""

    name: str
    group: str  # the method; its best α is what the picture shows
    against: str
    overrides: tuple[str, ...]


def rows(setting: Setting, target: float) -> list[StudyRow]:
    """The rows of a target's table: three methods at two α, then options on two of those."""
    found = []
    for alpha in ALPHAS:
        methods = {
            "gradient, exact": setting.gradient,
            "gradient, printed": (
                *setting.gradient, 'spr.variant="printed"', f"spr.lam={setting.printed_lam}",
            ),
            "ProxSGD": ('spr.method="prox"', *setting.prox),
        }  # fmt: skip
        for method, keys in methods.items():
            against = f"gradient, exact, α = {ALPHAS[0] if method == EXACT else alpha}"
            name = f"{method}, α = {alpha}"
            overrides = (*keys, f"spr.alpha={alpha}")
            found.append(StudyRow(name, method, against if against != name else "", overrides))
    if target == TARGETS[0]:
        bases = [row for row in found if row.name in OPTIONS_ON]
        found += [
            StudyRow(f"{base.name}, {name}", "option", base.name, (*base.overrides, key))
            for base in bases
            for name, key in _options(setting).items()
        ]
    return found


def _options(setting: Setting) -> dict[str, str]:
    return {
        "M of each entity": 'spr.bounds="entity"',
        "γ, β in the entity": "spr.include_norm=true",
        f"λ warm-up of {setting.warmup} epochs": f"spr.lam_warmup={setting.warmup}",
        f"M renewed every {setting.renewal} epochs": f"spr.bounds_every={setting.renewal}",
        "distillation, weight 0.5": "finetune.distill=0.5",
    }


@dataclass(frozen=True)
class Result:
    """Of one row at one target: a number for each seed, in percent."""

    row: StudyRow
    target: float
    accuracy: list[float]
    removed: list[float]
    cut: list[float]
    dense: list[float]


def run(setting: Setting, row: StudyRow, target: float, seed: int, folder: Path) -> dict[str, Any]:
    """One run; the dense network is trained by the first run of a seed and shared by the others."""
    dense = folder / f"dense-{seed}" / "dense.safetensors"
    given = ["dense.epochs=0", f"dense.weights={dense}"]
    if not dense.exists():
        only_dense = ["spr.epochs=0", "finetune.epochs=0", f"seeds=[{seed}]"]
        place = dense.parent
        run_recipe(
            _recipe(setting, [*setting.shared, *only_dense]), place, resume=True, judge=False
        )
    overrides = [*setting.shared, *row.overrides, f"spr.target_removed_pct={target}", *given]
    name = "".join(c if c.isalnum() else "-" for c in row.name)
    place = folder / f"{name}-{target:g}" / f"seed-{seed}"
    return run_recipe(
        _recipe(setting, [*overrides, f"seeds=[{seed}]"]), place, resume=True, judge=False
    )


def _recipe(setting: Setting, overrides: list[str]) -> Any:
    return load_recipe(ROOT / "experiments" / "recipes" / f"{setting.recipe}.toml", overrides)


def study(setting: Setting, folder: Path) -> list[Result]:
    """Every row at every target over all seeds, printing each run as it ends."""
    results = []
    for target in TARGETS:
        for row in rows(setting, target):
            summaries = [run(setting, row, target, seed, folder) for seed in SEEDS]
            budgets = [s["budget"] for s in summaries]
            result = Result(
                row,
                target,
                [s["accuracy"] for s in summaries],
                [s["removed_params_pct"] for s in summaries],
                [b["after_cut_pct"] - b["before_cut_pct"] for b in budgets],
                [s["dense_accuracy"] for s in summaries],
            )
            results.append(result)
            accuracies = ", ".join(f"{a:.2f}" for a in result.accuracy)
            print(f"{target:g} %  {row.name}: {accuracies}", flush=True)
    return results


def verdict(result: Result, base: Result, image: float) -> str:
    """Whether the mean lies more than two standard deviations above or below that of ``base``.

    The deviation is the root mean square of both, and at least one image (``image`` percent): three
    seeds that agree by chance prove nothing.
    """
    spread = [statistics.stdev(r.accuracy) for r in (result, base)]
    deviation = max(image, (sum(s**2 for s in spread) / 2) ** 0.5)
    difference = statistics.fmean(result.accuracy) - statistics.fmean(base.accuracy)
    outcome = "" if abs(difference) <= 2 * deviation else " wins" if difference > 0 else " loses"
    return f"{difference:+.2f}{outcome}"


def table(results: list[Result], image: float) -> str:
    """Markdown: mean ± standard deviation of each row and target, and which rows win or lose."""
    lines = []
    for target in TARGETS:
        chosen = {r.row.name: r for r in results if r.target == target}
        lines += [
            "",
            f"| {target:g} % to be removed | accuracy | cut by rank | difference | to |",
            "| --- | ---: | ---: | ---: | --- |",
        ]
        for name, r in chosen.items():
            columns = [_spread(r.accuracy), f"{statistics.fmean(r.cut):+.1f}"]
            base = chosen.get(r.row.against)
            columns += ["", ""] if base is None else [verdict(r, base, image), r.row.against]
            lines.append(f"| {name} | " + " | ".join(columns) + " |")
    missed = max(abs(share - r.target) for r in results for share in r.removed)
    dense = results[0].dense
    return "\n".join(
        [f"Dense: {_spread(dense)}. Largest miss of a target: {missed:.2f} points.", *lines]
    )


def _spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f} %"


def picture(results: list[Result], path: Path, name: str) -> None:
    """Accuracy over the share removed: the three methods, each with its best α."""
    colours = {EXACT: BLUE, "gradient, printed": RED, "ProxSGD": GREEN}
    series = []
    for group, colour in colours.items():
        best = []
        for target in TARGETS:
            rivals = [r for r in results if r.row.group == group and r.target == target]
            best.append(max(rivals, key=lambda r: statistics.fmean(r.accuracy)))
        series.append(_series(group, best, colour))
    draw(
        series,
        path,
        xlabel="parameters removed (%)",
        title=f"{name}: best α of each method, means of {len(SEEDS)} seeds",
        dense=[("dense", statistics.fmean(results[0].dense), GREY)],
    )


def picture_of_rows(results: list[Result], path: Path, name: str) -> None:
    """Mean, standard deviation and seeds of every row at the first target, one below the other."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chosen = [r for r in results if r.target == TARGETS[0]][::-1]
    colours = {"option": ORANGE, EXACT: BLUE, "gradient, printed": RED, "ProxSGD": GREEN}
    figure, axis = plt.subplots(figsize=(8, 0.3 * len(chosen) + 1.2), layout="constrained")
    for place, r in enumerate(chosen):
        colour = colours[r.row.group]
        axis.plot(r.accuracy, [place] * len(r.accuracy), "|", color=GREY, markersize=9)
        axis.errorbar(
            statistics.fmean(r.accuracy), place, xerr=statistics.stdev(r.accuracy), fmt="o",
            color=colour, capsize=2,
        )  # fmt: skip
    axis.axvline(statistics.fmean(results[0].dense), color=GREY, linestyle="--", linewidth=1)
    axis.set_yticks(range(len(chosen)), [r.row.name for r in chosen], fontsize=8)
    axis.set_xlabel("accuracy (%): seeds, mean ± standard deviation; dashed: dense")
    axis.set_title(f"{name}: {TARGETS[0]:g} % of the parameters removed", loc="left", fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    write_aside(path, lambda aside: figure.savefig(aside, dpi=130))
    plt.close(figure)


def _series(label: str, results: list[Result], colour: str) -> Series:
    return Series(
        label,
        [statistics.fmean(r.removed) for r in results],
        [statistics.fmean(r.accuracy) for r in results],
        colour,
        spread=[statistics.stdev(r.accuracy) for r in results],
        joined=True,
    )


def main() -> None:
    """Run the study, print the table, draw the picture."""
    default = "cifar10" if torch.accelerator.is_available() else "digits"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=SETTINGS, default=default)
    parser.add_argument("--out", type=Path, default=Path("runs") / "accuracy")
    arguments = parser.parse_args()
    results = study(SETTINGS[arguments.data], arguments.out / arguments.data)
    images = {"digits": 360, "cifar10": 10_000}[arguments.data]
    print("\n" + table(results, 100 / images))
    figures = ROOT / "docs" / "figures"
    picture(results, figures / f"accuracy-{arguments.data}.png", arguments.data)
    picture_of_rows(results, figures / f"accuracy-{arguments.data}-rows.png", arguments.data)
    print(f"\npictures: {figures}/accuracy-{arguments.data}*.png")


if __name__ == "__main__":
    main()
