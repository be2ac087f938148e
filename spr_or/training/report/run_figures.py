"""The figures of a run. Matplotlib is imported here; import this module where one is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

from spr_or.training.metrics import Record
from spr_or.utils.files import write_aside

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import LogLocator, NullLocator  # noqa: E402

# Okabe and Ito's colours, which colour-blind readers tell apart.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#999999"
PHASE_NAMES = {"dense": "dense", "spr": "SPR", "finetune": "fine-tuning"}
REGIMES = (
    ("full", "full", BLUE),
    ("bound", "bound", GREEN),
    ("norm", "norm", ORANGE),
    ("zero", "pruned", "#DDDDDD"),
)


def progress(records: list[Record], path: Path) -> bool:
    """Accuracy and sparsity over the epochs of all phases; False if there is no epoch."""
    if not records:
        return False
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(8, 5), sharex=True, height_ratios=(2, 1), layout="constrained"
    )
    epochs = range(1, len(records) + 1)
    top.plot(epochs, [r["accuracy"] for r in records], color=GREY, label="training")
    top.plot(epochs, [r["eval_accuracy"] for r in records], color=BLUE, label="evaluation")
    top.set_ylabel("accuracy (%)")
    top.legend(loc="lower right", frameon=False)
    pruned = [r.get("masked_filter_weights_pct", 0.0) for r in records]
    bottom.plot(epochs, pruned, color=RED)
    bottom.fill_between(epochs, pruned, color=RED, alpha=0.15, linewidth=0)
    bottom.set_ylabel("in zero filters\n(% of parameters)")
    bottom.set_ylim(0, max(10.0, *(1.1 * p for p in pruned)))
    bottom.set_xlabel("epoch")
    _phases(records, (top, bottom))
    return _save(figure, path)


def _phases(records: list[Record], axes: tuple[Any, Any]) -> None:
    """Shade every second phase and name them all above the upper panel."""
    start = 0
    for number, phase in enumerate(dict.fromkeys(r["phase"] for r in records)):
        length = sum(r["phase"] == phase for r in records)
        for axis in axes:
            if number % 2:
                axis.axvspan(start + 0.5, start + length + 0.5, color="0.95", zorder=0)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].text(
            start + length / 2 + 0.5,
            1.02,
            PHASE_NAMES[phase],
            ha="center",
            transform=axes[0].get_xaxis_transform(),
        )
        start += length
    axes[0].set_xlim(0.5, start + 0.5)


def kept(masks: dict[str, Tensor], path: Path) -> bool:
    """How many entities of each layer are left."""
    names = list(masks)
    total = [len(keep) for keep in masks.values()]
    left = [int(keep.sum()) for keep in masks.values()]
    figure, axis = plt.subplots(figsize=_wide(len(names)), layout="constrained")
    axis.bar(range(len(names)), total, color="#DDDDDD", label="removed")
    axis.bar(range(len(names)), left, color=BLUE, label="kept")
    if len(names) <= 30:
        for place, count in enumerate(left):
            axis.annotate(
                str(count), (place, count), (0, 2), textcoords="offset points",
                ha="center", fontsize=8,
            )  # fmt: skip
    _layers(axis, names)
    axis.set_ylabel("filters or neurons")
    axis.legend(loc="upper left", frameon=False)
    return _save(figure, path)


def norms(
    pairs: dict[str, tuple[list[float], list[float]]], masks: dict[str, Tensor], path: Path
) -> bool:
    """||w||_2 of each entity in the dense and in the pruned network, layer by layer."""
    figure, axis = plt.subplots(figsize=_wide(len(pairs)), layout="constrained")
    style: dict[str, Any] = {"s": 10, "alpha": 0.5, "linewidths": 0}
    columns: dict[str, tuple[list[float], list[float]]] = {
        key: ([], []) for key in ("dense", "kept", "removed")
    }
    for place, (name, (before, after)) in enumerate(pairs.items()):
        for norm in before:
            columns["dense"][0].append(place - 0.18)
            columns["dense"][1].append(norm)
        for norm, stays in zip(after, masks[name].tolist(), strict=True):
            column = columns["kept" if stays else "removed"]
            column[0].append(place + 0.18)
            column[1].append(norm)
    axis.scatter(*columns["dense"], color="0.4", label="dense network", **style)
    axis.scatter(*columns["kept"], color=BLUE, label="pruned network", **style)
    axis.scatter(*columns["removed"], color=RED, marker="x", s=14, linewidths=1, label="removed")
    _layers(axis, list(pairs))
    axis.set_ylabel("norm of an entity's weights")
    axis.set_ylim(bottom=-0.02 * axis.get_ylim()[1])
    axis.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return _save(figure, path)


def regimes(records: list[Record], path: Path) -> bool:
    """In which regime of the closed form the entities are, over the epochs with SPR."""
    counted = [r["regimes"] for r in records if "regimes" in r]
    if not counted:
        return False
    totals = torch.tensor([[r[key] for key, _, _ in REGIMES] for r in counted]).double()
    share = 100 * totals / totals.sum(1, keepdim=True)
    epochs = list(range(1, len(counted) + 1))
    if len(epochs) == 1:  # an area needs two points
        epochs, share = [0, 1], share.expand(2, -1)
    figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
    axis.stackplot(
        epochs,
        *share.T.tolist(),
        colors=[colour for _, _, colour in REGIMES],
        labels=[label for _, label, _ in REGIMES],
    )
    axis.set_xlim(epochs[0], epochs[-1])
    axis.set_ylim(0, 100)
    axis.set_xlabel("epoch with SPR")
    axis.set_ylabel("share of entities (%)")
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5),
                frameon=False)  # fmt: skip
    return _save(figure, path)


def course(records: list[Record], path: Path) -> bool:
    """Lambda over the epochs with SPR, and what could go; False where lambda never moved."""
    moved = [r for r in records if "lam" in r]
    if len({r["lam"] for r in moved}) < 2:
        return False
    shares = [r["removable_pct"] for r in moved if "removable_pct" in r]
    rows = 2 if shares else 1
    figure, axes = plt.subplots(
        rows, 1, figsize=(8, 2.6 * rows), sharex=True, squeeze=False, layout="constrained"
    )
    epochs = range(1, len(moved) + 1)
    axes[0, 0].plot(epochs, [r["lam"] for r in moved], color=ORANGE)
    axes[0, 0].set_yscale("log")
    axes[0, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0, 0].yaxis.set_minor_locator(NullLocator())
    axes[0, 0].yaxis.set_major_formatter("{x:g}")
    axes[0, 0].set_ylabel("lambda")
    if shares:
        axes[1, 0].plot(epochs, shares, color=RED, label="could go")
        wanted = [r["scheduled_pct"] for r in moved]
        axes[1, 0].plot(epochs, wanted, color=GREY, linestyle="--", label="schedule")
        axes[1, 0].set_ylabel("% of parameters")
        axes[1, 0].set_ylim(0, 100)
        axes[1, 0].legend(loc="upper left", frameon=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlim(0.5, len(moved) + 0.5)
    axes[-1, 0].set_xlabel("epoch with SPR")
    return _save(figure, path)


def _wide(layers: int) -> tuple[float, float]:
    return max(8.0, 0.22 * layers + 2), 3.6


def _layers(axis: Any, names: list[str]) -> None:
    axis.set_xticks(range(len(names)), names, rotation=90 if len(names) > 8 else 30, fontsize=8)
    if len(names) <= 8:
        for label in axis.get_xticklabels():
            label.set_ha("right")
    axis.set_xlim(-0.6, len(names) - 0.4)
    axis.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, path: Path) -> bool:
    write_aside(path, lambda aside: figure.savefig(aside, dpi=130))
    plt.close(figure)
    return True
