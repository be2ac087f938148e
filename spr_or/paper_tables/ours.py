"""Our runs: found in a folder, and put together where they differ only in their seed."""

from __future__ import annotations

import io
import json
import math
import os
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from pydantic import ValidationError

from spr_or.paper_tables.published import PROTOCOLS, Problem
from spr_or.training.data import parquet
from spr_or.training.method import SPR_ITSELF
from spr_or.training.metrics import read_metrics
from spr_or.training.outcome import removed_macs_pct
from spr_or.training.recipe import DataRecipe, FinetuneRecipe, Recipe, SprRecipe, TrainRecipe
from spr_or.training.stored_run import SUMMARY, DamagedFile, read_summary

NETWORKS = {
    "models.resnet_cifar:resnet20": "ResNet-20",
    "models.resnet_cifar:resnet56": "ResNet-56",
    "models.resnet:resnet18": "ResNet-18",
    "models.resnet:resnet50": "ResNet-50",
    "models.vgg:vgg16": "VGG-16",
}
DATASETS = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "imagenet": "ImageNet",
    "imagenet1k": "ImageNet",
}

# The measures without which a run has no place in the tables.
_NEEDED = (
    "dense_accuracy",
    "accuracy",
    "masked_filter_weights",
    "removed_params_pct",
    "macs_dense",
    "macs_compact",
    "parameters",
    "seed",
)
# What has a column of its own, or changes the time a run takes and not its meaning.
_SHOWN = ("lam", "alpha", "lr", "epochs", "method", "variant", "schedule", "milestones")
_APART = ("seeds", "name", "note", "speed")


class Spread(NamedTuple):
    """Mean and standard deviation (None for a single run)."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Run:
    """One finished run: its summary and its folder."""

    folder: Path
    summary: dict[str, Any]
    recipe: Recipe


@dataclass(frozen=True)
class Setting:
    """Runs of one recipe that differ only in their seeds."""

    runs: tuple[Run, ...]

    @property
    def recipe(self) -> Recipe:
        """The recipe, with the first run's seed."""
        return self.runs[0].recipe

    @property
    def problem(self) -> Problem:
        """Data set and network as the paper names them, or else as the recipe does."""
        model = self.recipe.model
        dataset = canonical_dataset(self.runs[0].summary["dataset"])
        return Problem(dataset, NETWORKS.get(model, model))

    @property
    def seeds(self) -> list[int]:
        """The seeds, rising."""
        return sorted(run.summary["seed"] for run in self.runs)

    def spread(self, key: str) -> Spread:
        """Mean and standard deviation of a measure of the summaries."""
        return spread([float(run.summary[key]) for run in self.runs])

    def macs_removed(self) -> Spread:
        """Multiply-accumulates removed, in percent."""
        return spread([removed_macs_pct(run.summary) for run in self.runs])

    def masked_share(self, denominator: int) -> Spread:
        """Weights in zero filters, in percent of ``denominator``."""
        return spread([100 * r.summary["masked_filter_weights"] / denominator for r in self.runs])

    def epoch_seconds(self, phase: str) -> float | None:
        """Median seconds of an epoch of a phase over all runs; None if no epoch was logged."""
        found = [
            record["seconds"]
            for run in self.runs
            for record in read_metrics(run.folder / "metrics.jsonl")
            if record["phase"] == phase
        ]
        return statistics.median(found) if found else None

    @property
    def is_spr(self) -> bool:
        """Whether SPR decided what goes, not another method."""
        return self.recipe.method.name == SPR_ITSELF

    @property
    def budget(self) -> float:
        """The share that was to be removed, in percent; infinite without a budget."""
        target = self.recipe.spr.target_removed_pct
        return math.inf if target is None else target

    @property
    def lam(self) -> str:
        """λ as the recipe has it; nothing for another method."""
        return plain(self.recipe.spr.lam) if self.is_spr else ""

    @property
    def alpha(self) -> str:
        """α as the recipe has it; nothing for another method."""
        return plain(self.recipe.spr.alpha) if self.is_spr else ""

    @property
    def form(self) -> str:
        """Variant of the formula and method; of another method its name."""
        if not self.is_spr:
            return self.recipe.method.name
        return f"{self.recipe.spr.variant}, {self.recipe.spr.method}"

    @property
    def epochs(self) -> str:
        """Epochs of the three phases."""
        r = self.recipe
        return f"{r.dense.epochs}+{r.spr.epochs}+{r.finetune.epochs}"

    @cached_property
    def data_differences(self) -> list[str]:
        """How the images and their preparation differ from the paper's."""
        data, summary, dataset = self.recipe.data, self.runs[0].summary, self.problem.dataset
        protocol = PROTOCOLS.get(dataset)
        if protocol is None:
            return []
        found = []
        if summary["train_images"] < protocol.train_images:
            found.append(f"{summary['train_images']:,} training images")
        if data.batch_size != protocol.batch_size:
            found.append(f"batches of {data.batch_size}")
        if dataset != "ImageNet" and (data.crop, data.flip) != (4, True):
            found.append(f"crop {data.crop}, flip {data.flip}")
        if data.cutout:
            found.append(f"cutout {data.cutout}")
        return found + _encoding(summary["dataset"], data, dataset)

    @cached_property
    def differences(self) -> list[str]:
        """How the runs differ from the paper's (data, length, schedule), and their options."""
        recipe, found = self.recipe, []
        protocol = PROTOCOLS.get(self.problem.dataset)
        if protocol is not None:
            spr, fine = recipe.spr.epochs, recipe.finetune.epochs
            if (spr, fine) != (protocol.spr_epochs, protocol.finetune_epochs):
                paper = f"{protocol.spr_epochs}+{protocol.finetune_epochs}"
                found.append(f"{spr}+{fine} epochs, not {paper}")
            if recipe.spr.schedule == "cosine":
                found.append("cosine schedule")
        if recipe.dense.weights is not None:
            found.append(f"dense weights from {recipe.dense.weights.name}")
        return [*found, *self.data_differences, *options(recipe)]


def _encoding(named: str, data: DataRecipe, dataset: str) -> list[str]:
    """Whether the images are encoded as in the published data set."""
    if re.search(r"[(,]", named):
        return [named]
    if dataset == "ImageNet":  # its images are JPEG files
        return []
    encoded = image_format(data.source, data.train_split)
    if encoded == "JPEG":
        return [f"{named} re-encoded as JPEG"]
    from_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", data.source) is not None
    return [f"encoding of {named} unknown"] if encoded is None and not from_hub else []


def options(recipe: Recipe) -> list[str]:
    """The keys of [spr], [finetune] and [train] that are not at their defaults.

    Keys that the tables show in columns are left out.

    >>> from spr_or.training.recipe import parse_recipe
    >>> spr = {"lam": 1, "alpha": 0.1, "start": "dense"}
    >>> options(parse_recipe({"model": "a:b", "spr": spr, "train": {"nesterov": True}}))
    ['spr.start=dense', 'train.nesterov=True']
    """
    sections: tuple[tuple[str, SprRecipe | FinetuneRecipe | TrainRecipe], ...] = (
        ("spr", recipe.spr),
        ("finetune", recipe.finetune),
        ("train", recipe.train),
    )
    return [
        f"{section}.{key}={_short(value)}"
        for section, part in sections
        for key, value in part.model_dump(exclude_defaults=True).items()
        if key not in _SHOWN
    ]


def _short(value: Any) -> str:
    """A value in a line of text: several separated by commas, a file by its name."""
    if isinstance(value, tuple):
        return ",".join(map(_short, value))
    return value.name if isinstance(value, Path) else str(value)


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation)


def plain(value: float | str | None) -> str:
    """A number as a recipe would write it; nothing for None, text as it is.

    >>> plain(0.10), plain(None), plain("0.1 max")
    ('0.1', '', '0.1 max')
    """
    return value if isinstance(value, str) else "" if value is None else f"{value:g}"


def find_runs(
    folder: Path, warn: Callable[[str], None] = lambda message: None
) -> tuple[list[Run], list[Path]]:
    """All finished runs below a folder, and the folders of runs that are not finished.

    A run whose summary is damaged counts as not finished, and ``warn`` is told which file it is.
    A mean over seeds is left out for the runs behind it, and so are the dense phases that a sweep
    shares between its runs. Raises ``ValueError`` for a folder that is not there.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    runs, unfinished = [], []
    for path in sorted(folder.rglob("metrics.jsonl")):
        place = path.parent
        try:
            summary = read_summary(place, _NEEDED)
            recipe = None if summary is None else Recipe.model_validate(summary["recipe"])
        except DamagedFile as error:
            warn(f"{error}; it counts as not finished")
            summary = recipe = None
        except ValidationError as error:
            warn(f"the recipe in {place / SUMMARY} is not valid: {error.errors()[0]['msg']}")
            summary = recipe = None
        if summary is None or recipe is None:
            unfinished.append(place)
            continue
        if recipe.spr.epochs:
            runs.append(Run(place, summary, recipe))
    return runs, unfinished


def settings(runs: Sequence[Run]) -> list[Setting]:
    """Runs grouped by everything but their seed; a seed that was run twice counts once."""
    groups: dict[str, dict[int, Run]] = {}
    for run in runs:
        recipe = run.recipe.model_dump(mode="json", exclude=set(_APART))
        for key in ("cache", "workers", "memory", "eval_batch_size"):
            recipe["data"].pop(key)
        key = json.dumps([recipe, run.summary["dataset"]], sort_keys=True)
        groups.setdefault(key, {}).setdefault(run.summary["seed"], run)
    found = [Setting(tuple(group.values())) for group in groups.values()]

    def order(setting: Setting) -> tuple[Problem, bool, float, str, float]:
        lam, alpha = setting.recipe.spr.lam, setting.recipe.spr.alpha
        words = isinstance(lam, str)
        return setting.problem, words, 0.0 if words else float(lam), str(lam), alpha

    return sorted(found, key=order)


def canonical_dataset(name: str) -> str:
    """The paper's name of a data set; any other name stays.

    >>> canonical_dataset("uoft-cs/cifar10"), canonical_dataset("CIFAR-10 (JPEG q75)")
    ('CIFAR-10', 'CIFAR-10')
    >>> canonical_dataset("digits")
    'digits'
    """
    first = re.split(r"[(,]", name)[0].strip()
    plain = re.sub(r"[^a-z0-9]", "", first.rpartition("/")[2].lower())
    return DATASETS.get(plain, first)


@lru_cache
def image_format(source: str, split: str) -> str | None:
    """How the first image of a folder is encoded, "PNG" or "JPEG"; None where it is not here.

    Nothing is downloaded to find out: a Hub id that is no folder gives None.
    """
    roots = [Path(), *([Path(os.environ["SPR_OR_DATA"])] if "SPR_OR_DATA" in os.environ else [])]
    folder = next((root / source for root in roots if (root / source).is_dir()), None)
    if folder is None:
        return None
    images = parquet.open_split(folder, split)
    data, _ = next(parquet.read_group(images, images.files[0], 0))
    return Image.open(io.BytesIO(data or b"")).format
