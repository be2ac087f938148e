"""Runs small enough for tests: a plain chain on a few of scikit-learn's digits."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from spr_or.training.recipe import Recipe, parse_recipe
from spr_or.training.report import summary as report
from spr_or.training.run_progress import RunDisplay


def tiny_recipe(**sections: Any) -> Recipe:
    """Two dense, three SPR and two fine-tuning epochs; ``sections`` overrule single keys."""
    values: dict[str, Any] = {
        "name": "tiny",
        "model": "models.toy:convnet",
        "data": {"train_rows": 256, "eval_rows": 64, "batch_size": 32, "crop": 1},
        "dense": {"epochs": 2, "lr": 0.1},
        "spr": {"epochs": 3, "lam": 7.0, "alpha": 0.3, "lr": 0.05, "method": "prox"},
        "finetune": {"epochs": 2},
        "speed": {"device": "cpu", "threads": 1},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section if isinstance(section, dict) else section
    return parse_recipe(values)


def no_pictures_in(patch: pytest.MonkeyPatch) -> None:
    """Pictures and timings of a report have tests of their own; elsewhere they only take time."""
    patch.setattr(report, "_draw", lambda *arguments: [])
    patch.setattr(report, "latency_ms", lambda models, *arguments: [1.0] * len(models))
    patch.setattr(report, "spr_step_overhead", lambda *arguments: 1.0)


@contextlib.contextmanager
def stopped_at(phase: str, epoch: int) -> Iterator[None]:
    """Runs inside end with KeyboardInterrupt before the checkpoint of that epoch."""
    shown = RunDisplay.epoch

    def stop(self: RunDisplay, record: dict[str, Any]) -> None:
        if (record["phase"], record["epoch"]) == (phase, epoch):
            raise KeyboardInterrupt
        shown(self, record)

    RunDisplay.epoch = stop  # type: ignore[method-assign]
    try:
        yield
    finally:
        RunDisplay.epoch = shown  # type: ignore[method-assign]


def assert_identical(one: Any, two: Any, where: str) -> None:
    assert type(one) is type(two), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_identical(one[key], two[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        for i, (x, y) in enumerate(zip(one, two, strict=True)):
            assert_identical(x, y, f"{where}/{i}")
    else:
        assert one == two, where


class Listening(RunDisplay):
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.warnings: list[str] = []
        self.lines: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def say(self, message: str) -> None:
        self.lines.append(message)
