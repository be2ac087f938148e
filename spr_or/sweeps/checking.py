"""What can be told of many runs before the first one starts."""

from __future__ import annotations

from collections.abc import Sequence

from spr_or.sweeps.sweep_file import SweepError, SweepRun
from spr_or.training.data.load import Data, load_data
from spr_or.training.recipe import DataRecipe, RecipeError
from spr_or.training.runner import check_recipe
from spr_or.training.setup import pick_device


def check_all(runs: Sequence[SweepRun]) -> None:
    """Check data, network, budget and method of the runs, of seeds only the first.

    Raises `DataError` for data that cannot be read, and `SweepError` with a line for each fault.
    """
    data: dict[DataRecipe, Data] = {}
    seen, faults = set(), []
    for run in runs:
        setting = tuple(run.changes.items())
        if setting in seen:
            continue
        seen.add(setting)
        recipe = run.recipe
        device = pick_device(recipe.speed)
        if recipe.data not in data:
            data[recipe.data] = load_data(recipe.data, device)
        try:
            check_recipe(recipe, data[recipe.data], device)
        except RecipeError as error:
            faults.append(f"{', '.join(f'{key} {value}' for key, value in setting)}: {error}")
    if faults:
        raise SweepError("\n".join(faults))
