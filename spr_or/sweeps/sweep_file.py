"""Sweep files: a base recipe, and what each run changes of it.

.. code-block:: toml

    base = "../recipes/digits.toml"     # beside the sweep file, or in the current folder; or the
                                        # name of a shipped recipe: "digits"
    seeds = [0, 1, 2]                   # those of the base recipe, if left out
    [set]                               # for all runs
    dense.epochs = 20
    [grid]                              # every combination
    spr.lam = [40.0, 65.0]
    spr.alpha = [0.1, 0.3]

Instead of ``[grid]``, ``[[runs]]`` lists single runs, each with its own keys.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from spr_or.training.recipe import Change, Recipe, load_changed
from spr_or.utils.shipped import find_shipped, shipped_names

File = TypeVar("File", bound=BaseModel)


class SweepError(ValueError):
    """A sweep that cannot be run; the message names the file, the key and the fix."""


class _SweepFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    base: Path
    name: str = ""
    seeds: tuple[NonNegativeInt, ...] | None = Field(default=None, min_length=1)
    set: dict[str, Any] = {}
    grid: dict[str, Any] = {}
    runs: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: the keys it changes, and the recipe (with one seed) that follows."""

    changes: dict[str, Any]
    recipe: Recipe

    @property
    def seed(self) -> int:
        """The one seed of the run."""
        return self.recipe.seeds[0]

    @property
    def name(self) -> str:
        """What distinguishes the run, such as ``spr.lam=40.0,spr.alpha=0.1,seed=0``."""
        return ",".join(
            f"{key}={value}" for key, value in {**self.changes, "seed": self.seed}.items()
        )

    @property
    def folder_name(self) -> str:
        """`name` as a valid file name: unusual or long names end in a part of their hash."""
        plain = re.sub(r"[^\w.,=+-]", "-", self.name)[:150]
        if plain == self.name:
            return plain
        return f"{plain}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class SweepPlan:
    """All runs of a sweep, in the order of its file; ``keys`` are the changed keys of any run."""

    name: str
    keys: tuple[str, ...]
    runs: tuple[SweepRun, ...]


def load_sweep(path: str | Path, overrides: Iterable[str] = ()) -> SweepPlan:
    """Read and check a sweep file, or a shipped one by its name, and the recipe of each run.

    ``overrides`` ("section.key=value") apply to all runs, after ``[set]``; ``seeds=[…]`` replaces the
    seeds of the file. Raises `SweepError`, also for an override of what the runs change themselves,
    and `RecipeError` for a run whose recipe is wrong.
    """
    overrides = list(overrides)
    try:
        path = find_shipped(path, "tables")
    except FileNotFoundError as error:
        if str(path) in shipped_names("recipes"):
            raise SweepError(_is_a_recipe(path)) from None
        raise SweepError(f"no sweep file at {path}: {error}") from None
    sweep = _read(path)
    base = find_base(path, sweep.base)
    changes = _changes(path, sweep)
    keys = tuple(dict.fromkeys(key for change in changes for key in change))
    given = {override.partition("=")[0].strip() for override in overrides}
    if lost := given & set(keys):
        raise SweepError(f"{path}: its runs change {', '.join(sorted(lost))}, so --set cannot")
    given_changes = [Change("--set ", override) for override in overrides]
    shared = [*as_changes(path, flatten(sweep.set)), *given_changes]
    name = sweep.name or path.stem
    runs: list[SweepRun] = []
    for change in changes:
        recipe = load_changed(base, [*shared, *as_changes(path, change)])
        seeds = recipe.seeds if "seeds" in given else sweep.seeds or recipe.seeds
        runs += runs_of(name, change, recipe, seeds)
    twice = [name for name, count in Counter(run.folder_name for run in runs).items() if count > 1]
    if twice:
        raise SweepError(f"{path} names the run {twice[0]} twice")
    return SweepPlan(name, keys, tuple(runs))


def runs_of(
    title: str, changes: dict[str, Any], recipe: Recipe, seeds: Iterable[int]
) -> list[SweepRun]:
    """A run for each seed; the name of its recipe tells what it changes."""
    runs = [SweepRun(changes, recipe.model_copy(update={"seeds": (seed,)})) for seed in seeds]
    return [
        SweepRun(changes, run.recipe.model_copy(update={"name": f"{title}: {run.name}"}))
        for run in runs
    ]


def _read(path: Path) -> _SweepFile:
    values = read_toml(path)
    if "model" in values and "base" not in values:
        raise SweepError(_is_a_recipe(path))
    return validated(path, values, _SweepFile, "a sweep file")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; `SweepError` where it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SweepError(f"{path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SweepError(f"{path} is no valid TOML: {error}") from None


def validated(path: Path, values: dict[str, Any], model: type[File], what: str) -> File:
    """The values as ``model``; `SweepError` with a line for each fault. ``what`` names such a file."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        known = ", ".join(model.model_fields)
        faults = [
            f"{path}: {'.'.join(map(str, fault['loc']))}: "
            + (f"no such key; {what} has {known}" if fault["type"] == "extra_forbidden"
               else fault["msg"])
            for fault in error.errors()
        ]  # fmt: skip
        raise SweepError("\n".join(dict.fromkeys(faults))) from None


def _is_a_recipe(path: str | Path) -> str:
    return f"{path} is a recipe, not a sweep: spr-or run {path} takes it"


def find_base(path: Path, base: Path) -> Path:
    """The base recipe that the file at ``path`` names: beside it, in the current folder, or shipped."""
    for candidate in (path.parent / base, base):
        if candidate.is_file():
            return candidate
    try:
        return find_shipped(base, "recipes")
    except FileNotFoundError as error:
        places = f"is neither in {path.parent} nor in {Path.cwd()}"
        raise SweepError(f"{path}: base = {str(base)!r} {places}: {error}") from None


def _changes(path: Path, sweep: _SweepFile) -> list[dict[str, Any]]:
    """What each run changes, from the grid or from the list."""
    if bool(sweep.grid) == bool(sweep.runs):
        raise SweepError(f"{path} needs either [grid] or [[runs]], and not both")
    if sweep.runs:
        found = [flatten(run) for run in sweep.runs]
    else:
        grid = flatten(sweep.grid)
        for key, values in grid.items():
            if not isinstance(values, list) or not values:
                raise SweepError(f"{path}: grid {key} must be a list of values, got {values!r}")
        found = [
            dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
        ]
    if any("seeds" in part for part in (*found, sweep.set)):
        raise SweepError(f"{path}: seeds belong at the top of a sweep file, not in its tables")
    return found


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys for nested tables, so that TOML's ``spr.lam`` and ``"spr.lam"`` mean the same.

    >>> flatten({"spr": {"lam": 1.0}, "spr.alpha": 0.1})
    {'spr.lam': 1.0, 'spr.alpha': 0.1}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def as_changes(path: Path, changes: Mapping[str, Any]) -> list[Change]:
    """ "key=value" of a sweep file, with the value as TOML writes it, which for these types is also JSON."""
    try:
        return [Change(f"{path}: ", f"{key}={json.dumps(value)}") for key, value in changes.items()]
    except TypeError as error:
        raise SweepError(f"{path}: {error}") from None
