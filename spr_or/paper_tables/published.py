"""The published figures, and the totals that their percentages refer to.

``experiments/reference/paper_results.csv`` holds Tables 1–14 and 16 of Cacciola, Frangioni, Li, Lodi
(arXiv 2206.14056), ``epoch_times.csv`` its Table 15.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from spr_or.utils.shipped import shipped_folder


class Problem(NamedTuple):
    """A data set and a network, as the paper names them."""

    dataset: str
    network: str


class Denominator(NamedTuple):
    """The total that the paper's percentages refer to."""

    weights: int
    meaning: str


class Protocol(NamedTuple):
    """How the paper trained on a data set."""

    spr_epochs: int
    finetune_epochs: int
    batch_size: int
    train_images: int


@dataclass(frozen=True)
class Published:
    """One line of a table; None where the table has no figure."""

    table: int
    problem: Problem
    method: str
    setting: str
    lr: float | None
    lam: float | None
    alpha: float | None
    top1: float
    top5: float | None
    pruned_pct: float


class EpochTime(NamedTuple):
    """A line of Table 15, in seconds."""

    problem: Problem
    with_spr: float
    without_spr: float


REFERENCE = shipped_folder("reference")

# Found by dividing the tables' counts by their percentages (tests/test_tables.py does it again).
DENOMINATORS = {
    Problem("CIFAR-10", "ResNet-20"): Denominator(270_000, "a nominal 270,000 parameters"),
    Problem("CIFAR-100", "ResNet-20"): Denominator(270_000, "a nominal 270,000 parameters"),
    Problem("CIFAR-10", "ResNet-56"): Denominator(850_000, "a nominal 850,000 parameters"),
    Problem("CIFAR-10", "ResNet-18"): Denominator(
        11_210_432, "11,210,432 weights, convolutions and a linear layer for 100 classes"
    ),
    Problem("CIFAR-10", "ResNet-50"): Denominator(
        23_652_032, "23,652,032 weights, convolutions and a linear layer for 100 classes"
    ),
    Problem("CIFAR-10", "VGG-16"): Denominator(
        14_715_584, "14,715,584 weights, convolutions and the linear layer"
    ),
    Problem("ImageNet", "ResNet-18"): Denominator(
        10_669_000, "about 10,669,000, implied by the printed percentages and not explained"
    ),
}

PROTOCOLS = {
    "CIFAR-10": Protocol(300, 200, 128, 50_000),
    "CIFAR-100": Protocol(300, 200, 64, 50_000),
    "ImageNet": Protocol(150, 50, 256, 1_281_167),
}


def read_published(folder: Path = REFERENCE) -> list[Published]:
    """All lines of ``paper_results.csv``; raises ``ValueError`` naming a file that is not there."""
    return [
        Published(
            int(row["table"]),
            Problem(row["dataset"], row["architecture"]),
            row["method"],
            row["setting"],
            _number(row["lr"]),
            _number(row["lambda"]),
            _number(row["alpha"]),
            float(row["top1"]),
            _number(row["top5"]),
            float(row["pruned_pct"]),
        )
        for row in _rows(folder / "paper_results.csv")
    ]


def read_epoch_times(folder: Path = REFERENCE) -> list[EpochTime]:
    """Table 15; raises ``ValueError`` naming a file that is not there."""
    return [
        EpochTime(
            Problem(row["dataset"], row["architecture"]),
            float(row["seconds_with_spr"]),
            float(row["seconds_without_spr"]),
        )
        for row in _rows(folder / "epoch_times.csv")
    ]


def problems(published: Sequence[Published]) -> list[Problem]:
    """The data sets and networks, in the order of the tables."""
    return list(dict.fromkeys(line.problem for line in published))


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))
    except OSError as error:
        raise ValueError(f"the published figures cannot be read: {error}") from None


def _number(text: str) -> float | None:
    return float(text) if text else None
