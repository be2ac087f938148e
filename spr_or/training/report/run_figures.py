"""The figures of a run. Matplotlib is imported here; import this module where one is drawn.

They are drawn narrow, so that a page of 400 pixels shows them with letters that can be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

from spr_or.training.metrics import Record
from spr_or.training.pruning import ENTITY_REGIMES
from spr_or.utils.files import write_aside
from spr_or.utils.palette import BLUE, GREEN, GREY, LIGHT_GREY, ORANGE, PURPLE, RED, SKY
from spr_or.utils.printable import picture_text

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator  # noqa: E402

PHASE_NAMES = {"dense": "dense", "spr": "SPR", "finetune": "fine-tuning"}
REGIMES = (
    ("full", "full", BLUE),
    ("bound", "bound", GREEN),
    ("norm", "norm", ORANGE),
    ("zero", "zero", LIGHT_GREY),
)
# The digits of `entity_regimes` are places in this order.
_REGIME_COLOURS = tuple(
    (label, colour) for name in ENTITY_REGIMES for key, label, colour in REGIMES if key == name
)
_WIDTH = 5.6  # inches
_SEED_COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY)
_SEED_LINES = ("-", "--", "-.", ":")


def progress(records: list[Record], path: Path) -> bool:
    """Accuracy and sparsity over the epochs of all phases; False if there is no epoch."""
    if not records:
        return False
    figure, (top, bottom) = _two_panels()
    epochs = range(1, len(records) + 1)
    top.plot(epochs, [r["accuracy"] for r in records], color=GREY, label="training")
    top.plot(epochs, [r["eval_accuracy"] for r in records], color=BLUE, label="evaluation")
    top.legend(loc="lower right", frameon=False)
    zero = _zero_shares(records)
    bottom.plot(epochs, zero, color=RED)
    bottom.fill_between(epochs, zero, color=RED, alpha=0.15, linewidth=0)
    _finish_panels(top, bottom, zero)
    _phases(records, (top, bottom))
    return _save(figure, path)


def seeds(records: Mapping[int, list[Record]], path: Path) -> bool:
    """Evaluation accuracy and sparsity of every seed over the epochs; False without an epoch."""
    logged = {seed: found for seed, found in records.items() if found}
    if not logged:
        return False
    figure, (top, bottom) = _two_panels()
    zero: list[float] = []
    for number, (seed, found) in enumerate(logged.items()):
        epochs = range(1, len(found) + 1)
        style: dict[str, Any] = {
            "color": _SEED_COLOURS[number % len(_SEED_COLOURS)],
            "linestyle": _SEED_LINES[number % len(_SEED_LINES)],
        }
        top.plot(epochs, [r["eval_accuracy"] for r in found], label=f"seed {seed}", **style)
        zero += _zero_shares(found)
        bottom.plot(epochs, _zero_shares(found), **style)
    top.legend(loc="lower right", frameon=False, ncols=1 + len(logged) // 6)
    _finish_panels(top, bottom, zero)
    _phases(max(logged.values(), key=len), (top, bottom))
    return _save(figure, path)


def _two_panels() -> Any:
    return plt.subplots(
        2, 1, figsize=(_WIDTH, 4.3), sharex=True, height_ratios=(2, 1), layout="constrained"
    )


def _zero_shares(records: Sequence[Record]) -> list[float]:
    return [r.get("masked_filter_weights_pct", 0.0) for r in records]


def _finish_panels(top: Any, bottom: Any, zero: Sequence[float]) -> None:
    top.set_ylabel("accuracy (%)")
    bottom.set_ylabel("in zero filters\n(% of parameters)")
    bottom.set_ylim(0, max(10.0, *(1.1 * share for share in zero)))
    bottom.set_xlabel("epoch")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))


def _phases(records: Sequence[Record], axes: tuple[Any, Any]) -> None:
    """Shade every second phase and name them all above the upper panel."""
    start = 0
    for number, phase in enumerate(dict.fromkeys(r["phase"] for r in records)):
        length = sum(r["phase"] == phase for r in records)
        for axis in axes:
            if number % 2:
                axis.axvspan(start + 0.5, start + length + 0.5, color="0.93", zorder=0)
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
    """How many entities of each layer are left; the names of ``masks`` stand beside their bars."""
    names = list(masks)
    total = [len(keep) for keep in masks.values()]
    left = [int(keep.sum()) for keep in masks.values()]
    figure, axis = plt.subplots(figsize=_tall(len(names)), layout="constrained")
    axis.barh(range(len(names)), total, color=LIGHT_GREY, label="removed")
    axis.barh(range(len(names)), left, color=BLUE, label="kept")
    for place, (count, of) in enumerate(zip(left, total, strict=True)):
        axis.annotate(
            f"{count} of {of}", (of, place), (3, 0), textcoords="offset points", va="center",
            fontsize=8,
        )  # fmt: skip
    _layers(axis, names)
    axis.margins(x=0.12)
    axis.set_xlabel("filters or neurons")
    _legend_above(axis)
    return _save(figure, path)


def norms(
    pairs: dict[str, tuple[list[float], list[float]]], masks: dict[str, Tensor], path: Path
) -> bool:
    """||w||_2 of each entity in the dense network and after SPR, layer by layer."""
    figure, axis = plt.subplots(figsize=_tall(len(pairs)), layout="constrained")
    style: dict[str, Any] = {"s": 12, "alpha": 0.5, "linewidths": 0}
    points: dict[str, tuple[list[float], list[float]]] = {
        key: ([], []) for key in ("dense", "kept", "removed")
    }
    for place, (name, (before, after)) in enumerate(pairs.items()):
        points["dense"][0].extend(before)
        points["dense"][1].extend([place - 0.18] * len(before))
        for norm, stays in zip(after, masks[name].tolist(), strict=True):
            column = points["kept" if stays else "removed"]
            column[0].append(norm)
            column[1].append(place + 0.18)
    axis.scatter(*points["dense"], color="0.4", label="dense network", **style)
    axis.scatter(*points["kept"], color=BLUE, label="at the end, kept", **style)
    axis.scatter(*points["removed"], color=RED, marker="x", s=16, linewidths=1, label="removed")
    _layers(axis, list(pairs))
    axis.set_xlabel("norm of the weights of a filter or neuron")
    axis.set_xlim(left=-0.02 * axis.get_xlim()[1])
    _legend_above(axis)
    return _save(figure, path)


def regimes(records: list[Record], path: Path) -> bool:
    """In which case of the closed form the entities are, over the epochs with SPR."""
    counted = [r["regimes"] for r in records if "regimes" in r]
    if not counted:
        return False
    totals = torch.tensor([[r[key] for key, _, _ in REGIMES] for r in counted]).double()
    share = 100 * totals / totals.sum(1, keepdim=True)
    epochs = list(range(1, len(counted) + 1))
    if len(epochs) == 1:  # an area needs two points
        epochs, share = [0, 1], share.expand(2, -1)
    figure, axis = plt.subplots(figsize=(_WIDTH, 3.1), layout="constrained")
    axis.stackplot(
        epochs,
        *share.T.tolist(),
        colors=[colour for _, _, colour in REGIMES],
        labels=[label for _, label, _ in REGIMES],
    )
    axis.set_xlim(epochs[0], epochs[-1])
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylim(0, 100)
    axis.set_xlabel("epoch with SPR")
    axis.set_ylabel("share of filters or neurons (%)")
    _legend_above(axis)
    return _save(figure, path)


def each_entity(records: list[Record], labels: Mapping[str, str], path: Path) -> bool:
    """The regime of every entity over the epochs with SPR, layer by layer from the input on.

    An entity is one line; those of a layer are sorted by the time at which they became zero.
    """
    logged = [r["entity_regimes"] for r in records if "entity_regimes" in r]
    if not logged:
        return False
    white = len(_REGIME_COLOURS)
    rows: list[Tensor] = []
    places, names = [], []
    for name in logged[0]:
        digits = torch.tensor([[int(d) for d in record[name]] for record in logged]).T
        alive = (digits > 0).sum(1)
        digits = digits[torch.argsort(alive, descending=True, stable=True)]
        places.append(sum(len(row) for row in rows) + len(digits) / 2 - 0.5)
        names.append(labels.get(name, name))
        rows.append(digits)
        rows.append(torch.full((max(1, len(digits) // 16), len(logged)), white))
    picture = torch.cat(rows[:-1])
    height = min(9.0, max(3.0, 1.1 + 0.2 * len(names) + len(picture) / 250))
    figure, axis = plt.subplots(figsize=(_WIDTH, height), layout="constrained")
    colours = matplotlib.colors.ListedColormap(
        [colour for _, colour in _REGIME_COLOURS] + ["white"]
    )
    axis.imshow(
        picture, aspect="auto", interpolation="nearest", cmap=colours, vmin=0, vmax=white,
        extent=(0.5, len(logged) + 0.5, len(picture) - 0.5, -0.5),
    )  # fmt: skip
    axis.set_yticks(places, [picture_text(name) for name in names], fontsize=7)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("epoch with SPR")
    patches = [matplotlib.patches.Patch(color=c, label=name) for name, c in _REGIME_COLOURS]
    figure.legend(
        handles=patches, frameon=False, fontsize=9, ncols=4, columnspacing=1.2, handletextpad=0.5,
        loc="outside upper left",
    )  # fmt: skip
    return _save(figure, path)


def epoch_times(records: list[Record], path: Path) -> bool:
    """Seconds of every epoch over the size of the network; False where it never changed.

    The dashed line is proportional to the multiplications, from the largest network on.
    """
    sized = [r for r in records if "macs_pct" in r]
    if len({r["macs_pct"] for r in sized}) < 2:
        return False
    figure, axis = plt.subplots(figsize=(_WIDTH, 3.3), layout="constrained")
    whole = [r["seconds"] for r in records if r["phase"] == "dense"]
    if whole:
        axis.scatter([100.0] * len(whole), whole, s=16, color=GREY, label="dense")
    for phase, colour in (("spr", ORANGE), ("finetune", BLUE)):
        found = [r for r in sized if r["phase"] == phase]
        axis.scatter(
            [r["macs_pct"] for r in found], [r["seconds"] for r in found], s=16, color=colour,
            label=PHASE_NAMES[phase],
        )  # fmt: skip
    largest = max(r["macs_pct"] for r in sized)
    at_largest = torch.tensor([r["seconds"] for r in sized if r["macs_pct"] == largest])
    axis.plot([0, 100], [0, float(at_largest.median()) * 100 / largest], color=GREY, linestyle="--",
              label="in proportion")  # fmt: skip
    axis.set_xlim(0, 105)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("multiplications of the network that is trained (% of the original's)")
    axis.set_ylabel("seconds of an epoch")
    axis.spines[["top", "right"]].set_visible(False)
    _legend_above(axis)
    return _save(figure, path)


def course(records: list[Record], path: Path) -> bool:
    """Lambda over the epochs with SPR, and what would go; False where lambda never moved."""
    moved = [r for r in records if r.get("lam")]  # it is 0 when the budget was met early
    if len({r["lam"] for r in moved}) < 2:
        return False
    shares = [r["removable_pct"] for r in moved if "removable_pct" in r]
    rows = 2 if shares else 1
    figure, axes = plt.subplots(
        rows, 1, figsize=(_WIDTH, 2.4 * rows), sharex=True, squeeze=False, layout="constrained"
    )
    epochs = range(1, len(moved) + 1)
    axes[0, 0].plot(epochs, [r["lam"] for r in moved], color=ORANGE)
    axes[0, 0].set_yscale("log")
    axes[0, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0, 0].yaxis.set_minor_locator(NullLocator())
    axes[0, 0].yaxis.set_major_formatter("{x:g}")
    axes[0, 0].set_ylabel("λ")
    if shares:
        axes[1, 0].plot(epochs, shares, color=RED, label="would be removed")
        wanted = [r["scheduled_pct"] for r in moved]
        axes[1, 0].plot(epochs, wanted, color=GREY, linestyle="--", label="schedule")
        axes[1, 0].set_ylabel("% of parameters")
        axes[1, 0].set_ylim(0, 100)
        axes[1, 0].legend(loc="upper left", frameon=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlim(0.5, len(moved) + 0.5)
    axes[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1, 0].set_xlabel("epoch with SPR")
    return _save(figure, path)


def _tall(layers: int) -> tuple[float, float]:
    return _WIDTH, 1.1 + 0.26 * layers


def _layers(axis: Any, names: list[str]) -> None:
    """The names of the layers in full, the first one on top."""
    axis.set_yticks(range(len(names)), [picture_text(name) for name in names], fontsize=8)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.spines[["top", "right"]].set_visible(False)


def _legend_above(axis: Any) -> None:
    """A legend over the whole width of the figure, so that long names of layers do not narrow it."""
    axis.figure.legend(
        *axis.get_legend_handles_labels(), frameon=False, fontsize=9, ncols=4, columnspacing=1.2,
        handletextpad=0.5, loc="outside upper left",
    )  # fmt: skip


def _save(figure: Any, path: Path) -> bool:
    write_aside(path, lambda aside: figure.savefig(aside, dpi=150))
    plt.close(figure)
    return True
