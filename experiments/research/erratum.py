"""The printed closed form is not a relaxation: the numbers and pictures of docs/explanation/erratum.md.

Run ``python experiments/research/erratum.py`` from the repository's root.  It trains a regression
with six entities, prints the values below and draws docs/figures/erratum-*.png.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spr_or import SparseTrainingProblem
from spr_or.formulations import bigm, entities, projected
from spr_or.solvers import conic, enumeration
from spr_or.utils.files import write_aside
from spr_or.utils.palette import BLUE, GREEN, RED

SEED = 0
LEVELS = [0.5, 1, 1.5, 2, 3, 4, 5, 6]
FIGURES = Path(__file__).parents[2] / "docs" / "figures"

# Okabe and Ito's colours, each with its own line style: they differ in grey print too.
STYLES: dict[str, dict[str, Any]] = {
    "exact": {"color": BLUE, "linestyle": "-", "linewidth": 2.6},
    "printed": {"color": RED, "linestyle": "--", "linewidth": 3.4},
    "authors2022": {"color": GREEN, "linestyle": "-.", "linewidth": 1.6},
}
TITLES = {"exact": "exact", "printed": "as printed", "authors2022": "authors' code, 2022"}


def regression(seed: int = SEED) -> SparseTrainingProblem:
    """Six entities of two weights, three of them active; lambda = 0.05, alpha = 0.01, M = 3."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((60, 12))
    w = np.zeros(12)
    w[:6] = rng.uniform(0.3, 0.8, 6) * rng.choice([-1, 1], 6)
    y = X @ w + 0.3 * rng.standard_normal(60)
    return SparseTrainingProblem.linear(
        X, y, entities.groups(12, 2), lam=0.05, alpha=0.01, M=3.0, name="erratum"
    )


@dataclass(frozen=True)
class Counterexample:
    """Values of the objective, mean loss + lambda sum z, and the bounds that prove them.

    relaxation, relaxation_bound : the conic perspective relaxation, and its Fenchel dual bound
    mip, mip_bound : the mixed-integer optimum by enumeration, and the bound it proves
    exact, printed, authors2022 : the three closed forms at the relaxation's minimiser
    printed_everywhere : a lower bound on the printed form's objective over all weights
    m_active : whether M cuts into a solution
    """

    relaxation: float
    relaxation_bound: float
    mip: float
    mip_bound: float
    exact: float
    printed: float
    authors2022: float
    printed_everywhere: float
    m_active: bool
    weights: Tensor
    support: Tensor


def counterexample(seed: int = SEED) -> Counterexample:
    """Solve the regression's relaxation and MIP, and put the relaxation's minimiser into each form."""
    problem = regression(seed)
    relaxed, integer = conic.solve(problem), enumeration.solve(problem)
    at = {
        variant: problem.projected_objective(relaxed.weights, variant).item()
        for variant in projected.VARIANTS
    }
    return Counterexample(
        relaxed.objective,
        relaxed.bound,
        integer.objective,
        integer.bound,
        **at,
        printed_everywhere=conic.solve(_below_printed(problem)).bound,
        m_active=bool((relaxed.m_active | integer.m_active).any()),
        weights=relaxed.weights,
        support=integer.indicators,
    )


def _below_printed(problem: SparseTrainingProblem) -> SparseTrainingProblem:
    r"""A relaxation of the printed form itself, to bound its objective from below everywhere.

    The printed z(w) = a^2 / y~ + (1 - alpha) y~ for one feasible y~, so it is at least the minimum over
    y, and a^2 / y + (1 - alpha) y = (2 - alpha) [alpha' a^2 / y + (1 - alpha') y] with
    alpha' = 1 / (2 - alpha).  That is an exact z with lambda' = (2 - alpha) lambda.
    """
    return SparseTrainingProblem.linear(
        problem.X,
        problem.y,
        entities.groups(problem.X.shape[1], 2),
        lam=(2 - problem.alpha) * problem.lam,
        alpha=1 / (2 - problem.alpha),
        M=problem.M,
    )


def report(found: Counterexample) -> str:
    """The numbers as a table in plain text."""
    lines = [
        ("perspective relaxation, conic solver", found.relaxation),
        ("  its dual bound", found.relaxation_bound),
        ("exact z at its minimiser", found.exact),
        ("mixed-integer optimum, enumeration", found.mip),
        ("  its bound", found.mip_bound),
        ("authors' 2022 z at that minimiser", found.authors2022),
        ("printed z at that minimiser", found.printed),
        ("printed z, least value over all w, at least", found.printed_everywhere),
    ]
    support = [i for i, y in enumerate(found.support.tolist()) if y]
    active = "active" if found.m_active else "not active"
    return "\n".join(f"{name:<45}{value:.5f}" for name, value in lines) + (
        f"\noptimal support: entities {support} of {len(found.support)}; M is {active}"
    )


def mip_penalty(w: Tensor, alpha: float) -> Tensor:
    """What an entity in use costs: alpha ||w||^2 + 1 - alpha, shape (N,).  No relaxation exceeds it."""
    return bigm.penalty(w, torch.ones(w.shape[:-1]), alpha)


def plot_one_weight(path: Path, alpha: float = 0.2) -> None:
    """z(w) for one weight under a tight and a loose M, with the cost that no relaxation may exceed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.3), sharey=True, layout="constrained")
    for axis, M, where in zip(
        axes,
        (1.5, 3.0),
        (
            r"tight $M = 1.5$: BOUND up to $|w| = M$",
            r"loose $M = 3$: NORM up to $|w| = 2$, then FULL",
        ),
        strict=True,
    ):
        w = torch.linspace(-M, M, 2001, dtype=torch.float64).unsqueeze(-1)
        x, cost = w.squeeze(-1), mip_penalty(w, alpha)
        top = 1.08 * projected.value(w, alpha, M, "printed").max().item()
        axis.fill_between(
            x, cost, 20, facecolor="0.93", edgecolor="0.75", hatch="//", linewidth=0, zorder=0
        )
        axis.plot(x, cost, color="black", linewidth=1.2, label="MIP cost: the ceiling")
        axis.plot(0, 1 - alpha, "o", mfc="white", mec="black", ms=6, zorder=4)
        axis.plot(0, 0, "o", color="black", ms=6, zorder=4)
        for variant, style in STYLES.items():
            z = projected.value(w, alpha, M, variant)
            axis.plot(x, z, label=TITLES[variant], **style)
        axis.set(title=where, xlabel="weight $w$", xlim=(-M, M), ylim=(-0.15, 5.0))
        axis.text(
            0, min(top, 4.4), "no relaxation\nmay go here", ha="center", va="center", fontsize=10,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 3},
        )  # fmt: skip
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(f"$z(w)$,  $\\alpha = {alpha}$")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    write_aside(path, lambda aside: figure.savefig(aside, dpi=150))
    plt.close(figure)


def plot_two_weights(path: Path, alpha: float = 0.2, M: float = 1.8) -> None:
    """Level sets of z for two weights, hatched where a form exceeds the MIP's cost."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    side = torch.linspace(-M, M, 301, dtype=torch.float64)
    w = torch.cartesian_prod(side, side).reshape(301, 301, 2)
    cost = mip_penalty(w, alpha)
    regime = projected.regime(w, alpha, M).T.numpy()
    figure, axes = plt.subplots(1, 3, figsize=(12.6, 5.3), sharey=True)
    for axis, (variant, style) in zip(axes, STYLES.items(), strict=True):
        z = projected.value(w, alpha, M, variant).T.numpy()
        above = z > cost.T.numpy() * (1 + 1e-9)
        if above.any():
            axis.contourf(side, side, above, levels=[0.5, 1.5], colors=[style["color"]], alpha=0.16)
            with plt.rc_context({"hatch.color": style["color"], "hatch.linewidth": 0.5}):
                axis.contourf(side, side, above, levels=[0.5, 1.5], colors="none", hatches=["//"])
        for r in projected.Regime:
            # One call for each regime, since the authors' form jumps from one to the next.
            lines = axis.contour(
                side, side, np.ma.array(z, mask=regime != r), levels=LEVELS, colors="black",
                linewidths=0.9,
            )  # fmt: skip
            if r == projected.Regime.BOUND or variant == "authors2022":
                axis.clabel(lines, fontsize=8, fmt="%g")
            axis.contour(
                side, side, regime == r, levels=[0.5], colors="0.4", linewidths=1.1, linestyles=":"
            )
        axis.set_title(f"{TITLES[variant]}:\nabove the MIP cost on {above.mean():.0%} of the box")
        axis.set(xlabel="$w_1$", aspect="equal")
    for r, place in zip(projected.Regime, ((0.72, 0.72), (1.28, 0.0), (1.5, 1.5)), strict=True):
        axes[0].text(*place, r.name, ha="center", va="center", fontsize=8, color="0.25",
                     bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    axes[0].set_ylabel("$w_2$")
    figure.suptitle(
        f"Level sets of $z(w_1, w_2)$, $\\alpha = {alpha}$, $M = {M:g}$; "
        "dotted: where the regimes meet",
        fontsize=11,
    )
    figure.set_layout_engine("constrained", h_pad=0.12)
    write_aside(path, lambda aside: figure.savefig(aside, dpi=150))
    plt.close(figure)


def main() -> None:
    """Print the numbers, draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED, help="another random regression")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="where the pictures go")
    arguments = parser.parse_args()
    print(report(counterexample(arguments.seed)))
    arguments.figures.mkdir(parents=True, exist_ok=True)
    plot_one_weight(arguments.figures / "erratum-one-weight.png")
    plot_two_weights(arguments.figures / "erratum-two-weights.png")


if __name__ == "__main__":
    main()
