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

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    model_validator,
)

from spr_or.sweeps.sweep_file import (
    SweepError,
    SweepPlan,
    SweepRun,
    as_changes,
    find_base,
    flatten,
    read_toml,
    runs_of,
    validated,
)
from spr_or.training.method import SPR_ITSELF, shipped_methods, unknown_method
from spr_or.training.recipe import Change, SprRecipe, load_changed
from spr_or.utils.shipped import find_shipped

# The forms of SPR by the names that `methods` takes.
SPR_FORMS: dict[str, dict[str, Any]] = {
    "spr-prox": {"spr.method": "prox", "spr.variant": "exact"},
    "spr-exact": {"spr.method": "gradient", "spr.variant": "exact"},
    "spr-printed": {"spr.method": "gradient", "spr.variant": "printed"},
}
KEYS = ("method", "budget")
# Keys of the recipe that one method may have for itself. All others are the same for all methods.
_OWN = {
    f"spr.{key}"
    for key in (
        "method", "variant", "lam", "alpha", "u", "bounds", "bounds_every", "lam_warmup", "zero_below",
        "share", "shrink", "shrink_after",
    )
}  # fmt: skip
_OF_ANY = {"spr.shrink", "spr.shrink_after"}  # the others of these only SPR reads
_AUTO = {"spr.lam": "auto"}  # a number in the base was tuned without a budget


class _CompareFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    base: Path
    name: str = ""
    seeds: tuple[NonNegativeInt, ...] | None = Field(default=None, min_length=1)
    budgets: tuple[Annotated[float, Field(gt=0, lt=100)], ...] = Field(min_length=1)
    methods: str | tuple[str | dict[str, Any], ...] = Field(min_length=1)
    set: dict[str, Any] = {}

    @model_validator(mode="after")
    def _nothing_counts_twice(self) -> _CompareFile:
        for name in ("seeds", "budgets"):
            values = getattr(self, name) or ()
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must differ from each other, got {list(values)}")
        return self


def load_comparison(path: str | Path, overrides: Iterable[str] = ()) -> SweepPlan:
    """The runs of a comparison, as a sweep over ``method`` and ``budget``.

    ``overrides`` ("section.key=value") apply to all runs, after ``[set]``; ``seeds=[…]`` replaces the
    seeds of the file. Raises `SweepError`, and `RecipeError` for a run whose recipe is wrong.
    """
    try:
        path = find_shipped(path, "comparisons")
    except FileNotFoundError as error:
        raise SweepError(f"no comparison file at {path}: {error}") from None
    file = validated(path, read_toml(path), _CompareFile, "a comparison")
    base = find_base(path, file.base)
    overrides = list(overrides)
    given = {override.partition("=")[0].strip() for override in overrides}
    settings = flatten(file.set)
    for key in [*settings, *given]:
        if key == "spr.target_removed_pct" or key.split(".")[0] == "method":
            raise SweepError(f"{path}: {key} is given by budgets and methods of the comparison")
    shared = [
        *as_changes(path, _AUTO | settings),
        *(Change("--set ", one) for one in overrides),
    ]
    runs: list[SweepRun] = []
    for label, changes in _methods(path, file.methods).items():
        for budget in file.budgets:
            wanted = {**changes, "spr.target_removed_pct": budget}
            recipe = load_changed(base, [*shared, *as_changes(path, wanted)])
            seeds = recipe.seeds if "seeds" in given else file.seeds or recipe.seeds
            runs += runs_of(path.stem, {"method": label, "budget": budget}, recipe, seeds)
    return SweepPlan(file.name or path.stem, KEYS, tuple(runs))


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
        raise SweepError(
            f"{path}: {unknown_method(name, (SPR_ITSELF, *SPR_FORMS, *shipped_methods()))}"
        )
    shared = sorted(key for key in values if "." in key and key not in _OWN)
    for key in shared:
        near = get_close_matches(key, _OWN, n=1, cutoff=0.8)
        if near and key.removeprefix("spr.") not in SprRecipe.model_fields:
            raise SweepError(f"{path}: {label} has no key {key!r}; did you mean {near[0]!r}?")
    if shared:
        raise SweepError(
            f"{path}: {label} has {', '.join(shared)}, which is the same for all methods: put it under "
            f"[set]. A method may have keys of its own and {', '.join(sorted(_OWN))}"
        )
    if name != SPR_ITSELF and (unread := sorted({k for k in values if "." in k} - _OF_ANY)):
        raise SweepError(
            f"{path}: {label} does not read {', '.join(unread)}, which only SPR does: remove it"
        )
    own = {(key if "." in key else f"method.{key}"): value for key, value in values.items()}
    return label, {"method.name": name, **own}
