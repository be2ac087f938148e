"""What can be told of many runs before the first one starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import torch

from spr_or.pruning.budget import Count
from spr_or.pruning.chosen_entities import ChosenEntities
from spr_or.sweeps.sweep_file import SweepError, SweepRun
from spr_or.training.data.load import Data, load_data
from spr_or.training.method_phase import check_method
from spr_or.training.recipe import DataRecipe, Recipe, RecipeError
from spr_or.training.setup import check_model, fresh_model, make_counter, pick_device


class _Network(NamedTuple):
    """A network with its data and entities, which many runs share."""

    data: Data
    device: torch.device
    chosen: ChosenEntities


def check_all(runs: Sequence[SweepRun]) -> None:
    """Check each network, each budget of a network, and each method on it, once.

    Raises `DataError` for data that cannot be read, and `SweepError` with a line for each fault.
    """
    data: dict[DataRecipe, Data] = {}
    networks: dict[str, _Network | RecipeError] = {}
    counters: dict[str, Count | None | RecipeError] = {}
    methods: dict[str, RecipeError | None] = {}
    for run in runs:
        recipe = run.recipe
        network_key = _key(recipe, budget=False)
        if network_key not in networks:
            if recipe.data not in data:
                data[recipe.data] = load_data(recipe.data, pick_device(recipe.speed))
            networks[network_key] = _network(recipe, data[recipe.data])
        network = networks[network_key]
        if isinstance(network, RecipeError):
            continue
        budget_key = _key(recipe, budget=True)
        if budget_key not in counters:
            counters[budget_key] = _counter(recipe, network)
        counter = counters[budget_key]
        method_key = network_key + recipe.method.model_dump_json()
        if not isinstance(counter, RecipeError) and method_key not in methods:
            methods[method_key] = _method(recipe, network, counter)
    found = [*networks.values(), *counters.values(), *methods.values()]
    faults = [str(one) for one in found if isinstance(one, RecipeError)]
    if faults:
        raise SweepError("\n".join(faults))


def _key(recipe: Recipe, budget: bool) -> str:
    """What two runs must have in common to share a check of their network, or of their budget."""
    spr = {"entities", "include_norm", "ignored"}
    if budget:
        spr |= {
            "target_removed_pct",
            "target_of",
            "round_to",
            "min_keep",
            "cut",
            "also_removed_pct",
        }
    shared = {"model", "model_kwargs", "data"}
    parts = recipe.model_dump(mode="json", include=shared | {"spr"})
    parts["spr"] = {key: value for key, value in parts["spr"].items() if key in spr}
    return json.dumps(parts, sort_keys=True)


def _network(recipe: Recipe, data: Data) -> _Network | RecipeError:
    device = pick_device(recipe.speed)
    try:
        model = fresh_model(recipe, recipe.seeds[0], device)
        return _Network(data, device, check_model(recipe, model, data, device))
    except RecipeError as error:
        return error


def _counter(recipe: Recipe, network: _Network) -> Count | None | RecipeError:
    try:
        return make_counter(recipe, network.data, network.device, network.chosen)
    except RecipeError as error:
        return error


def _method(recipe: Recipe, network: _Network, counter: Count | None) -> RecipeError | None:
    try:
        check_method(recipe, network.data, network.device, network.chosen, counter)
    except RecipeError as error:
        return error
    return None
