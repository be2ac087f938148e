"""One seed of a recipe on its way: what all its phases share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spr_or.pruning.budget import Count
from spr_or.pruning.chosen_entities import ChosenEntities
from spr_or.training import checkpoint
from spr_or.training.data.load import Batches, Data
from spr_or.training.loop import Scores, evaluate
from spr_or.training.metrics import Metrics
from spr_or.training.recipe import Recipe
from spr_or.training.run_progress import RunDisplay
from spr_or.training.step import Step, captured, make_scoring

PHASES = ("dense", "spr", "finetune")


def epoch_seed(seed: int, phase: str, epoch: int) -> int:
    """The seed of an epoch: its order, its augmentation, its dropout.

    >>> epoch_seed(0, "dense", 1), epoch_seed(1, "spr", 0)
    (1, 500000)
    """
    return (seed * 4 + PHASES.index(phase)) * 100_000 + epoch


class RunError(RuntimeError):
    """A run that cannot go on; the message says why, what to change, and what is kept."""


@dataclass
class SeedRun:
    """One seed of a recipe on its way; ``state`` is the checkpoint it continues from.

    ``chosen`` is what is regularised; ``counter`` counts for a budget, None without one. Both depend
    on the network's shape only, so all seeds share them. ``judge``: whether a run that removes nothing
    or collapses is an error; in a sweep over lambda it is a result.
    """

    recipe: Recipe
    seed: int
    folder: Path
    device: torch.device
    data: Data
    chosen: ChosenEntities
    display: RunDisplay
    metrics: Metrics
    counter: Count | None = None
    state: checkpoint.State | None = None
    judge: bool = True
    fixed: dict[str, Any] = field(default_factory=dict)  # in every checkpoint from here on
    scorings: dict[nn.Module, Step] = field(default_factory=dict)  # a graph is captured once
    measuring: bool = True  # whether times may be taken: nothing else of ours is at work here
    # What was chosen for the whole run and for each phase and network; in every checkpoint.
    speeds: dict[str, dict[str, Any]] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)

    @property
    def checkpoints(self) -> Path:
        """The folder of ``last.pt``, ``previous.pt`` and ``best.pt``."""
        return self.folder / "checkpoints"

    @property
    def example(self) -> Tensor:
        """Two images that show only their shape."""
        return torch.zeros(2, *self.data.shape, device=self.device)

    def resumed(self, phase: str) -> checkpoint.State | None:
        """The checkpoint, if it lies in this phase."""
        return self.state if self.state is not None and self.state["phase"] == phase else None

    def is_past(self, phase: str) -> bool:
        """Whether the checkpoint lies in a later phase."""
        return self.state is not None and PHASES.index(self.state["phase"]) > PHASES.index(phase)

    def tell_once(self, line: str) -> None:
        """Show a line, unless it was shown before."""
        if line not in self.told:
            self.told.add(line)
            self.display.say(f"seed {self.seed} {line}")

    def evaluate(self, model: nn.Module) -> Scores:
        """Scores on the evaluation split."""
        return self._score(model, self.data.evaluate)

    def validate(self, model: nn.Module) -> Scores:
        """Scores that choices may be made by: on the held-out images, else the evaluation split."""
        return self._score(model, self.data.held_out or self.data.evaluate)

    def _score(self, model: nn.Module, batches: Batches) -> Scores:
        speed = self.recipe.speed
        if model not in self.scorings:
            score = make_scoring(model, speed.amp == "bf16")
            self.scorings[model] = captured(score) if speed.cuda_graph else score
        return evaluate(model, batches(0), score=self.scorings[model])
