"""Comparison files: a base recipe, methods and budgets; every method is run at every budget.

.. code-block:: toml

    base = "digits"                # a recipe, as in a sweep file
    seeds = [0, 1, 2]              # one dense network for each, shared by all methods
    budgets = [50.0, 75.0, 90.0]   # percent to be removed
    methods = [
        "spr-prox",                                  # a form of SPR
        "pffec",                                     # a name that `spr-or methods` lists
        { name = "bn_gamma", l1 = 1e-3 },            # with keys of its own
        { name = "spr", label = "SPR, α 0.3", spr.alpha = 0.3 },   # with keys of the recipe
        "my_module:METHOD",                          # one's own
    ]                              # or methods = "all"
    [set]                          # for all runs
    dense.epochs = 20
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from spr_or.sweeps.sweep_file import SweepError, SweepPlan, SweepRun, as_changes, find_base, flatten
from spr_or.training.method import SPR_ITSELF, shipped_methods
from spr_or.training.recipe import Change, load_changed
from spr_or.utils.shipped import find_shipped

# The forms of SPR by the names that `methods` takes.
SPR_FORMS: dict[str, dict[str, Any]] = {
    "spr-prox": {"spr.method": "prox", "spr.variant": "exact"},
    "spr-exact": {"spr.method": "gradient", "spr.variant": "exact"},
    "spr-printed": {"spr.method": "gradient", "spr.variant": "printed"},
}
KEYS = ("method", "budget")


class _CompareFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    base: Path
    name: str = ""
    seeds: tuple[NonNegativeInt, ...] | None = Field(default=None, min_length=1)
    budgets: tuple[Annotated[float, Field(gt=0, lt=100)], ...] = Field(min_length=1)
    methods: str | tuple[str | dict[str, Any], ...] = Field(min_length=1)
    set: dict[str, Any] = {}


def load_comparison(path: str | Path, overrides: Iterable[str] = ()) -> SweepPlan:
    """The runs of a comparison, as a sweep over ``method`` and ``budget``.

    ``overrides`` ("section.key=value") apply to all runs, after ``[set]``; ``seeds=[…]`` replaces the
    seeds of the file. Raises `SweepError`, and `RecipeError` for a run whose recipe is wrong.
    """
    try:
        path = find_shipped(path, "comparisons")
    except FileNotFoundError as error:
        raise SweepError(f"no comparison file at {path}: {error}") from None
    file = _read(path)
    base = find_base(path, file.base)
    overrides = list(overrides)
    given = {override.partition("=")[0].strip() for override in overrides}
    shared = [*as_changes(path, flatten(file.set)), *(Change("--set ", one) for one in overrides)]
    runs = []
    for label, changes in _methods(path, file.methods).items():
        for budget in file.budgets:
            wanted = {**changes, "spr.target_removed_pct": budget}
            recipe = load_changed(base, [*shared, *as_changes(path, wanted)])
            for seed in recipe.seeds if "seeds" in given else file.seeds or recipe.seeds:
                run = SweepRun({"method": label, "budget": budget}, recipe)
                one = recipe.model_copy(update={"seeds": (seed,)})
                run = SweepRun(run.changes, one)
                titled = one.model_copy(update={"name": f"{path.stem}: {run.name}"})
                runs.append(SweepRun(run.changes, titled))
    return SweepPlan(file.name or path.stem, KEYS, tuple(runs))


def _read(path: Path) -> _CompareFile:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        return _CompareFile.model_validate(values)
    except (OSError, UnicodeDecodeError) as error:
        raise SweepError(f"{path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SweepError(f"{path} is no valid TOML: {error}") from None
    except ValidationError as error:
        known = ", ".join(_CompareFile.model_fields)
        faults = [
            f"{path}: {'.'.join(map(str, fault['loc']))}: "
            + (
                f"no such key; a comparison has {known}"
                if fault["type"] == "extra_forbidden"
                else fault["msg"]
            )
            for fault in error.errors()
        ]
        raise SweepError("\n".join(dict.fromkeys(faults))) from None


def _methods(
    path: Path, methods: str | tuple[str | dict[str, Any], ...]
) -> dict[str, dict[str, Any]]:
    """What each method changes of the recipe, by its label."""
    if isinstance(methods, str):
        if methods != "all":
            raise SweepError(f'{path}: methods is a list of methods, or "all", not {methods!r}')
        methods = (*SPR_FORMS, *shipped_methods())
    found: dict[str, dict[str, Any]] = {}
    for entry in methods:
        label, changes = _method(path, {"name": entry} if isinstance(entry, str) else entry)
        if label in found:
            raise SweepError(
                f"{path}: two methods are called {label!r}: give one of them a label of its own"
            )
        found[label] = changes
    return found


def _method(path: Path, entry: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    values = flatten(entry)
    name = values.pop("name", None)
    if not isinstance(name, str):
        raise SweepError(f'{path}: a method needs a name: {{ name = "pffec" }}, got {dict(entry)}')
    label = values.pop("label", name)
    if not isinstance(label, str):
        raise SweepError(f"{path}: the label of {name} must be text, got {label!r}")
    if name in SPR_FORMS:
        name, values = SPR_ITSELF, SPR_FORMS[name] | values
    elif ":" not in name and name not in (SPR_ITSELF, *shipped_methods()):
        known = (SPR_ITSELF, *SPR_FORMS, *shipped_methods())
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise SweepError(f"{path}: there is no method {name!r}; {hint}There are {', '.join(known)}")
    own = {(key if "." in key else f"method.{key}"): value for key, value in values.items()}
    return label, {"method.name": name, **own}
